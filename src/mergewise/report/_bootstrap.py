"""How sure a mean over examples is: percentile intervals from resampled examples."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergewise.evidence.evaluators import Score

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SOURCES = ("correct", "loss")
_CLOSE = 1e-6


def resampled_means(
    score: Score, metric: str, resamples: int, seed: int, task: str
) -> NDArray[Any] | None:
    """The metric over `resamples` draws of the examples with replacement; None if it cannot be.

    A metric can be drawn again if it is the mean of an outcome, as accuracy is of ``correct``, or
    its mean weighted by ``tokens``, as the loss of a language model is, over two examples or more.
    Models that were scored on the same examples of a task get the same draws; tasks have draws of
    their own, since their examples have nothing to do with one another.
    """
    import numpy

    found = _outcome(score, metric)
    if found is None or len(found[0]) < 2:
        return None
    values, weights = (numpy.asarray(part, dtype=numpy.float64) for part in found)
    draw = numpy.random.default_rng((seed, zlib.crc32(task.encode()), len(values)))
    means = []
    for _ in range(resamples):
        rows = draw.integers(0, len(values), len(values))
        # no draw of a few short examples may be without any token
        means.append((values * weights)[rows].sum() / max(weights[rows].sum(), 1.0))
    return numpy.array(means)


def interval(means: NDArray[Any]) -> tuple[float, float]:
    """The central 95 %."""
    import numpy

    low, high = numpy.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def _outcome(score: Score, metric: str) -> tuple[Sequence[float], Sequence[float]] | None:
    """The outcome whose mean the metric is, and the weights of that mean."""
    outcomes: Mapping[str, Sequence[Any]] = score.outcomes
    for name in (metric, *_SOURCES):
        values = outcomes.get(name, ())
        for weights in ([1.0] * len(values), outcomes.get("tokens", ())):
            if len(weights) != len(values) or not sum(weights):
                continue
            # an example without a token has no loss, and no weight
            pairs = [(v, w) for v, w in zip(values, weights, strict=True) if w]
            if all(isinstance(v, int | float) and math.isfinite(v) for v, _ in pairs):
                mean = math.fsum(v * w for v, w in pairs) / math.fsum(w for _, w in pairs)
                if abs(mean - score.metrics[metric]) <= _CLOSE * max(1.0, abs(mean)):
                    return [v for v, _ in pairs], [w for _, w in pairs]
    return None
