"""Methods that read statistics: hand-computed examples, and what they minimise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mergewise import merge_state_dicts
from mergewise.errors import EvidenceError, MergewiseError, NonFiniteError


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fisher(values: list[Tensor], information: list[Tensor], **parameters: Any) -> Tensor:
    return merge_state_dicts(
        [{"w": value} for value in values],
        "fisher",
        parameters={"normalize": False, **parameters},
        evidence=[{"fisher": {"w": f}} for f in information],
    )["w"]


def regmean(values: list[Tensor], grams: list[Tensor], **parameters: Any) -> Tensor:
    return merge_state_dicts(
        [{"w": value} for value in values],
        "regmean",
        parameters={"ridge": 0.0, **parameters},
        evidence=[{"input_gram": {"w": gram}} for gram in grams],
    )["w"]


@pytest.mark.parametrize(
    ("information", "weight", "expected"),
    [
        ([4.0, 1.0], [0.5, 0.5], 1.4),
        ([0.9, 0.1], [1.0, 1.0], 1.2),
        ([2.0, 2.0], [1.0, 1.0], 2.0),
        ([2.0, 2.0], [1.0, 3.0], 2.5),
        ([4.0, 1.0], [1.0, 0.0], 1.0),
        ([0.0, 0.0], [1.0, 1.0], 2.0),
    ],
)
def test_fisher_by_hand(information: list[float], weight: list[float], expected: float) -> None:
    values = [torch.tensor([1.0]), torch.tensor([3.0])]
    got = fisher(values, [torch.tensor([f]) for f in information], weight=weight)
    assert got.item() == pytest.approx(expected, rel=1e-6)


def test_normalised_fisher_does_not_depend_on_its_scale() -> None:
    values = [draw(0, 6, 5), draw(1, 6, 5)]
    information = [draw(2, 6, 5).square(), draw(3, 6, 5).square()]
    one = fisher(values, information, normalize=True)
    other = fisher(values, [information[0] * 1e-9, information[1] * 50], normalize=True)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(one, fisher(values, information))


def test_fisher_is_normalised_over_the_whole_model() -> None:
    models = [{"a": torch.tensor([1.0]), "b": torch.zeros(1)},
              {"a": torch.tensor([3.0]), "b": torch.zeros(1)}]  # fmt: skip
    evidence = [
        {"fisher": {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}},
        {"fisher": {"a": torch.tensor([1.0]), "b": torch.tensor([0.0])}},
    ]
    # of the norms 5 and 1: (3/5 * 1 + 1 * 3) / (3/5 + 1)
    merged = merge_state_dicts(models, "fisher", evidence=evidence)
    assert merged["a"].item() == pytest.approx(2.25)


def test_a_floor_for_the_first_model_lets_it_win_where_nobody_knows() -> None:
    values = [torch.tensor([1.0, 1.0]), torch.tensor([3.0, 3.0])]
    information = [torch.tensor([0.0, 2.0]), torch.tensor([0.0, 2.0])]
    got = fisher(values, information, floor=1e-6, favor_first=True)
    assert got.tolist() == [1.0, 2.0]
    assert fisher(values, information, floor=1e-6).tolist() == [2.0, 2.0]


def test_regmean_by_hand() -> None:
    # inputs twice as large count four times: (4 * 1 + 1 * 6) / 5
    got = regmean([torch.tensor([[1.0]]), torch.tensor([[6.0]])],
                  [torch.tensor([[4.0]]), torch.tensor([[1.0]])])  # fmt: skip
    assert got.item() == pytest.approx(2.0)


def test_information_at_the_end_of_what_floats_hold() -> None:
    """Squares of the gradients of tokens that are never likely: shares, not products, count."""
    values = [torch.tensor([0.01]), torch.tensor([0.03])]
    got = fisher(values, [torch.tensor([1e-44]), torch.tensor([1e-44])])
    assert got.item() == pytest.approx(0.02)


def test_weights_count_inputs_in_regmean() -> None:
    # (1/4 * 4 * 1 + 3 * 1 * 6) / (1/4 * 4 + 3)
    values, grams = [torch.tensor([[1.0]]), torch.tensor([[6.0]])], [4.0, 1.0]
    given = [torch.tensor([[gram]]) for gram in grams]
    assert regmean(values, given, weight=[0.25, 3.0]).item() == pytest.approx(19 / 4)


def test_weights_are_of_squared_errors_in_regmean() -> None:
    inputs, values = [draw(i, 40, 6) for i in range(2)], [draw(10 + i, 4, 6) for i in range(2)]
    grams = [x.T @ x / 40 for x in inputs]
    got = regmean(values, grams, off_diagonal=1.0, weight=[4.0, 0.25])
    scaled = [inputs[0] * 2, inputs[1] / 2]
    outputs = torch.cat([x @ w.T for x, w in zip(scaled, values, strict=True)]).double()
    best = torch.linalg.lstsq(torch.cat(scaled).double(), outputs).solution.T
    torch.testing.assert_close(got.double(), best, rtol=1e-4, atol=1e-5)


def test_the_ridge_is_a_share_of_the_diagonal() -> None:
    # metrics diag(30, 10), ridge 0.1 * 20 = 2, pull from the mean 2 towards 1: 10 - 20 = -10 / 30
    values = [torch.tensor([[1.0, 1.0]]), torch.tensor([[3.0, 3.0]])]
    grams = [torch.diag(torch.tensor(g)) for g in ([20.0, 5.0], [10.0, 5.0])]
    got = regmean(values, grams, ridge=0.1)
    torch.testing.assert_close(got, torch.tensor([[2 - 10 / 32, 2.0]]))


def test_regmean_is_the_least_squares_solution() -> None:
    inputs = [draw(i, 40, 6) for i in range(3)]
    values = [draw(10 + i, 4, 6) for i in range(3)]
    got = regmean(values, [x.T @ x / 40 for x in inputs], off_diagonal=1.0)
    outputs = torch.cat([x @ w.T for x, w in zip(inputs, values, strict=True)]).double()
    best = torch.linalg.lstsq(torch.cat(inputs).double(), outputs).solution.T
    torch.testing.assert_close(got.double(), best, rtol=1e-4, atol=1e-5)


def test_regmean_of_equal_grams_is_the_mean() -> None:
    values = [draw(0, 4, 6), draw(1, 4, 6)]
    rows = draw(2, 30, 6)
    mean = (values[0] + values[1]) / 2
    for gram in (torch.eye(6), rows.T @ rows):
        torch.testing.assert_close(regmean(values, [gram, gram]), mean, rtol=1e-5, atol=1e-6)


def test_regmean_without_off_diagonals_weighs_every_input_by_itself() -> None:
    values = [draw(0, 4, 6), draw(1, 4, 6)]
    grams = [(x := draw(2 + i, 30, 6)).T @ x for i in range(2)]
    got = regmean(values, grams, off_diagonal=0.0)
    a, b = (gram.diagonal() for gram in grams)
    torch.testing.assert_close(got, (a * values[0] + b * values[1]) / (a + b))


def test_directions_without_inputs_stay_at_the_mean() -> None:
    values = [draw(0, 3, 4), draw(1, 3, 4)]
    levels = ([1.0, 2.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0])
    grams = [torch.diag(torch.tensor(level)) for level in levels]
    got = regmean(values, grams, ridge=1e-6)
    mean = (values[0] + values[1]) / 2
    torch.testing.assert_close(got[:, 2:], mean[:, 2:])
    torch.testing.assert_close(got[:, 1], values[0][:, 1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got[:, 0], (values[0] + 3 * values[1])[:, 0] / 4)


def test_one_expert_is_itself() -> None:
    value, rows = draw(0, 4, 6), draw(1, 30, 6)
    torch.testing.assert_close(regmean([value], [rows.T @ rows]), value)
    torch.testing.assert_close(fisher([value], [value.square()]), value)


def test_convolutions_are_solved_over_their_patches() -> None:
    values = [draw(0, 4, 3, 2, 2), draw(1, 4, 3, 2, 2)]
    grams = [(x := draw(2 + i, 50, 12)).T @ x for i in range(2)]
    flat = regmean([value.reshape(4, 12) for value in values], grams)
    assert torch.equal(regmean(values, grams), flat.reshape(4, 3, 2, 2))


def test_weights_stored_inputs_by_outputs() -> None:
    values = [draw(i, 6, 4) for i in range(2)]
    grams = [(x := draw(2 + i, 50, 6)).T @ x for i in range(2)]
    straight = regmean([value.T.contiguous() for value in values], grams)
    torch.testing.assert_close(regmean(values, grams), straight.T)


@pytest.mark.parametrize("shape", [(41, 5), (41, 2, 3), (41, 2, 2, 2)])
def test_blocks_of_rows_are_solved_as_the_whole(shape: tuple[int, ...]) -> None:
    values = [draw(i, *shape) for i in range(3)]
    width = values[0][0].numel()
    evidence = [{"input_gram": {"w": (x := draw(5 + i, 50, width)).T @ x}} for i in range(3)]

    def merged(block: int | None) -> Tensor:
        models = [{"w": value} for value in values]
        return merge_state_dicts(models, "regmean", evidence=evidence, block_size=block)["w"]

    torch.testing.assert_close(merged(1), merged(None))


def test_tensors_without_evidence_are_averaged() -> None:
    models = [{"w": draw(i, 3, 3), "b": draw(5 + i, 3)} for i in range(2)]
    evidence = [{"input_gram": {"w": torch.eye(3)}}] * 2
    merged = merge_state_dicts(models, "regmean", evidence=evidence, parameters={"weight": [1, 3]})
    torch.testing.assert_close(merged["b"], (models[0]["b"] + 3 * models[1]["b"]) / 4)


def test_evidence_that_does_not_fit_is_refused() -> None:
    value = draw(0, 4, 6)
    with pytest.raises(EvidenceError, match=r"shape \[5, 5\], expected \[6, 6\]"):
        regmean([value, value], [torch.eye(5), torch.eye(5)])
    with pytest.raises(EvidenceError, match="NaN or infinity"):
        fisher([value, value], [value * float("nan"), value])
    with pytest.raises(MergewiseError, match="regmean needs input_gram of each of the 2 models"):
        merge_state_dicts([{"w": value}] * 2, "regmean")
    with pytest.raises(MergewiseError, match=r"evidence\[1\] has no fisher"):
        merge_state_dicts(
            [{"w": value}] * 2, "fisher", evidence=[{"fisher": {"w": value}}, {"input_gram": {}}]
        )
    with pytest.raises(MergewiseError, match=r"tensor w: .*not positive definite; raise `ridge`"):
        regmean([value, value], [-torch.eye(6) + 2 * torch.ones(6, 6)] * 2, off_diagonal=1.0)
    with pytest.raises(NonFiniteError):
        regmean([value / 0, value], [torch.eye(6)] * 2)
