"""Metrics of classification, by hand and against plain loops."""

import math

import pytest
import torch

from mergewise.evidence.evaluators._class_metrics import calibration_error, classification


def test_metrics_of_three_examples_by_hand():
    p = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    metrics, outcomes = classification(p.log(), torch.tensor([0, 1, 2]), ["a", "b", "c"])
    assert outcomes["correct"] == [1, 0, 1]
    assert outcomes["prediction"] == [0, 0, 2]
    assert outcomes["loss"] == pytest.approx([-math.log(0.7), -math.log(0.3), -math.log(0.8)])
    assert outcomes["confidence"] == pytest.approx([0.7, 0.5, 0.8])
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["macro_accuracy"] == pytest.approx(2 / 3)
    assert metrics["nll"] == pytest.approx(-math.log(0.7 * 0.3 * 0.8) / 3)
    brier = (0.09 + 0.04 + 0.01) + (0.25 + 0.49 + 0.04) + (0.01 + 0.01 + 0.04)
    assert metrics["brier"] == pytest.approx(brier / 3)
    # three bins with one example each: |.7 - 1|, |.5 - 0|, |.8 - 1|
    assert metrics["ece"] == pytest.approx((0.3 + 0.5 + 0.2) / 3)
    assert [metrics[f"recall_{c}"] for c in "abc"] == [1.0, 0.0, 1.0]


def test_macro_accuracy_weighs_classes_not_examples_and_skips_absent_ones():
    logits = torch.eye(4)[[0, 0, 0, 0, 0]] * 5
    metrics, _ = classification(logits, torch.tensor([0, 0, 0, 0, 2]), None)
    assert metrics["accuracy"] == pytest.approx(0.8)
    assert metrics["macro_accuracy"] == pytest.approx(0.5)
    assert {name for name in metrics if name.startswith("recall")} == {"recall_0", "recall_2"}


def test_calibration_error_equals_a_loop_over_bins():
    draw = torch.Generator().manual_seed(0)
    confidence = torch.rand(500, generator=draw, dtype=torch.float64)
    confidence[:4] = torch.tensor([0.0, 1.0, 1 / 15, 2 / 15])
    correct = torch.rand(500, generator=draw) < confidence
    expected = 0.0
    for k in range(15):
        low = -1.0 if k == 0 else k / 15
        inside = (confidence > low) & (confidence <= (k + 1) / 15)
        if inside.any():
            gap = confidence[inside].mean() - correct[inside].double().mean()
            expected += float(gap.abs()) * float(inside.double().mean())
    assert calibration_error(confidence, correct) == pytest.approx(expected, rel=1e-9)


def test_a_sure_and_right_model_is_calibrated_and_a_sure_and_wrong_one_is_not():
    logits = torch.eye(2)[[0, 1]] * 100
    right, _ = classification(logits, torch.tensor([0, 1]), None)
    wrong, outcomes = classification(logits, torch.tensor([1, 0]), None)
    assert (right["ece"], right["brier"]) == pytest.approx((0, 0), abs=1e-12)
    assert (wrong["ece"], wrong["brier"]) == pytest.approx((1, 2))
    # 1 - exp(-100) is 1, yet the loss is exact
    assert outcomes["loss"] == pytest.approx([100, 100])
