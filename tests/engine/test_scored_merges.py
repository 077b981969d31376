"""Merges ranked by evidence: weights stored either way, convolutions, files, and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from score_evidence import score_of, spread, top, write_means
from small_models import assert_same, family, load, near, recipe, save

from mergewise import merge, merge_state_dicts, plan
from mergewise.evidence import collect

Tensor = torch.Tensor


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def trimmed(delta: Tensor, squares: Tensor, score: str = "activation", **options: Any) -> Tensor:
    """What ties leaves of one expert's change of zeros, a quarter of it."""
    return merge_state_dicts(
        [{"w": delta}],
        "ties",
        base={"w": torch.zeros_like(delta)},
        parameters={"weight": 1.0, "density": 0.25, "score": score},
        evidence=[{"input_moments": {"w": squares}}],
        **options,
    )["w"]


SHAPES = {
    "matrix": ((8, 6), 6),
    "stored inputs by outputs": ((6, 8), 6),
    "convolution": ((8, 3, 2, 2), 12),
    "of one axis": ((8, 4, 3), 12),
    "of two groups": ((8, 3, 2, 2), 24),
    "of a group each": ((8, 1, 3, 3), 72),
    "a single row": ((1, 16), 16),
    "a single column": ((16, 1), 1),
}


@pytest.mark.parametrize("block", [None, 1, 7, 30])
@pytest.mark.parametrize("kind", SHAPES)
def test_numbers_by_input_channel(kind: str, block: int | None) -> None:
    shape, channels = SHAPES[kind]
    delta, squares = draw(1, *shape), draw(2, channels).square() + 0.01
    metric = spread(squares, shape, turned=kind.startswith("stored"))
    mask = top(score_of("activation", [delta], [metric], 0), 0.25)
    assert torch.equal(trimmed(delta, squares, block_size=block), torch.where(mask, delta, 0.0))


def test_float64_is_ranked_alike() -> None:
    delta, squares = draw(1, 40, 30), draw(2, 30).square() + 0.01
    for score in ("activation", "activation_gain"):
        wide = trimmed(delta.double(), squares, score)
        assert torch.equal(wide.float(), trimmed(delta, squares, score))


@pytest.fixture(scope="module")
def small_gpt2(tmp_path_factory: Any) -> Path:
    """A base and an expert of GPT-2's form, whose weights are stored [inputs, outputs]."""
    from transformers import GPT2Config, GPT2LMHeadModel

    root = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    module = GPT2LMHeadModel(
        GPT2Config(n_layer=1, n_head=2, n_embd=12, n_inner=12, vocab_size=30, n_positions=16)
    )
    module.save_pretrained(root / "base")
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(torch.randn(weight.shape), alpha=0.05)
    module.save_pretrained(root / "expert")
    ids = torch.randint(0, 30, (4, 9))
    collect("input_moments", root / "expert", [{"input_ids": ids}], root / "expert.evd")
    return root


def gpt2_recipe(root: Path, **more: Any) -> dict[str, Any]:
    source = {"model": str(root / "expert"), "evidence": str(root / "expert.evd")}
    return {
        "merge_method": "ties",
        "base_model": str(root / "base"),
        "models": [source],
        "parameters": {"weight": 1.0, "density": 0.3, "score": "activation"} | more,
    }


def test_gpt2_from_collected_evidence(small_gpt2: Path, tmp_path: Path) -> None:
    from mergewise.evidence import load_evidence

    merge(gpt2_recipe(small_gpt2), tmp_path / "out")
    base, expert = load(small_gpt2 / "base"), load(small_gpt2 / "expert")
    out, evidence = load(tmp_path / "out"), load_evidence(small_gpt2 / "expert.evd")
    # the last is square, so that only the evidence can tell how it is stored
    for part in ("attn.c_attn", "mlp.c_fc", "mlp.c_proj", "attn.c_proj"):
        name = f"transformer.h.0.{part}.weight"
        squares = evidence.sums("input_moments", name)["sum_squares"].float()
        delta = expert[name] - base[name]
        metric = spread(squares, delta.shape, turned=True)
        mask = top(score_of("activation", [delta], [metric], 0), 0.3)
        assert torch.equal(out[name] != base[name], mask & (delta != 0)), name
    bias = "transformer.h.0.mlp.c_fc.bias"
    delta = expert[bias] - base[bias]
    assert torch.equal(out[bias] != base[bias], top(delta.abs(), 0.3))


RULES = ["activation", "fisher", "gain", "activation_gain"]


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: Any) -> Path:
    root = family(tmp_path_factory.mktemp("llamas"))
    for i, letter in enumerate("ab"):
        state = {n: t for n, t in load(root / f"expert_{letter}").items() if "_proj" in n}
        means = {
            "fisher": {n: draw(i, *t.shape).square() for n, t in state.items()},
            "input_moments": {n: draw(9 + i, t.shape[1]).square() for n, t in state.items()},
        }
        write_means(root / f"{letter}.evd", means)
        torch.save(means, root / f"{letter}.pt")
    return root


