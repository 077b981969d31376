"""How sure a mean over examples is: percentile intervals from resampled examples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergewise.evidence.evaluators import Score

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SOURCES = ("correct", "loss")
_CLOSE = 1e-6


def resampled_means(score: Score, metric: str, resamples: int, seed: int) -> NDArray[Any] | None:
    """The metric over `resamples` draws of the examples with replacement; None if it cannot be.

    A metric can be drawn again if it is the plain mean of an outcome, as accuracy is of
    ``correct``. Models that were scored on the same examples get the same draws.
    """
    import numpy

    values = _outcome(score, metric)
    if values is None:
        return None
    data = numpy.asarray(values, dtype=numpy.float64)
    draw = numpy.random.default_rng((seed, len(data)))
    count = len(data)
    return numpy.array([data[draw.integers(0, count, count)].mean() for _ in range(resamples)])


def interval(means: NDArray[Any]) -> tuple[float, float]:
    """The central 95 %."""
    import numpy

    low, high = numpy.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def _outcome(score: Score, metric: str) -> Sequence[float] | None:
    """The outcome whose mean the metric is."""
    outcomes: Mapping[str, Sequence[Any]] = score.outcomes
    for name in (metric, *_SOURCES):
        values = outcomes.get(name, ())
        if values and all(isinstance(v, int | float) and math.isfinite(v) for v in values):
            mean = math.fsum(values) / len(values)
            if abs(mean - score.metrics[metric]) <= _CLOSE * max(1.0, abs(mean)):
                return values
    return None
