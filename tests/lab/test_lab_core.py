"""The lab's parts by themselves: contenders, tuning, measures, orders, journal, training."""

from __future__ import annotations

import math
import resource
from functools import partial
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

from benchmarks.lab.__main__ import main
from benchmarks.lab._claims import CLAIMS, Claim
from benchmarks.lab._contenders import SUM, contenders, tuned_parameter
from benchmarks.lab._cost import _process_peak, measured
from benchmarks.lab._evidence import evidence_mark
from benchmarks.lab._journal import (
    _SOURCES,
    PACKAGE,
    Journal,
    code_mark,
    scoring_mark,
    sources,
    weights_mark,
)
from benchmarks.lab._merge import merge
from benchmarks.lab._orders import tried
from benchmarks.lab._progress import clock
from benchmarks.lab._results import (
    PRETRAINED,
    TUNED,
    Column,
    Measures,
    Results,
    Row,
    Run,
    Setting,
    spread,
)
from benchmarks.lab._table import markdown
from benchmarks.lab._train import Schedule, kept_folder, kept_state, shuffled, train
from benchmarks.lab._tune import choose
from benchmarks.lab._words import explained
from mergewise.errors import InterruptedMergeError
from mergewise.methods import all_methods

QUIET = Console(quiet=True)


def results(*rows: tuple[str, Setting, float, float], best: str = "max") -> Results:
    """Two tasks; base .2 and .4, experts .8 and .8; one seed."""
    columns = [Column("a", "accuracy", "max"), Column("b", "accuracy", best)]  # type: ignore[arg-type]
    made = Results("digits", "Digits", columns, [0])
    references = [(PRETRAINED, 0.2, 0.4), (TUNED, 0.8, 0.8)]
    for name, a, b in references:
        row = Row(name)
        row.add("reference", 0, Run({"a": a, "b": b}))
        made.rows.append(row)
    for name, setting, a, b in rows:
        found = made.row(name)
        if found is None:
            found = Row(name, method=name)
            made.rows.append(found)
        found.add(setting, 0, Run({"a": a, "b": b}, seconds=1.0, mebibytes=2.0))
    return made


def test_defaults_follow_the_documented_rule() -> None:
    by_name = {c.name: c for c in contenders(8, 0)[0]}
    ta, ties, linear = by_name["task_arithmetic"], by_name["ties keep .2"], by_name["linear"]
    assert ta.at(ta.default) == {"weight": 1.0, "lambda": SUM}  # it sums
    assert ties.at(ties.default) == {"weight": 1.0, "lambda": 1.0, "density": 0.2}  # it averages
    assert linear.at(linear.default) == {"weight": 1 / 8} and not linear.base
    assert {"multislerp", "multislerp (base)"} <= by_name.keys()


def test_the_tuned_scale_is_one_that_matters() -> None:
    methods = all_methods()
    assert tuned_parameter(methods["task_arithmetic"]) == "lambda"
    assert tuned_parameter(methods["slerp"]) == "t"
    assert tuned_parameter(methods["linear"]) is None  # its weights are divided by their sum
    assert tuned_parameter(methods["model_stock"]) is None


def test_two_experts_let_methods_for_two_take_part() -> None:
    assert "nuslerp" not in contenders(2, 0)[1]
    assert "nuslerp" in contenders(3, 0)[1]


def test_methods_that_need_evidence_are_named() -> None:
    chosen, left_out = contenders(3, 0)
    assert "needs fisher of every expert" in left_out["fisher"]
    assert "fisher" not in {c.method for c in chosen}
    chosen, left_out = contenders(3, 200)
    assert "fisher" not in left_out
    by_name = {c.name: c for c in chosen}
    assert (by_name["fisher"].data, by_name["fisher"].examples) == ("unlabelled", 200)
    assert by_name["regmean 16 .95"].examples == 16
    assert by_name["regmean 16 .95"].parameters == {"off_diagonal": 0.95}
    assert (by_name["ties keep .2"].data, by_name["ties keep .2"].examples) == ("none", 0)


def test_choose_takes_the_best_and_of_equals_the_nearest_the_default() -> None:
    choice = choose(0.3, (0.1, 0.2, 0.5), {0.1: 1.0, 0.2: 3.0, 0.5: 3.0}.get)
    assert choice is not None and (choice.value, choice.quality) == (0.2, 3.0)
    broken = choose(0.3, (0.1, 0.2), {0.1: math.nan, 0.2: None}.get)
    assert broken is None


def test_measures_by_hand() -> None:
    found = results(("m", "default", 0.5, 0.3))
    measures, scores = Measures(found), {"a": 0.5, "b": 0.3}
    assert measures.quality(scores, 0) == pytest.approx(0.4)
    assert measures.nais(scores, 0) == pytest.approx({"a": 0.5, "b": -0.25})
    assert measures.ratio(scores, 0) == pytest.approx((0.5 / 0.8 + 0.3 / 0.8) / 2)
    assert measures.worst(scores, 0) == 0.3
    assert measures.forgetting(scores, 0) == pytest.approx(0.05)
    assert measures.below(scores, 0) == 1


