"""Methods of singular vectors against the decompositions that their formulas need.

Run by bench.py. A merge's wall time less start-up is divided by the time that LAPACK's SVD in
float32 would take for as many matrices of the same shapes, as many at once as the merge has
workers, on one thread each (`decompositions.py`, run before and after). Each shape is decomposed
once a thread and multiplied by its number: the time of an SVD hardly depends on what is in the
matrix.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from models import tensors
from processes import Usage, measure
from rich.table import Table

HERE = Path(__file__).parent
WORKERS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
"""Of a merge by default, one thread each; as many decompositions run at once."""

Shape = tuple[int, int]


def _each(m: int, n: int, experts: int) -> list[Shape]:
    return [(m, n)] * experts


def _merged(m: int, n: int, experts: int) -> list[Shape]:
    return [(m, n)]


def _tsv(m: int, n: int, experts: int) -> list[Shape]:
    """Every expert's; then the bases side by side."""
    rank = max(1, min(m, n) // experts) * experts
    return [*_each(m, n, experts), (m, rank), (rank, n)]


def _iso_cts(m: int, n: int, experts: int) -> list[Shape]:
    """The sum's, every expert's outside of it, the bases side by side."""
    rank = min(m, n)
    return [(m, n), *_each(m, n, experts), (m, rank), (rank, n)]


def _knots(m: int, n: int, experts: int) -> list[Shape]:
    return [(m, experts * n)]


def _core_space(m: int, n: int, experts: int) -> list[Shape]:
    """The bases of both sides; TSV-M and its result made isotropic, in the core."""
    rows, columns = min(m, experts * n), min(n, experts * m)
    return [(m, experts * n), (experts * m, n), *_tsv(rows, columns, experts), (rows, columns)]


def _opcm(m: int, n: int, experts: int) -> list[Shape]:
    """Of the running sum, before each next model."""
    return [(m, n)] * (experts - 1)


def _closed(m: int, n: int, experts: int) -> list[Shape]:
    """The pseudo-inverse of what is [inputs, inputs]."""
    return [(n, n)]


def _optmerge(m: int, n: int, experts: int) -> list[Shape]:
    return [*_each(m, n, experts), *_closed(m, n, experts)]


def _rotate(m: int, n: int, experts: int) -> list[Shape]:
    """Procrustes, of the smaller side as QR makes possible; the paper's is of the inputs."""
    return [(min(m, n), min(m, n))]


NEEDED: dict[str, Callable[[int, int, int], list[Shape]]] = {
    "tsv_m": _tsv,
    "iso_c": _merged,
    "iso_cts": _iso_cts,
    "star": _each,
    "cart": _each,
    "subspace_boosting": _merged,
    "svc": _merged,
    "knots": _knots,
    "core_space": _core_space,
    "opcm": _opcm,
    "swudi": _closed,
    "aswudi": _closed,
    "optmerge": _optmerge,
    "rotate": _rotate,
}
"""By method: shapes decomposed for one matrix [m, n] of so many experts."""


def decomposed(size: str, method: str, experts: int) -> Counter[Shape]:
    """How many matrices of which shape a model's merge decomposes."""
    found: Counter[Shape] = Counter()
    for name, shape in tensors(size):
        if len(shape) == 2 and name.endswith("proj.weight"):
            found.update(NEEDED[method](*shape, experts))
    return found


def bare(shapes: Sequence[Shape]) -> dict[Shape, float]:
    """Seconds of one decomposition of each shape, of either orientation."""
    both = {_lying(shape): f"{shape[0]}x{shape[1]}" for shape in shapes}
    script = [sys.executable, str(HERE / "decompositions.py"), "--threads", str(WORKERS)]
    known = json.loads(measure([*script, *both.values()]).output)
    return {shape: known[both[_lying(shape)]] for shape in shapes}


def _lying(shape: Shape) -> Shape:
    return (min(shape), max(shape))


@dataclass
class MatrixRow:
    """One method at one size.

    Attributes:
        decompositions: how many matrices the formula decomposes.
        merge: seconds of the merge, start-up not included.
        bare: seconds of the decompositions.
        ratio: merge over bare; the median of paired runs.
        memory: peak resident bytes.
        planned: what the plan says of it.
        tensor: bytes in float32 of the largest tensor treated as a matrix, of all models.
    """

    size: str
    method: str
    experts: int
    decompositions: int
    merge: float
    bare: float
    ratio: float
    memory: int
    planned: int
    tensor: int


def row(
    size: str, method: str, experts: int, runs: int, merge: Callable[[], tuple[Usage, float, int]]
) -> MatrixRow:
    """Measure one method.

    Args:
        merge: runs it; gives its usage, the seconds of start-up and the planned bytes.
    """
    counts = decomposed(size, method, experts)
    merges, bares, ratios = [], [], []
    before = bare(list(counts))
    for _ in range(runs):
        usage, start_up, planned = merge()
        after = bare(list(counts))
        needed = sum(n * (before[s] + after[s]) / 2 for s, n in counts.items())
        merges.append(usage.wall - start_up)
        bares.append(needed)
        ratios.append(merges[-1] / needed)
        before = after
    largest = max(s[0] * s[1] for n, s in tensors(size) if n.endswith("proj.weight"))
    return MatrixRow(
        size, method, experts, sum(counts.values()), statistics.median(merges),
        statistics.median(bares), statistics.median(ratios), usage.memory, planned,
        4 * largest * (experts + 1),
    )  # fmt: skip


def table(rows: list[MatrixRow]) -> Table:
    shown = Table(title="methods of singular vectors against the bare decompositions they need")
    for name in (
        "size", "method", "experts", "SVDs", "merge / SVDs", "merge s", "SVDs s", "peak MB",
        "planned MB",
    ):  # fmt: skip
        shown.add_column(name, justify="left" if name in ("size", "method") else "right")
    for r in rows:
        shown.add_row(
            r.size, r.method, f"{r.experts}", f"{r.decompositions}", f"{r.ratio:.2f}",
            f"{r.merge:.0f}", f"{r.bare:.0f}", f"{r.memory / 1e6:.0f}", f"{r.planned / 1e6:.0f}",
        )  # fmt: skip
    return shown
