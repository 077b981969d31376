"""Layer densities of one threshold over the whole model, against the plainest computation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from score_evidence import score_of, spread, write_means
from small_models import family, load, recipe, save

from mergewise import merge, plan
from mergewise.engine import _compile, _shares, kept_shares
from mergewise.errors import EvidenceError, MergewiseError, NonFiniteError
from mergewise.evidence import load_evidence
from mergewise.methods import SCORES

Tensor = torch.Tensor
EXPERTS = "ab"
MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
OF = {"gain": "fisher", "activation_gain": "input_moments", "activation": "input_moments"}


def is_matrix(name: str) -> bool:
    return any(part in name for part in MATRICES)


@pytest.fixture(scope="module")
def root(tmp_path_factory: Any) -> Path:
    """Models with a little evidence each: Fisher of all matrices but one, inputs of all."""
    root = family(tmp_path_factory.mktemp("models"), dtype=torch.float32)
    for i, letter in enumerate(EXPERTS):
        draw = torch.Generator().manual_seed(70 + i)
        state = {n: t for n, t in load(root / f"expert_{letter}").items() if is_matrix(n)}
        fisher = {n: torch.rand(t.shape, generator=draw).square() for n, t in state.items()}
        del fisher["model.layers.1.mlp.up_proj.weight"]
        inputs = {n: torch.rand(t.shape[1], generator=draw) * (k + 1)
                  for k, (n, t) in enumerate(state.items())}  # fmt: skip
        write_means(root / f"{letter}.evd", {"fisher": fisher, "input_moments": inputs})
    return root


@pytest.fixture
def files(root: Path) -> dict[str, Any]:
    return {str(root / f"expert_{c}"): [load_evidence(root / f"{c}.evd")] for c in EXPERTS}


def metrics(root: Path, rule: str, name: str) -> list[Tensor]:
    statistic = OF.get(rule, rule)
    found = []
    for letter in EXPERTS:
        evidence = load_evidence(root / f"{letter}.evd")
        if (statistic, name) not in evidence.entries:
            return []
        [mean] = [s / 3 for s in evidence.sums(statistic, name).values()]
        shape = load(root / "base")[name].shape
        found.append(mean if statistic == "fisher" else spread(mean.float(), shape))
    return found


def expected(root: Path, rule: str, density: float, expert: int, only: Any) -> dict[str, float]:
    """All scores in one tensor, sorted."""
    base = load(root / "base")
    models = [load(root / f"expert_{c}") for c in EXPERTS]
    scores = {}
    for name in base:
        deltas = [model[name] - base[name] for model in models]
        known = [] if rule == "magnitude" else metrics(root, rule, name)
        if (rule == "magnitude" or known) and (only is None or name in only):
            scores[name] = score_of(rule, deltas, known, expert)
    every = torch.cat([s.flatten() for s in scores.values()]).sort(descending=True).values
    least = every[int(density * len(every)) - 1]
    return {name: float((s >= least).double().mean()) for name, s in scores.items()}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("rule", SCORES)
@pytest.mark.parametrize("density", [0.1, 0.5, 0.83])
def test_shares_equal_a_full_sort(
    rule: str, density: float, compiled: bool, root: Path, files: Any, monkeypatch: Any
) -> None:
    if compiled and _compile.helpers() is None:
        pytest.skip("no C compiler here")
    monkeypatch.setattr(_shares, "FUSE_FROM_ELEMENTS", 0 if compiled else 1 << 60)
    made = plan(recipe(root, "ties"))
    only = [n for n in made.output.tensors if is_matrix(n)] if density == 0.5 else None
    got = kept_shares(made, rule, density, only=only, evidence=files)
    for i in range(2):
        wanted = expected(root, rule, density, i, only)
        assert got[i].keys() == wanted.keys()
        for name, share in wanted.items():
            # float32 may order two near equals otherwise than float64
            one = 1.5 / made.output.tensors[name].meta.elements
            assert got[i][name] == pytest.approx(share, abs=one), name


@pytest.mark.parametrize("density", [0.0, 0.004, 0.37, 1.0])
def test_the_mean_share_is_the_density(density: float, root: Path, files: Any) -> None:
    made = plan(recipe(root, "ties"))
    sizes = {name: t.meta.elements for name, t in made.output.tensors.items()}
    for shares in kept_shares(made, "fisher", density, evidence=files):
        whole = sum(sizes[name] for name in shares)
        kept = sum(share * sizes[name] for name, share in shares.items())
        assert kept == pytest.approx(int(density * whole), abs=1e-6)


def test_evidence_may_stand_in_the_recipe_and_matter_to_one_expert_alone(
    root: Path, files: Any
) -> None:
    document = recipe(root, "ties")
    bare = plan(document)
    for model, letter in zip(document["models"], EXPERTS, strict=True):
        model["evidence"] = str(root / f"{letter}.evd")
    wanted = kept_shares(bare, "fisher", 0.3, evidence=files)
    assert kept_shares(plan(document), "fisher", 0.3) == wanted
    assert wanted[0] != wanted[1]
    assert wanted != kept_shares(bare, "gain", 0.3, evidence=files)


def test_progress_rises_to_its_end(root: Path, files: Any) -> None:
    seen: list[tuple[int, int]] = []
    made = plan(recipe(root, "ties"))
    kept_shares(
        made, "fisher", 0.4, evidence=files, progress=lambda done, of: seen.append((done, of))
    )
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len({of for _, of in seen}) == 1
    assert seen[-1][0] == seen[-1][1] > 0


def test_a_stage_before_is_merged_as_it_is_read(root: Path, tmp_path: Path) -> None:
    first = {"name": "first", **recipe(root, "linear", parameters={"weight": 0.5})}
    last = recipe(root, "ties", experts=1)
    merge({k: v for k, v in first.items() if k != "name"}, tmp_path / "out")
    alone = recipe(root, "ties", experts=1)
    alone["models"][0]["model"] = str(tmp_path / "out")
    last["models"][0]["model"] = "first"
    staged = kept_shares(plan(yaml.safe_dump_all([first, last])), "magnitude", 0.3)
    assert staged == kept_shares(plan(alone), "magnitude", 0.3)


def test_what_cannot_be_asked(root: Path, files: Any) -> None:
    made = plan(recipe(root, "ties"))
    with pytest.raises(MergewiseError, match="no score 'size'; expected one of magnitude"):
        kept_shares(made, "size", 0.5)
    with pytest.raises(MergewiseError, match=r"0 <= x <= 1 expected, got 1\.5"):
        kept_shares(made, "magnitude", 1.5)
    with pytest.raises(MergewiseError, match="linear has none"):
        kept_shares(plan(recipe(root, "linear")), "magnitude", 0.5)
    with pytest.raises(EvidenceError, match=r"expert_a.*mergewise collect fisher"):
        kept_shares(made, "fisher", 0.5)
    with pytest.raises(EvidenceError, match="expert_a: none of 1 tensors"):
        kept_shares(made, "fisher", 0.5, evidence=files, only=["model.norm.weight"])


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    root = family(tmp_path)
    state = load(root / "expert_a")
    state["model.norm.weight"][0] = float("nan")
    save(root / "expert_a", state, None)
    with pytest.raises(NonFiniteError, match=r"model\.norm\.weight"):
        kept_shares(plan(recipe(root, "ties")), "magnitude", 0.5)
