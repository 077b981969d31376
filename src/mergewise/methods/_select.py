"""Which elements of a task vector are kept, and with what probability.

Rules that rank elements take any score of `_score`.

One class a rule; the task-arithmetic family (`_delta`) is these rules with different settings.
Nothing here branches on a float, so that every rule can be fused by the engine: a comparison
such as ``density > 0`` is used as the number 0 or 1 instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.methods._base import Inputs, Need
from mergewise.methods._params import Param, Settings
from mergewise.methods._score import MAGNITUDE, SCORE, element_score, score_needs

if TYPE_CHECKING:
    from torch import Tensor

GRANULARITY = Param(
    str,
    "tensor",
    "over what the elements are ranked: each tensor, each of its rows, or the whole model",
    choices=("tensor", "row", "model"),
    native=True,
)
# float32 arithmetic on ranks errs by less than this for rows of up to 100 000 elements
_SLACK = 0.01


def kept_count(density: float, n: int) -> int:
    """How many of `n` elements a density keeps: the floor, but at least one unless it is 0."""
    if density <= 0:
        return 0
    return n if density >= 1 else max(1, int(density * n))


class Everything:
    """No selection."""

    params: Mapping[str, Param] = {}
    random = False

    def problem(self, p: Settings) -> str | None:
        """Why the settings cannot go together, or None."""
        return None

    def needs(self, p: Settings) -> tuple[Need, ...]:
        """The statistics that the ranking reads of every expert."""
        return ()

    def scores(self, x: Inputs, s: Settings) -> list[Tensor]:
        """What elements are ranked by, for each expert."""
        return []

    def scale(self, p: Settings, described: bool) -> str:
        """What the scores are measured in; see `Method.scale`."""
        return ""

    def ranks(self, p: Settings, n: int) -> list[list[int]]:
        """The order statistics wanted of each score."""
        return []

    def ranked(self, p: Settings) -> bool:
        """Whether ranks within rows are wanted."""
        return False

    def mask(self, x: Inputs, s: Settings, i: int, delta: Tensor) -> Tensor:
        """Which elements of expert i's task vector are kept."""
        raise NotImplementedError

    def masks_suffice(self, s: Settings) -> bool:
        """Whether ranks serve the masks alone, which can then be made once."""
        return self.ranked(s)

    def kept(self, x: Inputs, s: Settings, i: int, delta: Tensor) -> Tensor:
        """`delta` with the elements that are not selected set to zero."""
        return delta


def _keep(delta: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, delta, torch.zeros_like(delta))


def _top_of_row(rank: Tensor, columns: int, density: Any) -> Tensor:
    """The floor(density·columns) largest of each row, at least one unless density is 0."""
    enough = rank >= columns - density * columns - _SLACK
    return enough | (rank >= columns - (density > 0) * 1.0)


class _Scored(Everything):
    """Elements have the scores of `_score`."""

    params: Mapping[str, Param] = {"score": SCORE}

    def needs(self, p: Settings) -> tuple[Need, ...]:
        return score_needs(p.score)

    def scores(self, x: Inputs, s: Settings) -> list[Tensor]:
        return [element_score(x, s, i, delta) for i, delta in enumerate(x.deltas)]

    def scale(self, p: Settings, described: bool) -> str:
        return str(p.score) if described else MAGNITUDE


class _ByScore(_Scored):
    def kept(self, x: Inputs, s: Settings, i: int, delta: Tensor) -> Tensor:
        return _keep(delta, x.masks[i] if x.masks else self.mask(x, s, i, delta))

    def ranked(self, p: Settings) -> bool:
        return bool(p.granularity == "row")

    def ranks(self, p: Settings, n: int) -> list[list[int]]:
        if self.ranked(p):
            return [[] for _ in p.density]
        return [self.wanted(p, i, n) for i in range(len(p.density))]

    def wanted(self, p: Settings, i: int, n: int) -> list[int]:
        """The order statistics wanted of expert i's scores."""
        raise NotImplementedError


class Largest(_ByScore):
    """The largest magnitudes (TIES), or the highest of another score."""

    params = {
        **_ByScore.params,
        "granularity": GRANULARITY,
        "ties_at_threshold": Param(
            str,
            "exact",
            "equal scores at the threshold: keep exactly the wanted number, or all of them",
            choices=("exact", "keep"),
            native=True,
        ),
    }

    def problem(self, p: Settings) -> str | None:
        if p.granularity == "row" and p.ties_at_threshold == "keep":
            return (
                "ties_at_threshold: keep needs thresholds, and granularity: row selects by rank; "
                "use granularity: tensor or model, or ties_at_threshold: exact"
            )
        return None

    def wanted(self, p: Settings, i: int, n: int) -> list[int]:
        return [kept_count(p.density[i], n)]

    def mask(self, x: Inputs, s: Settings, i: int, delta: Tensor) -> Tensor:
        if s.granularity == "row":
            return _top_of_row(x.ranks[i], x.columns, s.density[i])
        score = element_score(x, s, i, delta)
        if s.ties_at_threshold == "keep":
            return score >= s.thresholds[i][0].value
        return x.at_least(score, s.thresholds[i][0], i)


