"""Model Tailor: which changes are kept, and what they are made to be."""

import pytest
import torch

from mergewise import merge_state_dicts
from mergewise.errors import MergewiseError
from mergewise.methods.model_tailor import tailored

GENERATOR = torch.Generator().manual_seed(3)
DELTA = torch.randn(5, 8, generator=GENERATOR)
INPUTS = torch.randn(40, 8, generator=GENERATOR) @ torch.randn(8, 8, generator=GENERATOR)
GRAM = INPUTS.T @ INPUTS / 40
TINY = 1e-9


def error(kept):
    """Summed over outputs, mean over tokens."""
    return float(((kept - DELTA) @ GRAM @ (kept - DELTA).T).diagonal().sum())


@pytest.mark.parametrize("density", [0.13, 0.25, 0.5])
def test_kept_changes_are_the_least_squares_fit(density):
    found = tailored(DELTA, GRAM, density, 0.5, TINY, compensate=True)
    assert ((found != 0).sum(1) == int(density * 8)).all()
    for row, wanted in zip(found, DELTA, strict=True):
        mask = row != 0
        fit = torch.linalg.lstsq(INPUTS[:, mask].double(), INPUTS.double() @ wanted.double())
        torch.testing.assert_close(row[mask], fit.solution.float(), rtol=1e-4, atol=1e-4)


def test_making_up_lowers_the_error():
    bare, fitted = (tailored(DELTA, GRAM, 0.5, 0.5, 0.01, c) for c in (False, True))
    assert torch.equal(bare[bare != 0], DELTA[bare != 0])
    assert error(fitted) < 0.8 * error(bare)


def test_salience_alone_keeps_the_largest():
    found = tailored(DELTA, GRAM, 0.25, 1.0, 0.01, compensate=False)
    assert torch.equal(found != 0, DELTA.abs() >= DELTA.abs().topk(2).values[:, 1:])


def test_sensitivity_alone_keeps_what_costs_most():
    """By hand: losing one of two changes, the other free, costs d^2 / [G^-1]_jj."""
    gram = torch.block_diag(torch.tensor([[1.0, 0.9], [0.9, 1.0]]), torch.tensor([[0.5]]))
    # [G^-1]: 1 / 0.19 for the first two, 2 for the third; costs 0.19, 0.19, 0.32
    delta = torch.tensor([[1.0, 1.0, 0.8]])
    found = tailored(delta, gram, 0.34, 0.0, TINY, compensate=False)
    assert found.tolist() == [[0.0, 0.0, pytest.approx(0.8)]]
    both = tailored(delta, gram, 0.67, 0.0, TINY, compensate=True)
    # the first of equals is kept, and does 0.9 of the other's work too
    assert both.tolist() == [[pytest.approx(1.9), 0.0, pytest.approx(0.8)]]


def test_what_a_change_costs_grows_with_its_square():
    """By hand, inputs apart: costs 4 * 1, 1 * 3^2 and 6.25 * 1; |d| / [G^-1]_jj orders else."""
    gram, delta = torch.diag(torch.tensor([4.0, 1.0, 6.25])), torch.tensor([[1.0, 3.0, 1.0]])
    for count, kept in ((1, [0.0, 3.0, 0.0]), (2, [0.0, 3.0, 1.0])):
        found = tailored(delta, gram, count / 3 + 0.01, 0.0, TINY, compensate=False)
        assert found.tolist() == [kept]


def test_everything_and_nothing():
    assert torch.equal(tailored(DELTA, GRAM, 1.0, 0.5, 0.01, compensate=True), DELTA)
    assert not tailored(DELTA, GRAM, 0.0, 0.5, 0.01, compensate=True).any()
    assert torch.equal(
        tailored(DELTA, GRAM * 0, 0.25, 0.5, 0.01, compensate=True) != 0,
        DELTA.abs() >= DELTA.abs().topk(2).values[:, 1:],
    )


def test_a_metric_that_is_none_is_refused():
    with pytest.raises(MergewiseError, match="not positive definite"):
        tailored(DELTA, GRAM - 100 * torch.eye(8), 0.25, 0.5, 0.01, compensate=True)


def test_all_of_one_expert_is_the_expert():
    base = {"w": torch.randn(5, 8), "b": torch.randn(5)}
    expert = {"w": base["w"] + DELTA, "b": base["b"] + 1}
    evidence = [{"input_gram": {"w": GRAM}}]
    whole = {"density": 1.0, "others": "expert"}
    merged = merge_state_dicts(
        [expert], "model_tailor", base=base, parameters=whole, evidence=evidence
    )
    torch.testing.assert_close(merged, expert)
    merged = merge_state_dicts([expert], "model_tailor", base=base, evidence=evidence)
    assert torch.equal(merged["b"], base["b"])
    kept = tailored(expert["w"] - base["w"], GRAM, 0.1, 0.5, 0.01, compensate=True)
    torch.testing.assert_close(merged["w"], base["w"] + kept)


def test_experts_are_tailored_apart():
    """Two experts give the sum of what each is alone."""
    base = {"w": torch.randn(5, 8)}
    experts = [{"w": base["w"] + DELTA}, {"w": base["w"] - 2 * DELTA.flip(0)}]
    evidence = [{"input_gram": {"w": GRAM}}, {"input_gram": {"w": 2 * GRAM.flip(0).flip(1)}}]
    given = {"density": [0.25, 0.5], "weight": [1.0, -0.5]}
    merged = merge_state_dicts(
        experts, "model_tailor", base=base, parameters=given, evidence=evidence
    )
    parts = [
        merge_state_dicts(
            [e], "model_tailor", base=base, evidence=[known], parameters={"density": d, "weight": w}
        )["w"] - base["w"]
        for e, known, d, w in zip(experts, evidence, (0.25, 0.5), (1.0, -0.5), strict=True)
    ]  # fmt: skip
    torch.testing.assert_close(merged["w"], base["w"] + sum(parts), rtol=1e-4, atol=1e-5)
