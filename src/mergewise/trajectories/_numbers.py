"""Weights of a run's checkpoints, as plain arithmetic on lists."""

from __future__ import annotations

from collections.abc import Sequence

from mergewise.errors import TrajectoryError


def ema(count: int, decay: float, corrected: bool = False, warm: bool = False) -> list[float]:
    """Weights of an exponential moving average over `count` checkpoints, which sum to 1.

    The average starts as the first checkpoint, and ``m = d m + (1 - d) x`` with every other. If
    `corrected`, it starts as zero, and what is missing to 1 is divided out: ``m / (1 - d^n)``. If
    `warm`, d is at most ``(1 + t) / (10 + t)`` at update t = 1, 2, ...
    """
    shares: list[float] = []
    for t in range(count):
        first = t == 0 and not corrected
        update = t + 1 if corrected else t
        d = min(decay, (1 + update) / (10 + update)) if warm else decay
        d = 0.0 if first else d
        shares = [*(d * share for share in shares), 1.0 - d]
    return [share / sum(shares) for share in shares]


def swad(losses: Sequence[float], converge: int, tolerate: int, ratio: float) -> tuple[int, int]:
    """The first and the last checkpoint that SWAD averages.

    The window starts at the first checkpoint whose loss is the least of it and the next ones,
    `converge` in all. It ends before the first `tolerate` checkpoints in a row (after its start)
    that are all worse than ``1 + ratio`` times those losses' mean, or with the last checkpoint.

    Raises:
        TrajectoryError: if no loss is the least of so many.
    """
    for start in range(len(losses) - converge + 1):
        valley = losses[start : start + converge]
        if losses[start] == min(valley):
            limit = (1 + ratio) * sum(valley) / converge
            return start, _end(losses, start, tolerate, limit)
    raise TrajectoryError(
        f"swad: the losses {', '.join(f'{loss:.4g}' for loss in losses[-6:])} at the end still "
        f"fall: none is the least of {converge} in a row. Train on, or set fewer (--converge)"
    )


def _end(losses: Sequence[float], start: int, tolerate: int, limit: float) -> int:
    for first in range(start + 1, len(losses) - tolerate + 1):
        if min(losses[first : first + tolerate]) > limit:
            return first - 1
    return len(losses) - 1