class Middle(_ByScore):
    """The largest magnitudes below the `gamma` share of outliers (Model Breadcrumbs).

    Outliers are those of the highest score, as what is kept is of high score.
    """

    params = {
        "gamma": Param(
            float, 0.01, "share of the largest changes to drop", per_model=True, ge=0, le=1
        ),
        **_ByScore.params,
        "granularity": GRANULARITY,
    }

    def wanted(self, p: Settings, i: int, n: int) -> list[int]:
        kept = kept_count(p.density[i], n)
        outliers = min(int(p.gamma[i] * n), n - kept)
        return [outliers, outliers + kept]

    def mask(self, x: Inputs, s: Settings, i: int, delta: Tensor) -> Tensor:
        if s.granularity == "row":
            return self._middle_of_row(x, s, i)
        score = element_score(x, s, i, delta)
        outlier = x.at_least(score, s.thresholds[i][0], i)
        return x.at_least(score, s.thresholds[i][1], i) & ~outlier

    def _middle_of_row(self, x: Inputs, s: Settings, i: int) -> Tensor:
        density, gamma, rank = s.density[i], s.gamma[i], x.ranks[i]
        room = 1.0 - density
        gamma = gamma - (gamma - room) * (gamma > room)
        outliers = x.columns - gamma * x.columns - _SLACK
        enough = rank >= outliers - density * x.columns
        # a row too short for its share keeps its largest element that is no outlier
        first = rank + (density > 0) * 1.0 >= outliers
        return (enough | first) & (rank < outliers)


class Chance(Everything):
    """Each element by an independent draw with probability `density` (DARE).

    With ``rescale_by: density`` every kept element is divided by its own probability, which
    leaves the expectation as it was; with ``l1`` the pipeline matches the L1 norm.
    """

    params = {
        "rescale_by": Param(
            str,
            "l1",
            "what rescale restores: the L1 norm of the tensor, or each element's expectation",
            choices=("l1", "density"),
            native=True,
        )
    }
    random = True

    def probability(self, x: Inputs, s: Settings, i: int) -> Any:
        """The chance to be kept: one number, or one for every element."""
        return s.density[i]

    def mask(self, x: Inputs, s: Settings, i: int, delta: Tensor) -> Tensor:
        return x.noise(i) < self.probability(x, s, i)

    def masks_suffice(self, s: Settings) -> bool:
        return self.ranked(s) and not (s.rescale and s.rescale_by == "density")

    def kept(self, x: Inputs, s: Settings, i: int, delta: Tensor) -> Tensor:
        if x.masks:
            return _keep(delta, x.masks[i])
        kept = _keep(delta, self.mask(x, s, i, delta))
        if s.rescale and s.rescale_by == "density":
            chance = self.probability(x, s, i)
            return kept / (chance + (chance == 0) * 1.0)
        return kept


class RankedChance(Chance, _Scored):
    """As `Chance`, more likely the higher the score within its row (DELLA's MagPrune)."""

    params = {
        "epsilon": Param(
            float,
            0.15,
            "half the spread of keep-probabilities within a row; no effect at density 0 or 1",
            per_model=True,
            ge=0,
        ),
        **_Scored.params,
        **Chance.params,
    }

    def problem(self, p: Settings) -> str | None:
        for density, epsilon in zip(p.density, p.epsilon, strict=True):
            if 0 < density < 1 and not (density - epsilon > 0 and density + epsilon < 1):
                return (
                    f"density {density:g} with epsilon {epsilon:g} gives keep-probabilities from "
                    f"{density - epsilon:g} to {density + epsilon:g}; they must lie between 0 and "
                    f"1: epsilon below {min(density, 1 - density):g} does"
                )
        return None

    def ranks(self, p: Settings, n: int) -> list[list[int]]:
        return [[] for _ in p.density]

    def ranked(self, p: Settings) -> bool:
        return True

    def probability(self, x: Inputs, s: Settings, i: int) -> Any:
        density = s.density[i]
        spread = s.epsilon[i] * ((density > 0) * 1.0) * ((density < 1) * 1.0)
        last = x.columns - 1
        # from -1 for the smallest of a row to 1 for the largest; 0 in rows of one element
        # times the reciprocal: CUDA divides by a number that way, and masks must not differ
        place = (2.0 * x.ranks[i] - last) * (1.0 / max(last, 1))
        return density + spread * place