def test_unlike_metrics_are_not_averaged() -> None:
    found = results(("m", "default", 0.5, 0.6), best="min")
    measures = Measures(found)
    assert not found.one_metric
    assert measures.worst({"a": 0.5, "b": 0.6}, 0) is None
    # the second expert is worse than the base in a loss: it gives no scale
    assert measures.quality({"a": 0.5, "b": 0.6}, 0) == pytest.approx(0.5)


def test_spread_is_of_seeds() -> None:
    found = results()
    found.rows[0].add("reference", 1, Run({"a": 0.4, "b": 0.4}))
    value = spread(found, found.rows[0], "reference", Measures(found).quality)
    assert value is not None
    assert value.mean == pytest.approx(0.35)
    assert value.deviation == pytest.approx(0.05 * math.sqrt(2))


def test_orders_hold_fail_or_cannot_be_tried() -> None:
    found = results(("tsv_m", "default", 0.7, 0.7), ("tsv_m", "tuned", 0.75, 0.75),
                    ("linear", "default", 0.5, 0.5))  # fmt: skip

    def verdict(left: str, right: str, margin: float = 0.0) -> str:
        claim = Claim("x", (left,), (right,), "robust", "here", margin)
        return str(tried(found, [claim])[0])

    assert verdict("tsvm", "linear", 25) == "holds: +25.0 points, +25 wanted, 1 of 1 seeds"
    assert verdict("tsvm@default", "linear", 25).startswith("does not hold: +20.0 points")
    assert verdict("tsv_m@default", "tsv_m@tuned", -6).startswith("holds")
    assert verdict("tsv_m@default", "tsv_m@tuned", -4).startswith("does not hold")
    assert verdict("iso_c", "linear") == "cannot be tried (no iso_c)"
    assert verdict("fine-tuned", "merged").startswith("holds: +5.0")
    assert verdict("linear", "linear").startswith("does not hold")


def test_a_claim_is_tried_with_those_that_are_there() -> None:
    found = results(("tsv_m", "default", 0.7, 0.7), ("linear", "default", 0.5, 0.5))
    claim = Claim("x", ("tsv_m", "iso_c"), ("linear",), "robust", "here")
    assert str(tried(found, [claim])[0]).endswith("without iso_c")


def test_a_claim_counts_only_seeds_that_all_its_rows_have() -> None:
    found = results(("tsv_m", "default", 0.7, 0.7), ("iso_c", "default", 0.9, 0.9),
                    ("linear", "default", 0.5, 0.5))  # fmt: skip
    found.seeds = [0, 1]
    for name, score in (("iso_c", 0.9), ("linear", 0.5)):  # tsv_m has no second seed
        found.row(name).add("default", 1, Run({"a": score, "b": score}))  # type: ignore[union-attr]
    claim = Claim("x", ("tsv_m", "iso_c"), ("linear",), "robust", "here", 15.0)
    assert str(tried(found, [claim])[0]) == "holds: +20.0 points, +15 wanted, 1 of 1 seeds"


def test_equal_rows_meet_at_least_but_not_more() -> None:
    found = results(("tsv_m", "default", 0.7, 0.7), ("linear", "default", 0.7, 0.7))
    more = Claim("x", ("tsv_m",), ("linear",), "thin", "here")
    least = Claim("x", ("tsv_m",), ("linear",), "thin", "here", or_equal=True)
    assert [f.verdict for f in tried(found, [more, least])] == ["does not hold", "holds"]
    assert {c.text: c.or_equal for c in CLAIMS if "=" in c.text and not c.or_equal} == {}


def test_what_is_missing_is_named_once() -> None:
    claim = Claim("x", ("tsv_m@default",), ("tsv_m@tuned",), "robust", "here", -1.0)
    assert str(tried(results(), [claim])[0]) == "cannot be tried (no tsv_m)"


def test_claims_of_other_families_are_not_tried() -> None:
    claim = Claim("x", ("linear",), ("linear",), "published", "there", 0.0, ("vision",))
    assert tried(results(), [claim]) == []


def test_markdown_names_all_rows_and_what_is_left_out() -> None:
    found = results(("m", "default", 0.5, 0.3))
    found.left_out = {"slerp": "needs two models"}
    found.rows.append(Row("odd", method="odd", failure="does not work"))
    page = markdown(found)
    assert "| m | default | 50.0 | 30.0 | 40.0 |" in page
    assert "Not tried, needs two models: slerp." in page
    assert "Failed: odd: does not work" in page


def test_names_of_rows_are_explained_once() -> None:
    [line] = explained(["ties keep .2", "ties keep all", "regmean 16", "linear", "mats (base)"])
    for part in (
        "ties keep .2: `density` 0.2;", "ties keep all: as set by default;",
        "regmean 16: 16 examples, `off_diagonal` 1;", "(base): the base is given",
    ):  # fmt: skip
        assert line.count(part) == 1
    assert "dare" not in line and explained(["linear", "regmean"]) == []
    page = markdown(results(("ties keep .2", "default", 0.5, 0.3)))
    assert "\n* **method**: after the name, parameters: ties keep .2: `density` 0.2\n" in page


