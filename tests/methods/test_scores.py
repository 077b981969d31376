"""Scores by hand: four elements a tensor, whichever method ranks them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mergewise import merge_state_dicts
from mergewise.errors import EvidenceError, MergewiseError

DELTA = [[1.0, -2.0], [3.0, -4.0]]
EVIDENCE = {
    "input_moments": {"w": torch.tensor([9.0, 0.25])},
    "fisher": {"w": torch.tensor([[16.0, 1.0], [0.1, 0.5]])},
}


def kept(
    deltas: list[Any], evidence: list[Any], score: str, method: str = "ties", **more: Any
) -> Tensor:
    """What is left of the first expert's change of a base of zeros."""
    values = [torch.tensor(d) if isinstance(d, list) else d for d in deltas]
    weight = [1.0] + [0.0] * (len(deltas) - 1)
    parameters = {"weight": weight, "density": 0.5, "normalize": False, "rescale": False}
    base = torch.zeros_like(values[0])
    return merge_state_dicts(
        [{"w": value} for value in values],
        method,
        base={"w": base},
        parameters=parameters | {"score": score} | more,
        evidence=evidence if score != "magnitude" else None,
    )["w"]


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        # |d| = 1 2 3 4
        ("magnitude", [[0, 0], [3, -4]]),
        # |d| sqrt(s) = 3 1 9 2
        ("activation", [[1, 0], [3, 0]]),
        # d^2 F = 16 4 0.9 8
        ("fisher", [[1, 0], [0, -4]]),
        # with one expert, a gain is what it is worth to that expert
        ("gain", [[1, 0], [0, -4]]),
        ("activation_gain", [[1, 0], [3, 0]]),
    ],
)
def test_four_elements_of_a_tensor(score: str, expected: list[list[float]]) -> None:
    assert kept([DELTA], [EVIDENCE], score).tolist() == expected


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ("magnitude", [[0, -2], [0, -4]]),
        # 3 1 | 9 2
        ("activation", [[1, 0], [3, 0]]),
        # 16 4 | 0.9 8
        ("fisher", [[1, 0], [0, -4]]),
    ],
)
def test_each_row_by_itself(score: str, expected: list[list[float]]) -> None:
    assert kept([DELTA], [EVIDENCE], score, granularity="row").tolist() == expected


@pytest.mark.parametrize(
    ("density", "first", "second"),
    [
        (0.25, [0, 2, 0, 0], [0, 2, 0, 0]),
        (0.5, [0, 2, 1, 0], [-1, 2, 0, 0]),
        (0.75, [1, 2, 1, 0], [-1, 2, 0, 0]),
        (1.0, [1, 2, 1, 3], [-1, 2, 0, -0.5]),
    ],
)
def test_gain_counts_what_the_other_task_loses(
    density: float, first: list[float], second: list[float]
) -> None:
    deltas = [[1.0, 2.0, 1.0, 3.0], [-1.0, 2.0, 0.0, -0.5]]
    fisher = [torch.ones(4), torch.tensor([4.0, 1.0, 0.0, 4.0])]
    # sum F d = -3 4 1 1 and sum F = 5 2 1 5, so that the gains are
    # first:  1 (-6 - 5) = -11,  2 (8 - 4) = 8,  1 (2 - 1) = 1,  3 (2 - 15) = -39
    # second: -1 (-6 + 5) = 1,   2 (8 - 4) = 8,  0,               -0.5 (2 + 2.5) = -2.25
    evidence = [{"fisher": {"w": f}} for f in fisher]
    assert kept(deltas, evidence, "gain", density=density).tolist() == first
    turned = kept(deltas[::-1], evidence[::-1], "gain", density=density).tolist()
    assert turned == second


def test_activation_gain_has_the_input_channels_of_every_expert() -> None:
    deltas = [[[1.0, 2.0], [1.0, 3.0]], [[-1.0, 2.0], [0.0, -0.5]]]
    squares = [torch.tensor([1.0, 1.0]), torch.tensor([4.0, 1.0])]
    # sum s d = -3 4 | 1 2.5 and sum s = 5 2 | 5 2: gains -11 8 | -3 -3
    evidence = [{"input_moments": {"w": s}} for s in squares]
    assert kept(deltas, evidence, "activation_gain", density=0.25).tolist() == [[0, 2], [0, 0]]
    # of elements that cost something, the one that costs least is kept first
    third = kept(deltas, evidence, "activation_gain", density=0.75).tolist()
    assert third == [[0, 2], [1, 3]]


