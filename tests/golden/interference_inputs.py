"""The models behind tests/golden/interference.npz: two layers, three experts, a fixed seed."""

from __future__ import annotations

import hashlib

import numpy as np

SHAPES = {"up.weight": (20, 12), "up.bias": (20,), "down.weight": (6, 20), "down.bias": (6,)}
State = dict[str, np.ndarray]


def models() -> tuple[State, list[State]]:
    """A base and three experts of unequal strength, float32."""
    draw = np.random.default_rng(7)

    def normal(scale: float) -> State:
        return {
            name: (scale * draw.standard_normal(shape)).astype(np.float32)
            for name, shape in SHAPES.items()
        }

    base = normal(0.5)
    changes = [normal(0.02 * (i + 1)) for i in range(3)]
    return base, [{name: base[name] + d for name, d in change.items()} for change in changes]


def fingerprint() -> str:
    """Tells whether numpy still draws these models."""
    base, experts = models()
    parts = [state[name].tobytes() for state in (base, *experts) for name in sorted(state)]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]
