"""The same results as single functions of the authors' code; benchmarks/function_reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mergewise import merge_state_dicts
from mergewise.methods import get_method

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
KEPT: dict[str, dict[str, list[float]]] = json.loads((GOLDEN / "single-functions.json").read_text())
RUNS: list[dict[str, Any]] = json.loads((GOLDEN / "fednova.json").read_text())
SHAPES = {"layer.weight": (6, 5), "layer.bias": (6,)}
EXPERTS = (1, 2, 3)
Model = dict[str, Tensor]


def draw(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def model(seed: int) -> Model:
    return {k: draw(seed * 10 + i, *shape) for i, (k, shape) in enumerate(SHAPES.items())}


def positive(seed: int, scale: float = 1.0) -> Model:
    return {k: v.square() * scale for k, v in model(seed).items()}


def gram(seed: int, size: int) -> Model:
    rows = draw(seed, 40, size)
    return {"layer.weight": rows.mT @ rows / 40}


def evidence(name: str, *parts: Model) -> list[dict[str, Model]]:
    return [{name: part} for part in parts]


def pruned() -> list[Model]:
    masks = {k: (draw(71 + i, *s) > 0).double() for i, (k, s) in enumerate(SHAPES.items())}
    return [{k: v * masks[k] for k, v in model(i).items()} for i in EXPERTS]


def multipliers() -> list[Model]:
    return [{k: v + 0.5 for k, v in positive(i).items()} for i in (81, 82, 83)]


GRAMS = [gram(i, 5) for i in (21, 22, 23)]
BOTH = [
    {"input_gram": one, "output_gradient_gram": other}
    for one, other in zip(GRAMS, [gram(i, 6) for i in (31, 32, 33)], strict=True)
]
FISHERS = {"evidence": evidence("fisher", *(positive(i) for i in (11, 12, 13)))}
CURVES = {
    "evidence": evidence("fisher", *(positive(i) for i in (41, 42, 43))),
    "base_evidence": {"fisher": positive(40)},
}
ADAM = {"evidence": evidence("adam", *(positive(i, 1e-3) for i in (51, 52, 53)))}
DRIVEN = {
    "experts": [model(1)],
    "base_evidence": {"input_moments": {"layer.weight": draw(61, 5).abs()}},
}
SHARES = {"weight": [0.2, 0.3, 0.5]}
SEARCH = {"init": "mean", "iterations": 500, "tolerance": 0.0}
MODEL = {"granularity": "model"}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "fisher": ("fisher", {**SHARES}, FISHERS),
    "fisher_plain": ("fisher", {**SHARES, "normalize": False}, FISHERS),
    "regmean": ("regmean", {"ridge": 0.0}, {"evidence": evidence("input_gram", *GRAMS)}),
    "regmean_full": (
        "regmean",
        {"ridge": 0.0, "off_diagonal": 1.0},
        {"evidence": evidence("input_gram", *GRAMS)},
    ),
    "mats_gram": (
        "mats",
        {**SEARCH, "metric": "gram"},
        {"evidence": evidence("input_gram", *GRAMS)},
    ),
    "mats_kfac": ("mats", SEARCH, {"evidence": BOTH}),
    "gradient_matching": (
        "gradient_matching",
        {"weight": 0.4, "scale": [1.0, 2.0, 3.0], "base_scale": 0.5, "delta": 0.01},
        CURVES,
    ),
    "gradient_matching_no_base": (
        "gradient_matching",
        {"weight": 1.0, "scale": [1.0, 2.0, 3.0], "base_scale": 0.0, "delta": 0.01},
        {"evidence": CURVES["evidence"]},
    ),
    "ota": ("ota", {}, ADAM),
    "ota_threshold": ("ota", {"threshold": 5e-4}, ADAM),
    "ota_threshold_mean": ("ota", {"threshold": 1e-3, "power": 1.0, "fallback": "mean"}, ADAM),
    "aim": ("aim", {"omega": 0.4}, DRIVEN),
    "aim_none": ("aim", {"omega": 0.0}, DRIVEN),
    # their masks are those above the 13th largest change, so one less
    "localize_and_stitch": ("localize_and_stitch", {"density": 12.5 / 36, "tensors": "all"}, {}),
    "lota": ("lota", {"weight": 0.5, "density": 0.25, "tensors": "all"}, {}),
    "sparse_soup": ("sparse_soup", SHARES, {"experts": pruned()}),
    # theirs keeps one element more than a quarter
    "masked_negation": (
        "breadcrumbs",
        {"weight": [1.0, -0.5], "density": [1.0, 10.5 / 36], "gamma": 0, **MODEL},
        {"experts": [model(2), model(1)]},
    ),
    "adamergex": ("adamergex", {"lambda": 0.8}, {"experts": multipliers()}),
    "chat_vector": (
        "task_arithmetic",
        {"weight": [1.0, 0.7]},
        {"experts": [model(2), model(1)]},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_agrees_to_five_digits(name: str) -> None:
    method, parameters, more = CASES[name]
    given = dict(more)
    experts = given.pop("experts", [model(i) for i in EXPERTS])
    base = None if get_method(method).base == "ignored" else model(0)
    got = merge_state_dicts(experts, method, base=base, parameters=parameters, **given)
    for key, shape in SHAPES.items():
        expected = torch.tensor(KEPT[name][key], dtype=torch.float64).reshape(shape)
        torch.testing.assert_close(got[key], expected, rtol=1e-5, atol=1e-5)


def test_every_kept_case_is_compared() -> None:
    assert set(KEPT) == set(CASES)


@pytest.mark.parametrize("i", range(len(RUNS)))
def test_fednova_agrees_with_its_optimizer(i: int) -> None:
    run = RUNS[i]
    tensors = {key: torch.tensor(run[key], dtype=torch.float64) for key in ("base", "out")}
    got = merge_state_dicts(
        [{"w": torch.tensor(expert, dtype=torch.float64)} for expert in run["experts"]],
        "fednova",
        base={"w": tensors["base"]},
        parameters={key: run[key] for key in ("steps", "weight", "momentum", "proximal")},
    )["w"]
    torch.testing.assert_close(got, tensors["out"], rtol=0, atol=1e-6)
    assert (tensors["out"] - tensors["base"]).abs().max() > 0.1
