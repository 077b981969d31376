"""Expression graphs as C: each node is written once, however many paths lead to it."""

from __future__ import annotations

from mergewise._lazy import torch
from mergewise.engine._emit import emit
from mergewise.engine._trace import Expr


def test_shared_nodes_are_walked_once() -> None:
    x = Expr("input", (0,), "f")
    # three uses of the node before: 3^60 paths to the input
    for _ in range(60):
        x = torch.where(x <= -1.0, x + 1.0, x)
    source = emit("f", ["float32"], [(x, "float32")], {}, 0, 0)
    assert source.count("? ") == 60
