"""Densities that fall out of one threshold over the whole model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mergewise.errors import EvidenceError
from mergewise.guides._base import Ask, Expert, Map
from mergewise.guides._densities import hold_mean
from mergewise.guides._measures._cells import Cell, map_of
from mergewise.guides._variants import SCORES, has_density


class Threshold:
    """By tensor, the share of an expert's elements whose score is among the greatest of all.

    Args:
        cells: whose tensors are compared.
    """

    def __init__(self, ask: Ask, cells: Sequence[Cell]) -> None:
        self._ask = ask
        self._sizes = {t: ask.stage.tensors[t].meta.elements for c in cells for t in c.tensors}
        if not self._sizes:
            raise EvidenceError(f"{ask.stage.stage.method} is to merge no matrix in a layer")
        self._shares: dict[float, list[dict[str, float]]] = {}

    def values(self, expert: Expert) -> dict[str, float]:
        """By tensor.

        Raises:
            EvidenceError: if the evidence describes none of them.
        """
        place = [one.index for one in self._ask.experts].index(expert.index)
        found = self._kept(self._target(place))[place]
        if not found:
            raise EvidenceError(
                f"the evidence of {expert.label} describes no matrix in a layer that "
                f"{self._ask.stage.stage.method} is to merge; was it collected on this model?"
            )
        found = self._bounded(found)
        # a density of zero would leave out what a method keeps at least
        return {name: max(share, 1 / self._sizes[name]) for name, share in found.items()}

    def _bounded(self, shares: dict[str, float]) -> dict[str, float]:
        """Cut to the bounds asked for; the mean stays."""
        low, high = self._ask.settings.density_min, self._ask.settings.density_max
        if (low, high) == (0, 1):
            return shares
        table = {name: {0: share} for name, share in shares.items()}
        sizes = {name: {0: float(self._sizes[name])} for name in shares}
        mean = self._mean(shares, list(shares))
        bounded = hold_mean(table, sizes, mean, low, high)
        return {name: row[0] for name, row in bounded.items()}

    def maps(self, expert: Expert, cells: Sequence[Cell]) -> list[Map]:
        """Of densities; a cell of several tensors shows their mean."""
        values = self.values(expert)
        known = {cell: [t for t in cell.tensors if t in values] for cell in cells}
        means = {cell: self._mean(values, own) for cell, own in known.items() if own}
        return [map_of(expert, "density", means)]

    def _mean(self, values: Mapping[str, float], tensors: Sequence[str]) -> float:
        sizes = [self._sizes[name] for name in tensors]
        return sum(values[n] * s for n, s in zip(tensors, sizes, strict=True)) / sum(sizes)

    def _target(self, place: int) -> float:
        """The density asked for, the recipe's for this expert, or the middle of the bounds."""
        settings = self._ask.settings
        low, high = settings.density_min, settings.density_max
        if settings.mean_density is not None:
            return float(settings.mean_density)
        if not has_density(self._ask.plan.recipe):
            return float((low + high) / 2)
        tensor = self._ask.stage.tensors[next(iter(self._sizes))]
        return float(min(high, max(low, tensor.values["density"][place])))

    def _kept(self, density: float) -> list[dict[str, float]]:
        if density not in self._shares:
            from mergewise.engine import kept_shares

            self._ask.tell("looking for one threshold over the model")
            self._shares[density] = kept_shares(
                self._ask.plan,
                SCORES[self._ask.settings.importance],
                density,
                only=self._sizes.keys(),
                evidence={e.label: list(e.evidence.values()) for e in self._ask.experts},
                progress=self._ask.progress,
            )
        return self._shares[density]
