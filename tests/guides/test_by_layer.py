"""Weights by layer as few conditions, and yet every tensor's own."""

import pytest

from mergewise.guides._by_layer import conditions

NAMES = [
    "model.embed.weight", "model.layers.0.a.weight", "model.layers.0.b.weight",
    "model.layers.1.a.weight", "model.layers.10.a.weight", "layers.0.a.weight", "norm.weight",
    "model.norm.weight",
]  # fmt: skip


def resolved(lines, name):
    """As a recipe reads conditions: the first that matches."""
    return next(line["value"] for line in lines if line.get("filter", "") in name)


@pytest.mark.parametrize(
    "weights",
    [
        {"model.layers.0.a.weight": 0.1, "model.layers.0.b.weight": 0.1},
        {n: i / 8 for i, n in enumerate(NAMES)},
        {"layers.0.a.weight": 0.1},
        {"norm.weight": 0.1},
        {"model.norm.weight": 0.1, "model.embed.weight": 1 / 3},
        {},
    ],
)
def test_every_tensor_gets_its_own(weights):
    lines = conditions(weights, 0.5, NAMES)
    for name in NAMES:
        assert resolved(lines, name) == pytest.approx(weights.get(name, 0.5), rel=1e-8)


def test_a_layer_is_one_line_in_the_layers_order():
    names = [f"m.layers.{i}.{part}.weight" for i in range(12) for part in "abc"]
    lines = conditions({n: int(n.split(".")[2]) / 10 for n in names}, 0.0, [*names, "head"])
    assert lines == [
        *({"filter": f"m.layers.{i}.", "value": i / 10} for i in range(12)), {"value": 0.0},
    ]  # fmt: skip
