"""Measures of an evaluation by hand; what is refused; tables and figure."""

import io
import json
import math
import re
from xml.etree import ElementTree

import numpy
import pytest
from rich.console import Console

from mergewise.evidence._evaluation import Evaluation
from mergewise.evidence.evaluators import Failure, Score
from mergewise.report.evaluation import figure, measures, table


def answers(*predictions: int, labels: tuple[int, ...] = (0, 1, 2, 3)) -> Score:
    correct = [int(p == y) for p, y in zip(predictions, labels, strict=True)]
    outcomes = {"correct": correct, "prediction": list(predictions)}
    return Score({"accuracy": sum(correct) / len(correct)}, outcomes, len(correct))


def plain(value: float, metric: str = "accuracy") -> Score:
    return Score({metric: value}, {}, 10)


FAILED = Failure("TaskError", "it cannot")
MAX, MIN = ("accuracy", "max"), ("loss", "min")


def evaluation(scores, primary=None, **parts) -> Evaluation:
    tasks = list(next(iter(scores.values())))
    return Evaluation("test", scores, primary or dict.fromkeys(tasks, MAX), **parts)


@pytest.fixture
def four() -> Evaluation:
    """A base, two experts, a merge; tasks a and b, and c held out."""
    values = {
        "base": (0.4, 0.5, 0.6),
        "ea": (0.8, 0.4, 0.5),
        "eb": (0.3, 1.0, 0.5),
        "merged": (0.6, 0.9, 0.3),
    }
    scores = {m: dict(zip("abc", map(plain, row), strict=True)) for m, row in values.items()}
    return evaluation(
        scores, base="base", experts={"a": "ea", "b": "eb"}, held_out=frozenset({"c"})
    )


def test_means_shares_and_improvement_by_hand(four):
    found = measures(four)["models"]["merged"]
    assert found["mean"] == found["means"]["accuracy"] == pytest.approx(0.75)
    assert found["held_out"] == {"accuracy": pytest.approx(0.3)}
    assert found["worst"] == {"task": "a", "value": 0.6}
    assert found["normalised"]["by_task"] == pytest.approx({"a": 0.75, "b": 0.9})
    assert found["normalised"]["mean"] == found["normalised"]["median"] == pytest.approx(0.825)
    assert found["normalised"]["worst"] == {"task": "a", "value": pytest.approx(0.75)}
    # (.6-.4)/(.8-.4) and (.9-.5)/(1-.5)
    assert found["nai"]["by_task"] == pytest.approx({"a": 0.5, "b": 0.8})
    assert found["nai"]["worst"] == {"task": "a", "value": pytest.approx(0.5)}
    assert found["failed"] == []


def test_the_base_improves_by_nothing_and_an_expert_is_its_own_measure(four):
    models = measures(four)["models"]
    assert models["base"]["nai"]["mean"] == 0
    assert models["ea"]["normalised"]["by_task"]["a"] == 1
    assert models["ea"]["nai"]["by_task"] == pytest.approx({"a": 1.0, "b": -0.2})


def test_forgetting_counts_losses_against_the_base_on_all_tasks_and_no_gains(four):
    found = measures(four)["models"]
    assert found["merged"]["forgetting"]["by_task"] == pytest.approx({"a": 0, "b": 0, "c": 0.3})
    assert found["merged"]["forgetting"]["mean"] == pytest.approx(0.1)
    assert found["merged"]["forgetting"]["below_base"] == 1
    assert found["eb"]["forgetting"]["mean"] == pytest.approx((0.1 + 0.1) / 3)
    assert found["eb"]["forgetting"]["tasks"] == 3


def test_where_less_is_better_everything_is_turned_round():
    scores = {"base": {"t": plain(4.0, "loss")}, "e": {"t": plain(2.0, "loss")},
              "m": {"t": plain(2.5, "loss")}, "bad": {"t": plain(5.0, "loss")}}  # fmt: skip
    found = measures(evaluation(scores, {"t": MIN}, base="base", experts={"t": "e"}))["models"]
    assert found["m"]["normalised"]["mean"] == pytest.approx(0.8)
    assert found["m"]["nai"]["mean"] == pytest.approx(0.75)
    assert found["m"]["forgetting"]["mean"] == 0
    assert found["bad"]["forgetting"] == found["bad"]["forgetting"] | {"mean": 1.0, "below_base": 1}


