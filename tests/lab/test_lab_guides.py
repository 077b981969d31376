"""Guided against uniform: what is held equal, what is measured, and what is said of it."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

from benchmarks.lab import digits as digits_file
from benchmarks.lab._contenders import contenders
from benchmarks.lab._evidence import evidence_of
from benchmarks.lab._guides_arms import ALONE, ARMS, NOISE, OTHER, OWN, TOGETHER, UNIFORM, Arm
from benchmarks.lab._guides_compare import (
    Difference,
    contrast,
    differences,
    signed_rank,
    verdict,
)
from benchmarks.lab._guides_evidence import Shelf, noisy
from benchmarks.lab._guides_layers import agreements
from benchmarks.lab._guides_measured import TRIMMED, agreement, by_rank, sensitivities
from benchmarks.lab._guides_page import page as page_of
from benchmarks.lab._guides_recipe import written
from benchmarks.lab._guides_report import Report, document, page, picture, write_report
from benchmarks.lab._guides_run import (
    CLOSE,
    Cell,
    Choice,
    Found,
    Outcome,
    Trial,
    run_guides,
)
from benchmarks.lab._journal import Journal
from benchmarks.lab._train import Schedule
from benchmarks.lab.digits import DOMAINS, Digits
from benchmarks.lab.guides import chosen_arms, main
from mergewise.errors import MergewiseError

pytest.importorskip("sklearn")
QUIET = Console(quiet=True)
WANDA = Arm("wanda", {"importance": "wanda"}, calibrations=(OWN,))
REVERSED = dataclasses.replace(WANDA, name="reversed", change="reversed")
TOLD = Arm("measured", guide="", change="measured", calibrations=(OWN,))
SCORED = Arm("score", guide="", parameters={"score": "activation"}, calibrations=(NOISE,))


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    """Two views, trained for a few steps: enough for models to differ."""
    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    patch.setattr(digits_file, "STEPS", {"fast": 4})
    patch.setattr(digits_file, "BASE", Schedule(steps=4, rate=3e-4))
    for name in list(DOMAINS)[2:]:
        patch.delitem(DOMAINS, name)  # type: ignore[arg-type]
    yield Digits(None, tmp_path_factory.mktemp("lab"), "fast", "cpu")
    patch.undo()


@pytest.fixture(scope="module")
def choice() -> Choice:
    methods = ("ties", "dare_ties", "della")
    return Choice((WANDA, REVERSED, SCORED, TOLD), (0.3,), methods, (ALONE, TOGETHER))


@pytest.fixture(scope="module")
def found(family: Digits, choice: Choice) -> Found:
    return run_guides(family, [0], choice, QUIET)


@pytest.fixture
def trial(family: Digits, choice: Choice) -> Trial:
    return Trial(family, 0, family.train(0, QUIET), choice, Journal(family.folder / "other.jsonl"))


# cells


def test_every_cell_has_scores_of_its_experts_tasks(found: Found) -> None:
    assert [o.failure for o in found.outcomes if o.failure] == []
    # dare_ties draws by chance and ranks nothing, so it has no score; all are on their own tasks
    assert len(found.outcomes) == (len(DOMAINS) + 1) * (4 * 3 + 2)
    assert {o.cell.calibration for o in found.outcomes if o.cell.set == TOGETHER} == {"", OWN}
    for one in found.outcomes:
        assert set(one.scores) == set(one.cell.experts)
        assert all(set(scores) == {"accuracy", "nll"} for scores in one.scores.values())
    assert set(found.references[0]["expert"]) == set(DOMAINS)


def test_means_are_the_same_in_both_arms(found: Found) -> None:
    assert all(abs(o.mean - o.cell.density) <= CLOSE for o in found.outcomes)


def test_as_many_elements_are_kept_guided_as_uniform(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[str, int] = {}

    def count(state: dict[str, torch.Tensor], cell: Cell, split: str) -> object:
        base = trial.models.base
        kept[cell.arm] = sum(
            int((state[n] != base[n]).sum()) for n in densities[cell.arm][0]
        )  # fmt: skip
        return {}, False

    monkeypatch.setattr(trial, "_scores", count)
    guided = trial._guided(("upright",), 0.3, WANDA, OWN)
    assert len(set(guided[0].values())) > 2
    densities = {"wanda": guided, UNIFORM: [dict.fromkeys(guided[0], 0.3)]}
    for arm, values in densities.items():
        cell = Cell(0, ("upright",), "ties", 0.3, arm)
        trial._of_recipe(trial._document(cell, values, None), cell)
    sizes = sum(trial.models.base[n].numel() for n in guided[0])
    assert kept[UNIFORM] == pytest.approx(0.3 * sizes, abs=len(guided[0]))
    assert kept["wanda"] == pytest.approx(kept[UNIFORM], abs=2 * len(guided[0]))


def test_controls_have_the_same_mean_and_other_densities(trial: Trial) -> None:
    guided = trial._guided(("upright",), 0.5, WANDA, OWN)[0]
    for change in ("reversed", "shuffled"):
        changed = trial._changed(guided, change, 0.5)
        assert trial._mean(changed) == pytest.approx(0.5, abs=CLOSE)
        assert changed.keys() == guided.keys() and changed != guided
    turned = trial._changed(guided, "reversed", 0.5)
    first, last = min(guided, key=guided.__getitem__), max(guided, key=guided.__getitem__)
    assert turned[first] > turned[last]


def test_other_means_or_tensors_are_refused(trial: Trial) -> None:
    uniform = [{"1.weight": 0.5, "2.1.weight": 0.5}]
    trial._check(uniform, uniform, 0.5)
    with pytest.raises(MergewiseError, match="the mean density is"):
        trial._check([{"1.weight": 0.5, "2.1.weight": 0.6}], uniform, 0.5)
    with pytest.raises(MergewiseError, match="differ in 1 tensors"):
        trial._check([{"1.weight": 0.5}], uniform, 0.5)


def test_sensitivities_are_what_trimming_costs_by_element() -> None:
    costs = {"a": 3.0, "b": 1.0, "c": 0.0}

    def loss(densities: dict[str, float]) -> float:
        return 1.0 + sum(costs[n] for n, d in densities.items() if d == TRIMMED)

    sizes = {"a": 30, "b": 2, "c": 5}
    found = sensitivities(list(costs), sizes, loss)
    assert found == {"a": pytest.approx(0.1), "b": pytest.approx(0.5), "c": 0.0}
    densities = by_rank(found, sizes, 0.5)
    assert densities["b"] > densities["a"] > densities["c"]
    mean = sum(sizes[n] * d for n, d in densities.items()) / sum(sizes.values())
    assert mean == pytest.approx(0.5)


def test_agreement_is_spearmans() -> None:
    one = {"a": 0.1, "b": 0.5, "c": 0.9, "d": 0.5}
    assert agreement(one, one) == pytest.approx(1)
    assert agreement(one, {n: -v for n, v in one.items()}) == pytest.approx(-1)
    assert math.isnan(agreement(one, dict.fromkeys(one, 0.5)))
    scipy = pytest.importorskip("scipy.stats")
    other = {"a": 3.0, "b": 1.0, "c": 2.0, "d": 0.0}
    expected = scipy.spearmanr(list(one.values()), list(other.values())).statistic
    assert agreement(one, other) == pytest.approx(expected)


def test_measured_densities_agree_with_what_was_measured(found: Found) -> None:
    assert {m.arm for m in found.maps} == {"wanda", "reversed", "measured"}
    [row] = [r for r in agreements(found.maps) if r["arm"] == "wanda"]
    assert -1 <= row["correlation"] <= 1 and row["experts"] == len(DOMAINS)
    [turned] = [r for r in agreements(found.maps) if r["arm"] == "reversed"]
    assert turned["correlation"] == pytest.approx(-row["correlation"], abs=0.1)


def test_a_second_run_merges_and_scores_nothing(
    family: Digits, choice: Choice, found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **more: object) -> None:
        raise AssertionError("done again")

    monkeypatch.setattr("benchmarks.lab._guides_recipe.merge", refuse)
    monkeypatch.setattr(Digits, "live", refuse)
    again = run_guides(family, [0], choice, QUIET)
    assert again == found


def test_dellas_probabilities_lie_between_0_and_1() -> None:
    rules = written("della", {"a": 0.02, "b": 0.5, "c": 1.0, "d": 0.97})
    density = {rule.get("filter"): rule["value"] for rule in rules["density"]}
    for rule in rules["epsilon"]:
        d = density[rule.get("filter")]
        assert d == 1.0 or 0 < d - rule["value"] < d + rule["value"] < 1
    assert "epsilon" not in written("ties", {"a": 0.5})


def test_the_longest_filter_comes_first() -> None:
    rules = written("ties", {"2.1.weight": 0.1, "12.1.weight": 0.9})["density"]
    assert [rule.get("filter") for rule in rules] == ["12.1.weight", "2.1.weight", None]


# evidence


def test_another_task_is_the_next_experts_own(family: Digits) -> None:
    shelf = Shelf(family, 0, family.train(0, QUIET))
    first, second = list(DOMAINS)

    def content(model: str, kind: str) -> object:
        return shelf.of(model, kind, ["input_moments"])[0].record.parts[0]["content"]

    assert content(first, OTHER) == content(second, OWN) != content(first, OWN)
    assert content(second, OTHER) == content(first, OWN)
    [base] = shelf.base(first, NOISE, ["input_moments"])
    assert base.record.parts[0]["content"] == content(first, NOISE)
    assert base.tensors("input_moments")[0] == "1.weight"


def test_noise_has_the_shapes_and_masks_of_what_it_replaces() -> None:
    ids = torch.tensor([[7, 7, 7, 7]])
    mask = torch.tensor([[1, 1, 0, 0]])
    [made] = noisy([{"input_ids": ids, "attention_mask": mask}], 100, 0)
    assert made["attention_mask"].tolist() == mask.tolist()
    assert made["input_ids"].shape == ids.shape and made["input_ids"].dtype == ids.dtype
    assert len(set(made["input_ids"].flatten().tolist())) > 1
    pixels = torch.tensor([[-1.0, 2.0, 0.0]])
    [made] = noisy([{"images": pixels}], 1, 0)
    assert made["images"].min() >= -1 and made["images"].max() <= 2
    assert not torch.equal(made["images"], pixels)


def test_merged_grams_begin_as_plain_ones_and_see_merged_layers(family: Digits) -> None:
    models = family.train(0, QUIET)
    [plus] = [c for c in contenders(len(DOMAINS), 32)[0] if c.walked]
    walked = evidence_of(family, 0, models, plus)
    plain = evidence_of(family, 0, models, dataclasses.replace(plus, walked=False))
    assert plus.name == "regmean_plus_plus" and walked is not None and plain is not None
    for mine, theirs in zip(walked, plain, strict=True):
        one, other = mine["input_gram"], theirs["input_gram"]
        torch.testing.assert_close(one["1.weight"], other["1.weight"])  # nothing is merged yet
        assert one.keys() == other.keys()
        assert not torch.allclose(one["5.1.weight"], other["5.1.weight"], rtol=1e-3)


# statistics


def _difference(gain: float, cluster: str = "a", **parts: object) -> Difference:
    given = {"arm": "wanda", "calibration": OWN, "set": ALONE, "metric": "loss",
             "method": "ties", "density": 0.5, "cluster": (0, cluster)}  # fmt: skip
    return Difference(**{**given, **parts}, gain=gain)  # type: ignore[arg-type]


def test_gains_are_positive_where_guided_is_better() -> None:
    cells = [Cell(0, ("a",), "ties", 0.5), Cell(0, ("a",), "ties", 0.5, "wanda", OWN)]
    scores = [{"a": {"nll": 0.5, "accuracy": 0.8}}, {"a": {"nll": 0.4, "accuracy": 0.7}}]
    found = differences(Outcome(c, s, 0.5) for c, s in zip(cells, scores, strict=True))
    gains = {one.metric: one.gain for one in found}
    assert gains == {"nll": pytest.approx(0.1), "accuracy": pytest.approx(-0.1)}
    other = dataclasses.replace(cells[0], density=0.3)
    assert differences([Outcome(other, scores[0]), Outcome(cells[1], scores[1])]) == []


def test_a_verdict_by_hand() -> None:
    found = verdict([_difference(1.0, "a"), _difference(3.0, "a"), _difference(2.0, "b")])
    assert (found.mean, found.better, found.worse, found.cells, found.clusters) == (2, 3, 0, 3, 2)
    assert found.error == pytest.approx(1 / math.sqrt(3))
    assert found.low == found.high == 2.0  # both experts' means are 2
    assert found.word == "better"
    mixed = verdict([_difference(1.0, "a"), _difference(-1.0, "b"), _difference(0.1, "c")])
    assert mixed.word == "undecided" and mixed.low < 0 < mixed.high
    assert verdict([_difference(-1.0, "a"), _difference(-2.0, "b")]).word == "worse"
    assert verdict([_difference(1.0)]).word == "undecided"  # one expert says nothing of others


def test_signed_ranks_by_hand_and_against_scipy() -> None:
    assert signed_rank([1, 2, 3, 4, 5]) == 2 / 2**5
    assert signed_rank([-1, 2, 3, 4, 5]) == 4 / 2**5
    assert signed_rank([0.0, 0.0]) == 1.0
    scipy = pytest.importorskip("scipy.stats")
    draw = torch.Generator().manual_seed(0)
    for count in (8, 20, 60):
        values = (torch.randn(count, generator=draw) + 0.3).tolist()
        exact = scipy.wilcoxon(values, method="exact" if count <= 25 else "approx",
                               correction=count > 25).pvalue  # fmt: skip
        assert signed_rank(values) == pytest.approx(exact, rel=1e-6)
    tied = [1.0, -1.0, 2.0, 2.0, 2.0, -3.0] * 6
    expected = scipy.wilcoxon(tied, method="approx", correction=True).pvalue
    assert signed_rank(tied) == pytest.approx(expected, rel=1e-6)


def test_contrasts_are_of_the_cells_that_both_have() -> None:
    own = [_difference(0.5, "a"), _difference(0.7, "b"), _difference(0.1, "c")]
    noise = [_difference(0.2, "a", calibration=NOISE), _difference(0.9, "b", calibration=NOISE)]
    assert [d.gain for d in contrast(own, noise)] == pytest.approx([0.3, -0.2])


# reports


def _report(found: Found) -> Report:
    return Report("digits", "Digits", (WANDA, REVERSED, SCORED, TOLD), found, {"gain": "not there"})


def test_reports_have_every_row_and_say_what_was_found(
    found: Found, tmp_path: Path
) -> None:  # fmt: skip
    report = _report(found)
    made = document(report)
    assert {row["arm"] for row in made["rows"]} == {"wanda", "reversed", "score", "measured"}
    assert made["largest_difference_of_mean_densities"] <= CLOSE
    assert len(made["parts"]) == 2 * (3 + 3 + 2 + 3)
    files = write_report(report, tmp_path, None)
    assert {f.name for f in files} == {
        f"guides-digits{end}" for end in (".json", ".svg", ".md", "-layers.svg")
    }
    text = page(report)
    assert text.count("| wanda |") + text.count("| **wanda** |") == 3  # two sets, and agreement
    assert "left out, gain: not there" in text
    assert picture(report).count("<title>") >= 4 * 2 * 3
    both = page_of([json.loads((tmp_path / "guides-digits.json").read_text())])
    assert "of 1 cases" in both and "| reversed |" in both


def _said(gains: list[float]) -> list[str]:
    found = Found()
    for i, gain in enumerate(gains):
        cell = Cell(i, ("a",), "ties", 0.5)
        found.outcomes.append(Outcome(cell, {"a": {"loss": 1.0}}, 0.5))
        guided = dataclasses.replace(cell, arm="wanda", calibration=OWN)
        found.outcomes.append(Outcome(guided, {"a": {"loss": 1.0 - gain}}, 0.5))
    return document(_report(found))["words"]


def test_words_follow_the_numbers() -> None:
    assert _said([0.1, 0.2, 0.3])[0].startswith("Claim with importance wanda: holds here")
    assert "better in 3 and worse in 0 of 3 cells" in _said([0.1, 0.2, 0.3])[0]
    assert "reversed here: uniform is better" in _said([-0.1, -0.2, -0.3])[0]
    assert "cannot be told" in _said([-0.1, 0.1])[0]


def test_failed_cells_are_told_and_not_counted(found: Found) -> None:
    cell = dataclasses.replace(found.outcomes[0].cell, arm="wanda", calibration=OWN)
    more = Found([*found.outcomes, Outcome(cell, failure="GuideError: no")], found.references)
    assert document(_report(more))["rows"] == document(_report(found))["rows"]
    assert "wanda: 1 cells failed: GuideError: no" in page(_report(more))


# the command


def test_arms_that_are_not_there_are_left_out_by_name() -> None:
    odd = Arm("odd", {"no_such_setting": 1})
    assert "no_such_setting" in str(odd.missing())
    assert Arm("none", guide="", parameters={"no": 1}).missing() is not None
    arms, _ = chosen_arms((), extra=False)
    assert {"wanda", "activation", "delta"} <= {arm.name for arm in arms}
    assert not any(arm.extra for arm in arms)
    assert len({arm.name for arm in ARMS}) == len(ARMS)


def test_an_unknown_arm_is_refused_before_any_work() -> None:
    result = CliRunner().invoke(main, ["digits", "--only", "nonsense"])
    assert result.exit_code == 2 and "no arm 'nonsense'" in result.output