def test_journal_survives_a_line_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    first = Journal(path)
    first.put({"a": 1}, 1.5)
    path.write_bytes(path.read_bytes() + b'\n{"key": "half')
    second = Journal(path)
    assert second.get({"a": 1}) == 1.5
    second.put({"b": 2}, [1])
    third = Journal(path)
    assert (third.get({"a": 1}), third.get({"b": 2}), third.get({"c": 3})) == (1.5, [1], None)


def test_weights_mark_sees_every_bit() -> None:
    state = {"x": torch.zeros(3), "n": torch.tensor(0)}
    other = {**state, "x": torch.tensor([0.0, -0.0, 0.0])}
    assert weights_mark([state]) == weights_mark([dict(reversed(state.items()))])
    assert weights_mark([state]) != weights_mark([other])


def test_cost_sees_time_and_memory() -> None:
    total, cost = measured(lambda: torch.ones(8_000_000).sum().item())
    assert total == 8_000_000
    assert 0 < cost.seconds < 30
    assert 25 < cost.mebibytes < 200 or cost.how.startswith("growth")


@pytest.mark.parametrize(("system", "unit"), [("linux", 1024), ("darwin", 1)])
def test_the_processs_peak_is_in_the_systems_unit(
    system: str, unit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", system)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert _process_peak() == pytest.approx(peak * unit, rel=0.05)


def test_partial_results_are_not_published(tmp_path: Path) -> None:
    asked = ["digits", "--only", "linear", "--publish", "--lab", str(tmp_path)]
    answer = CliRunner().invoke(main, asked)
    assert answer.exit_code == 2 and "--only" in answer.output
    assert not list(tmp_path.iterdir())


def test_a_data_folder_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MERGEWISE_DATA", str(tmp_path / "gone"))
    answer = CliRunner().invoke(main, ["vision", "--lab", str(tmp_path / "lab")])
    assert answer.exit_code == 1 and "MERGEWISE_DATA is" in answer.output


def test_schedule_warms_up_and_falls() -> None:
    schedule = Schedule(steps=100, rate=1.0, warm_up=0.1, floor=0.1)
    shares = [schedule.at(step) for step in range(100)]
    assert shares[0] == pytest.approx(0.1) and shares[9] == pytest.approx(1.0)
    assert max(shares) <= 1.0 and shares[-1] == pytest.approx(0.1, abs=0.01)


def test_train_learns_and_repeats_itself() -> None:
    def once() -> tuple[float, torch.Tensor]:
        torch.manual_seed(0)
        module = torch.nn.Linear(3, 1)
        x = torch.randn(64, 3)
        y = x @ torch.tensor([[1.0], [2.0], [3.0]])

        def loss(model: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
            return (model(x[rows]) - y[rows]).square().mean()

        last = train(
            module, shuffled(64, 16, 0), loss, Schedule(200, 0.1), label="x", console=QUIET
        )
        assert not module.training
        return last, module.weight.detach()

    (loss, weight), (_, again) = once(), once()
    assert loss < 0.05
    assert torch.equal(weight, again)


def test_shuffled_gives_every_row_once_before_any_twice() -> None:
    source = shuffled(10, 4, seed=1)
    rows = torch.cat([next(source) for _ in range(5)])
    assert sorted(rows[:10].tolist()) == list(range(10))
    assert sorted(rows[10:].tolist()) == list(range(10))


def test_models_are_kept_until_their_fingerprint_changes(tmp_path: Path) -> None:
    made: list[str] = []

    def make() -> dict[str, torch.Tensor]:
        made.append("state")
        return {"x": torch.ones(2)}

    def fill(folder: Path) -> None:
        made.append("folder")
        (folder / "x").write_text("1")

    for mark in ("one", "one", "two"):
        assert torch.equal(kept_state(tmp_path / "x.safetensors", mark, make)["x"], torch.ones(2))
        assert (kept_folder(tmp_path / "x", mark, fill) / "x").read_text() == "1"
    assert made == ["state", "folder", "state", "folder"]
    assert not list(tmp_path.glob(".*"))


def test_durations_in_words() -> None:
    assert [clock(s) for s in (8, 200, 3900)] == ["8 s", "3 min 20 s", "1 h 5 min"]


def test_an_interrupted_merge_is_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*args: object, **more: object) -> None:
        raise InterruptedMergeError("interrupted")

    monkeypatch.setattr("benchmarks.lab._merge.merge_state_dicts", stopped)
    with pytest.raises(KeyboardInterrupt):
        merge([], "linear")


def test_marks_know_the_code_that_runs_models() -> None:
    live = PACKAGE / "evidence/models/_live.py"
    for mark in (partial(code_mark.__wrapped__, "ties"), scoring_mark.__wrapped__,
                 evidence_mark.__wrapped__):  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            before = mark()
            patch.setitem(_SOURCES, live, b"other code")
            assert mark() != before


def test_code_that_has_moved_is_noticed():
    assert sources("evidence/models/*.py", "methods/_*.py")
    with pytest.raises(FileNotFoundError, match=r"evidence/gone/\*\.py"):
        sources("evidence/gone/*.py")