def test_no_mean_is_made_over_unlike_metrics():
    scores = {"m": {"t": plain(0.5), "u": plain(0.7), "l": plain(3.0, "loss")}}
    made = measures(evaluation(scores, {"t": MAX, "u": MAX, "l": MIN}))
    found = made["models"]["m"]
    assert found["mean"] is None and found["worst"] is None
    assert found["means"] == {"accuracy": pytest.approx(0.6), "loss": 3.0}
    assert any("unlike metrics" in note and "accuracy, loss" in note for note in made["notes"])


def test_without_the_experts_score_normalised_values_are_refused(four):
    scores = {**four.scores, "ea": {**four.scores["ea"], "a": FAILED}}
    made = measures(evaluation(scores, base="base", experts=four.experts,
                               held_out=four.held_out))  # fmt: skip
    found = made["models"]["merged"]
    assert found["normalised"]["by_task"] == {"a": None, "b": pytest.approx(0.9)}
    assert found["normalised"]["mean"] is None and found["normalised"]["worst"] is None
    assert found["nai"]["mean"] is None
    assert found["mean"] == pytest.approx(0.75)
    assert "a: no normalised score, its expert ea has none" in made["notes"]


def test_an_expert_that_was_not_scored_at_all_is_missing_too(four):
    made = measures(evaluation(four.scores, experts={"a": "elsewhere", "b": "eb"}))
    assert made["models"]["merged"]["normalised"]["mean"] is None
    assert any("elsewhere" in note for note in made["notes"])
    # c is not held out here, and has no expert
    assert any(note.startswith("no expert for c") for note in made["notes"])


def test_a_failed_score_leaves_no_mean_that_would_look_better(four):
    scores = {**four.scores, "broken": {"a": FAILED, "b": plain(1.0), "c": plain(math.nan)}}
    parts = {"base": "base", "experts": four.experts, "held_out": four.held_out}
    found = measures(evaluation(scores, **parts))["models"]["broken"]
    assert found["failed"] == ["a"]
    for name in ("mean", "worst"):
        assert found[name] is None
    assert found["held_out"] == {"accuracy": None}
    assert found["normalised"]["by_task"] == {"a": None, "b": 1.0}
    assert found["normalised"]["mean"] is found["nai"]["mean"] is None
    assert found["forgetting"]["mean"] is None


@pytest.mark.parametrize(("base", "expert"), [(0.5, 0.5), (0.5, 0.4)])
def test_no_improvement_is_measured_by_an_expert_that_has_none(base, expert):
    scores = {"b": {"t": plain(base)}, "e": {"t": plain(expert)}, "m": {"t": plain(0.45)}}
    made = measures(evaluation(scores, base="b", experts={"t": "e"}))
    assert made["models"]["m"]["nai"]["mean"] is None
    assert "t: no NAI, its expert is no better than the base" in made["notes"]


def test_no_share_of_nothing():
    scores = {"e": {"t": plain(0.0)}, "m": {"t": plain(0.5)}}
    made = measures(evaluation(scores, experts={"t": "e"}))
    assert made["models"]["m"]["normalised"]["mean"] is None
    assert any("not positive" in note for note in made["notes"])
    # but a model that gets nothing right has a share: 0
    scores = {"e": {"t": plain(0.5)}, "m": {"t": plain(0.0)}}
    assert (
        measures(evaluation(scores, experts={"t": "e"}))["models"]["m"]["normalised"]["mean"] == 0
    )


def test_flips_and_agreement_by_hand():
    scores = {
        "base": {"t": answers(0, 0, 2, 0)},  # right, wrong, right, wrong
        "e": {"t": answers(0, 1, 2, 0)},
        "m": {"t": answers(0, 1, 0, 3)},  # right, right, wrong, right
    }
    found = measures(evaluation(scores, base="base", experts={"t": "e"}))["models"]["m"]
    assert found["negative_flips"]["base"]["mean"] == 0.25  # the third
    assert found["positive_flips"]["base"]["mean"] == 0.5  # second and fourth
    assert found["negative_flips"]["expert"]["by_task"] == {"t": 0.25}
    assert found["positive_flips"]["expert"]["mean"] == 0.25
    assert found["agreement"]["e"] == {"mean": 0.5, "by_task": {"t": 0.5}, "own": 0.5}


def test_agreement_is_over_all_tasks_and_over_the_experts_own():
    scores = {
        "e": {"t": answers(0, 1, 2, 3), "u": answers(3, 3, 3, 3)},
        "m": {"t": answers(0, 1, 2, 0), "u": answers(0, 0, 0, 0)},
    }
    found = measures(evaluation(scores, experts={"t": "e"}))["models"]["m"]
    assert found["agreement"]["e"]["own"] == 0.75
    assert found["agreement"]["e"]["mean"] == pytest.approx(0.375)


