"""The task vectors behind `subspaces.npz`: dense ones and products of factors, from a fixed seed.

Needs numpy alone; what made the outputs is described in benchmarks/subspace_reference/README.md.
"""

from __future__ import annotations

import numpy as np

ROWS, COLUMNS, EXPERTS = 12, 17, 3
RANKS = (2, 2, 2)
LAYERS = ("first", "second")


def dense() -> dict[str, list[np.ndarray]]:
    """For each layer, the experts' task vectors: a part they share, and one of their own."""
    draw = np.random.Generator(np.random.PCG64(2411))
    out = {}
    for scale, layer in zip((1.0, 0.3), LAYERS, strict=True):
        shared = draw.standard_normal((ROWS, COLUMNS))
        own = draw.standard_normal((EXPERTS, ROWS, COLUMNS))
        out[layer] = [(scale * (0.5 * shared + each)).astype(np.float32) for each in own]
    return out


def factors() -> list[tuple[np.ndarray, np.ndarray]]:
    """Each expert's B [rows, rank] and A [rank, columns]."""
    draw = np.random.Generator(np.random.PCG64(2509))
    sizes = [((ROWS, rank), (rank, COLUMNS)) for rank in RANKS]
    return [
        (
            draw.standard_normal(left).astype(np.float32),
            draw.standard_normal(right).astype(np.float32),
        )
        for left, right in sizes
    ]


def low_rank() -> list[np.ndarray]:
    """Their products."""
    return [(b.astype(np.float64) @ a).astype(np.float32) for b, a in factors()]
