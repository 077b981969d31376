"""One statistic's view of the sums that all statistics of a run share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergewise.evidence.statistics._base import Sums

if TYPE_CHECKING:
    from torch import Tensor

    from mergewise.evidence.statistics._sums import StoredSums


class Scoped(Sums):
    """Adds under the name of a statistic.

    Attributes:
        store: where; set before the run begins.
        counts: by tensor, then unit.
    """

    def __init__(self, store: StoredSums | None, statistic: str) -> None:
        self.store, self.statistic = store, statistic
        self.counts: dict[str, dict[str, int]] = {}

    def add(self, tensor: str, name: str, value: Tensor) -> None:
        self._store().add(tensor, self._name(name), value)

    def count(self, tensor: str, amount: int, unit: str = "tokens") -> None:
        units = self.counts.setdefault(tensor, {})
        units[unit] = units.get(unit, 0) + int(amount)

    def held(self) -> list[tuple[str, str]]:
        """(tensor, sum) of everything this statistic added."""
        start = f"{self.statistic}."
        return [(t, n.removeprefix(start)) for t, n in self._store().held() if n.startswith(start)]

    def _name(self, name: str) -> str:
        return f"{self.statistic}.{name}"

    def _store(self) -> StoredSums:
        if self.store is None:
            raise RuntimeError("sums are used before the run has begun")
        return self.store