def scored(root: Path, method: str, **parameters: Any) -> dict[str, Any]:
    document = recipe(root, method, parameters={"density": 0.4, **parameters})
    for model, letter in zip(document["models"], "ab", strict=True):
        model["evidence"] = str(root / f"{letter}.evd")
    return document


@pytest.mark.parametrize("granularity", ["tensor", "row", "model"])
@pytest.mark.parametrize("rule", RULES)
def test_files_as_in_memory(rule: str, granularity: str, llamas: Path, tmp_path: Path) -> None:
    given = {"density": 0.4, "score": rule, "granularity": granularity}
    merge(scored(llamas, "ties", **given), tmp_path / "out", shard_size=5000)
    result = merge_state_dicts(
        [load(llamas / f"expert_{c}") for c in "ab"],
        "ties",
        base=load(llamas / "base"),
        parameters={"weight": 0.5, **given},
        evidence=[torch.load(llamas / f"{c}.pt") for c in "ab"],
    )
    assert_same(load(tmp_path / "out"), result)


def test_scores_may_differ_from_tensor_to_tensor(llamas: Path, tmp_path: Path) -> None:
    """And none shares a threshold with another rule's."""
    by_part = [
        {"filter": "mlp", "value": "fisher"},
        {"filter": "self_attn", "value": "activation"},
        {"value": "magnitude"},
    ]
    for name, score in (("both", by_part), ("fisher", "fisher"), ("activation", "activation")):
        only = {"mlp": "fisher", "self_attn": "activation"}
        exclude = [f"*{part}*" for part, rule in only.items() if name not in ("both", rule)]
        document = scored(llamas, "ties", score=score, granularity="model")
        merge(document | {"exclude": exclude}, tmp_path / name)
    both = load(tmp_path / "both")
    for name, tensor in both.items():
        if "_proj" in name:
            alone = "fisher" if "mlp" in name else "activation"
            assert torch.equal(tensor, load(tmp_path / alone)[name]), name


def test_kept_shares_are_what_one_threshold_keeps(llamas: Path, tmp_path: Path) -> None:
    from mergewise.engine import kept_shares

    document = scored(llamas, "ties", score="fisher", granularity="model", normalize=False)
    document["models"] = document["models"][:1]
    document["parameters"]["weight"] = 1.0
    merge(document | {"out_dtype": "float32"}, tmp_path / "out")
    [shares] = kept_shares(plan(document), "fisher", 0.4)
    base, out = load(llamas / "base"), load(tmp_path / "out")
    assert shares and all("_proj" in name for name in shares)
    for name, share in shares.items():
        # elements that do not change at all (their scores are 0) cannot be seen to be kept
        changed = float((out[name] != base[name].float()).double().mean())
        assert changed == pytest.approx(share, abs=0.01), name


SCRIPT = """
import json, resource, sys
import mergewise.engine._run as run
import mergewise.engine._shares as shares
from mergewise import merge, plan
run.FUSE_FROM_ELEMENTS = shares.FUSE_FROM_ELEMENTS = 0
peaks = []
for i, path in enumerate(sys.argv[2:]):
    document = json.loads(open(path).read())
    merge(document, sys.argv[1] + str(i), workers=2, shard_size="8MB")
    shares.kept_shares(plan(document), document["parameters"]["score"], 0.3)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(json.dumps(peaks))
"""


def checkpoint(root: Path, megabytes: int) -> Path:
    """Base, expert and their Fisher, `megabytes` of weights together; a tensor is half of each."""
    rows = megabytes * 1_000_000 // 2 // 2 // 1000 // 2
    base = {"half": torch.randn(rows, 1000).bfloat16()}
    base |= {f"layers.{i}.w": torch.randn(rows // 4, 1000).bfloat16() for i in range(4)}
    save(root / "base", base)
    save(root / "expert_a", near(base, 1))
    means = {
        "fisher": {n: torch.rand(t.shape) for n, t in base.items()},
        "input_moments": {n: torch.rand(1000) for n in base},
    }
    write_means(root / "a.evd", means)
    return root


@pytest.mark.skipif(sys.platform != "linux", reason="counts in kilobytes, as Linux does")
@pytest.mark.parametrize("fuse", ["1", "0"])
def test_ten_times_the_model_in_the_same_memory(fuse: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    recipes: list[Path] = []
    for size in (6, 60):
        root = checkpoint(tmp_path / str(size), size)
        for score, granularity in (("activation", "tensor"), ("fisher", "model")):
            given = {"density": 0.4, "score": score, "granularity": granularity}
            document = recipe(root, "ties", experts=1, parameters=given)
            document["models"][0]["evidence"] = str(root / "a.evd")
            recipes.append(tmp_path / f"{score}_{size}.json")
            recipes[-1].write_text(json.dumps(document))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "out"), *map(str, recipes)],
        env={**os.environ, "MERGEWISE_FUSE": fuse},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    small, large = json.loads(done.stdout)[1], json.loads(done.stdout)[3]
    assert large - small < 60_000, f"{large - small:,} kB more for ten times the model"