def test_gains_vanish_nowhere_in_float32() -> None:
    delta = torch.tensor([1e-7, 2e-7, -3e-7, 4e-7])
    fisher = torch.tensor([4e-24, 4e-25, 1e-25, 1e-28])
    # d^2 F = 4e-38 1.6e-38 9e-39 1.6e-41, the last two denormal
    assert (kept([delta], [{"fisher": {"w": fisher}}], "gain") != 0).tolist() == [1, 1, 0, 0]
    assert (kept([delta], [{"fisher": {"w": fisher}}], "fisher") != 0).tolist() == [1, 1, 0, 0]


def test_breadcrumbs_drops_the_highest_scores_and_keeps_the_next() -> None:
    got = kept([DELTA], [EVIDENCE], "fisher", "breadcrumbs", density=0.25, gamma=0.25)
    assert got.tolist() == [[0, 0], [0, -4]]
    rows = kept([[[1.0, 2.0, 3.0, 4.0]]], [{"fisher": {"w": torch.tensor([[16.0, 1, 1, 1]])}}],
                "fisher", "breadcrumbs", density=0.5, gamma=0.25, granularity="row")  # fmt: skip
    # the two 16s: either may be the outlier
    assert rows.tolist() in ([[0, 0, 3, 4]], [[1, 0, 3, 0]])


@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_della_keeps_high_scores_more_often(method: str) -> None:
    delta = torch.tensor([[1.0, 2.0]]).repeat(500, 1)
    by_size = kept([delta], [{}], "magnitude", method, epsilon=0.45)
    evidence = {"input_moments": {"w": torch.tensor([9.0, 1.0])}}
    by_score = kept([delta], [evidence], "activation", method, epsilon=0.45)
    assert ((by_size != 0).sum(0) / 500).tolist() == pytest.approx([0.05, 0.95], abs=0.03)
    assert ((by_score != 0).sum(0) / 500).tolist() == pytest.approx([0.95, 0.05], abs=0.03)


def test_what_the_evidence_lacks_is_ranked_by_magnitude() -> None:
    models = [{"w": torch.tensor(DELTA), "bias": torch.tensor([1.0, -2.0, 3.0, -4.0])}]
    models[0]["norm"] = models[0]["bias"].clone()
    # what enters a norm is no input that its weight multiplies
    moments = {"w": EVIDENCE["input_moments"]["w"], "norm": torch.tensor([9.0, 0, 0, 0])}
    out = merge_state_dicts(
        models,
        "ties",
        base={name: torch.zeros_like(t) for name, t in models[0].items()},
        parameters={"weight": 1.0, "density": 0.5, "score": "activation"},
        evidence=[{"input_moments": moments}],
    )
    assert out["w"].tolist() == [[1, 0], [3, 0]]
    assert out["bias"].tolist() == out["norm"].tolist() == [0, 0, 3, -4]


def test_over_the_whole_model_tensors_without_evidence_have_a_threshold_of_their_own() -> None:
    model = {
        "a": torch.tensor([[1.0, -2.0], [3.0, -4.0]]),
        "b": torch.tensor([[1.0, 1.0], [1.0, 5.0]]),
        "bias": torch.tensor([100.0, 200.0, 300.0, 400.0]),
    }
    moments = {"a": torch.tensor([9.0, 0.25]), "b": torch.tensor([100.0, 1.0])}
    # scores 3 1 9 2 | 10 1 10 5; of these eight, four
    out = merge_state_dicts(
        [model],
        "ties",
        base={name: torch.zeros_like(t) for name, t in model.items()},
        parameters={"weight": 1.0, "density": 0.5, "score": "activation", "granularity": "model"},
        evidence=[{"input_moments": moments}],
    )
    assert out["a"].tolist() == [[0, 0], [3, 0]]
    assert out["b"].tolist() == [[1, 0], [1, 5]]
    assert out["bias"].tolist() == [0, 0, 300, 400]


def test_evidence_that_is_missing_or_odd() -> None:
    with pytest.raises(MergewiseError, match="ties needs fisher for `score: gain` of each of the"):
        kept([DELTA, DELTA], None, "gain")  # type: ignore[arg-type]
    with pytest.raises(MergewiseError, match=r"no input_moments.*needs for `score: activation`"):
        kept([DELTA], [{"fisher": EVIDENCE["fisher"]}], "activation")
    with pytest.raises(EvidenceError, match=r"shape \[3\], expected \[2\]"):
        kept([DELTA], [{"input_moments": {"w": torch.ones(3)}}], "activation")
    with pytest.raises(EvidenceError, match="input_moments of w holds numbers below zero"):
        kept([DELTA], [{"input_moments": {"w": torch.tensor([1.0, -1.0])}}], "activation")
    with pytest.raises(EvidenceError, match="NaN or infinity"):
        kept([DELTA], [{"input_moments": {"w": torch.tensor([1.0, float("nan")])}}], "activation")
    with pytest.raises(MergewiseError, match="one of magnitude, activation, fisher, gain"):
        kept([DELTA], [EVIDENCE], "size")