def test_what_has_no_outcomes_has_no_flips(four):
    found = measures(four)["models"]["merged"]
    assert found["negative_flips"] == {"base": None, "expert": None}
    assert found["agreement"] == {"ea": None, "eb": None}


def test_flips_have_no_mean_where_the_model_failed():
    scores = {"b": {"t": answers(0, 1, 2, 3), "u": answers(0, 1, 2, 3)},
              "m": {"t": answers(0, 1, 2, 0), "u": FAILED}}  # fmt: skip
    found = measures(evaluation(scores, base="b"))["models"]["m"]["negative_flips"]["base"]
    assert found == {"mean": None, "by_task": {"t": 0.25, "u": None}}


def binary(count: int, right: int) -> Score:
    correct = [1] * right + [0] * (count - right)
    return Score({"accuracy": right / count}, {"correct": correct}, count)


def test_bootstrap_intervals_have_the_width_that_theory_gives():
    scores = {"m": {"t": binary(400, 240), "u": binary(400, 240)}}
    found = measures(evaluation(scores), resamples=2000, seed=1)["models"]["m"]["intervals"]
    wide = 1.96 * math.sqrt(0.6 * 0.4 / 400)
    assert found["by_task"]["t"] == pytest.approx((0.6 - wide, 0.6 + wide), abs=0.008)
    low, high = found["mean"]
    assert low < 0.6 < high
    again = measures(evaluation(scores), resamples=2000, seed=1)["models"]["m"]["intervals"]
    assert again == found
    assert measures(evaluation(scores), resamples=2000, seed=2)["models"]["m"]["intervals"] != found


def test_intervals_of_shares_take_the_expert_as_fixed():
    scores = {"e": {"t": binary(400, 320)}, "m": {"t": binary(400, 240)}}
    found = measures(evaluation(scores, experts={"t": "e"}), resamples=500)["models"]["m"]
    low, high = found["intervals"]["mean"]
    assert found["intervals"]["normalised"] == pytest.approx((low / 0.8, high / 0.8))


def test_a_loss_over_tokens_is_drawn_with_the_examples_tokens_as_weights():
    losses, tokens = [1.0, 3.0, None] * 50, [30, 10, 0] * 50
    score = Score({"loss": 1.5}, {"loss": losses, "tokens": tokens}, 150)
    found = measures(evaluation({"m": {"t": score}}, {"t": MIN}), resamples=2000)
    low, high = found["models"]["m"]["intervals"]["mean"]
    # the error of a ratio: sqrt(n var(w (x - mean))) / sum(w)
    wide = 1.96 * math.sqrt(50 * (30 * 0.5) ** 2 + 50 * (10 * 1.5) ** 2) / (50 * 40)
    assert (low, high) == pytest.approx((1.5 - wide, 1.5 + wide), abs=0.02)


def test_one_example_has_no_interval():
    made = measures(evaluation({"m": {"t": answers(0, labels=(0,))}}), resamples=50)
    assert made["models"]["m"]["intervals"] == {"by_task": {}}
    assert made["notes"][-1] == "t: no interval, accuracy is no mean over two or more examples"


def test_tasks_have_draws_of_their_own():
    half = Score({"accuracy": 0.5}, {"correct": [0, 1] * 50}, 100)
    other = Score({"accuracy": 0.5}, {"correct": [1, 0] * 50}, 100)
    found = measures(evaluation({"m": {"a": half, "b": other}}), resamples=500)["models"]["m"]
    low, high = found["intervals"]["mean"]
    # with the same draws for both tasks the mean would be 0.5 every time
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(200), rel=0.2)


def test_the_figure_speaks_of_shares_only_where_there_are_some():
    svg = figure(evaluation({"m": {"t": plain(2.0, "loss")}}, {"t": MIN}), resamples=0)
    assert "less is better." in svg and "the share" not in svg


def test_a_metric_that_is_no_mean_of_outcomes_has_no_interval():
    score = Score({"loss": 2.0}, {"loss": [1.0, 2.0, 5.0]}, 3)
    made = measures(evaluation({"m": {"t": score}}, {"t": MIN}), resamples=50)
    assert made["models"]["m"]["intervals"] == {"by_task": {}}
    assert any("no interval" in note for note in made["notes"])


def test_measures_are_json(four):
    made = measures(four, resamples=10)
    assert json.loads(json.dumps(made, allow_nan=False)) is not None


def lines(found: Evaluation, width: int = 100) -> list[str]:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(*table(found, width), sep="\n")
    return console.export_text(styles=False).splitlines()


def test_the_table_shows_scores_failures_and_roles(four):
    scores = {**four.scores, "broken": {"a": FAILED, "b": plain(1.0), "c": plain(0.1)}}
    shown = lines(evaluation(scores, base="base", experts=four.experts, held_out=four.held_out))
    row = next(line for line in shown if line.startswith("merged"))
    assert row.split() == ["merged", "0.600", "0.900", "0.300"]
    assert next(line for line in shown if line.startswith("broken")).split()[1] == "failed"
    assert any(line.startswith("ea (expert)") for line in shown)
    assert any("held out" in line for line in shown)
    summary = [line.split() for line in shown if line.startswith("merged")][1]
    assert summary[:5] == ["merged", "0.750", "0.825", "0.750", "a"]


def test_notes_say_why_something_is_missing(four):
    shown = lines(evaluation(four.scores, base="base"))
    assert any(line == "– no normalised scores: no experts are given" for line in shown)
    assert next(line for line in shown if "mean" in line)


def styled(found: Evaluation) -> str:
    console = Console(
        width=100, force_terminal=True, color_system="standard", record=True, file=io.StringIO()
    )
    console.print(*table(found), sep="\n")
    return console.export_text(styles=True)


def test_the_best_merged_model_of_a_column_is_bold_not_the_expert(four):
    scores = {**four.scores, "other": {"a": plain(0.5), "b": plain(0.95), "c": plain(0.2)}}
    text = styled(evaluation(scores, base="base", experts=four.experts))
    bold = re.findall(r"\x1b\[1m *([\d.]+)", text)
    assert bold[:3] == ["0.600", "0.300", "0.950"]
    assert "0.800" not in bold and "1.000" not in bold


def test_where_less_is_better_the_least_is_bold():
    scores = {"m": {"t": plain(2.0, "loss")}, "n": {"t": plain(3.0, "loss")}}
    bold = re.findall(r"\x1b\[1m *([\d.]+)", styled(evaluation(scores, {"t": MIN})))
    assert set(bold) == {"2.000"}


@pytest.mark.parametrize("tasks", [1, 7, 20])
def test_tables_fit_their_width_and_show_every_task(tasks):
    names = [f"task_{i}_of_many" for i in range(tasks)]
    scores = {f"a model with a rather long name, {m}": {t: plain(0.123) for t in names}
              for m in range(3)}  # fmt: skip
    shown = lines(evaluation(scores))
    assert max(map(len, shown)) <= 100
    assert all(any(name in line for line in shown) for name in names)
    assert sum(line.count("0.123") for line in shown) >= 3 * tasks


def test_names_cannot_steer_the_terminal():
    shown = lines(evaluation({"m\x1b[2J": {"t\x07": plain(0.5)}}))
    assert not any("\x1b" in line or "\x07" in line for line in shown)


def drawn(svg: str) -> list[str]:
    nodes = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    return ["".join(node.itertext()) for node in nodes]


def test_the_figure_shows_every_score_and_colours_by_share_of_the_expert(four):
    svg = figure(four, resamples=0)
    words = drawn(svg)
    for row in four.scores.values():
        assert all(f"{score.metrics['accuracy']:.3f}" in words for score in row.values())
    assert {"base", "ea (expert)", "merged", "c (held out)"} <= set(words)
    colours = {hint: colour for colour, hint in
               re.findall(r'fill="(#\w+)"><title>(.*?)</title>', svg)}  # fmt: skip
    assert colours["eb (expert), b: 1.000"] == colours["ea (expert), a: 0.800"]  # both are 1
    assert colours["merged, c (held out): 0.300"] == "#ececec"


def test_the_figure_marks_failures_and_draws_intervals_where_it_can(four):
    scores = {"m": {"t": binary(100, 50), "u": binary(100, 70)},
              "n": {"t": FAILED, "u": binary(100, 20)}}  # fmt: skip
    svg = figure(evaluation(scores), resamples=200)
    assert "failed" in drawn(svg)
    assert svg.count("v8m0 -4H") == 1  # one error bar: n has no mean
    assert any(word.startswith("Bars: 95 % bootstrap") for word in drawn(svg))
    assert not any(word.startswith("Bars") for word in drawn(figure(four)))


def test_figures_of_many_models_with_hostile_names_are_well_formed():
    draw = numpy.random.default_rng(0)
    names = [*(f"model {i}" for i in range(19)), "<script>&\x00"]
    scores = {m: {f"t{i}": plain(float(draw.random())) for i in range(8)} for m in names}
    svg = figure(evaluation(scores))
    assert "<script>" not in svg
    assert len(drawn(svg)) > 160
