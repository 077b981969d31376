"""How much each cell of an expert changed, and from which evidence that is known."""

from __future__ import annotations

from collections.abc import Sequence

from mergewise.checkpoint import Checkpoint
from mergewise.errors import EvidenceError
from mergewise.evidence import Evidence
from mergewise.guides._base import Ask, Expert
from mergewise.guides._measures._cells import Cell
from mergewise.guides._measures._importance import Importance

STATISTIC = {
    "wanda": "input_moments",
    "activation": "output_moments",
    "delta": "input_moments",
}


class Changes:
    """Changes of every expert; what is measured of the base on the same evidence, only once."""

    def __init__(self, ask: Ask, cells: Sequence[Cell]) -> None:
        self._ask = ask
        self._cells = cells
        self._kind = ask.settings.importance
        self._statistic = STATISTIC[self._kind]
        self._known: dict[object, dict[Cell, float]] = {}
        self._told = _Told(ask, cells)

    def of(self, expert: Expert) -> dict[Cell, float]:
        """By cell, for those that the evidence describes.

        Raises:
            EvidenceError: if it describes none, or was collected otherwise than is asked for.
        """
        found = self._of(expert)
        if not found:
            raise EvidenceError(
                f"the evidence of {expert.label} describes no matrix in a layer that "
                f"{self._ask.stage.stage.method} is to merge; was it collected on this model?"
            )
        return found

    def _of(self, expert: Expert) -> dict[Cell, float]:
        own = expert.evidence[self._statistic]
        if self._kind == "delta":
            return self._measure(own, expert.checkpoint, self._ask.foundation)
        mine = self._measure(own, expert.checkpoint)
        base = self._measure(expert.base[self._statistic], self._ask.foundation)
        return {cell: abs(mine[cell] - base[cell]) for cell in mine if cell in base}

    def _measure(
        self, evidence: Evidence, model: Checkpoint, minus: Checkpoint | None = None
    ) -> dict[Cell, float]:
        _check_propagation(evidence, self._statistic, self._ask)
        key = (evidence.path, model.path)
        if key not in self._known:
            weights = None if self._kind == "activation" else model
            one = Importance(self._statistic, evidence, weights, minus, self._told)
            self._known[key] = one.of(self._cells)
        return self._known[key]


def pruned_by(propagation: str, sparsity: float | None) -> float | None:
    """The option of the statistics that goes with a propagation."""
    return sparsity if propagation == "pruned" else None


def _check_propagation(evidence: Evidence, statistic: str, ask: Ask) -> None:
    """Activations of a whole model and those behind pruned layers do not compare."""
    wanted = pruned_by(ask.settings.propagation, ask.settings.sparsity)
    got = evidence.record.statistics[statistic].options.get("pruned")
    if got != wanted:
        words = [_words(share) for share in (got, wanted)]
        raise EvidenceError(
            f"{evidence.path}: {statistic} was collected {words[0]}, and lewis was asked for "
            f"evidence {words[1]}; collect it again, or change `propagation` or `sparsity`"
        )


def _words(pruned: float | None) -> str:
    if pruned is None:
        return "on the model as it is (propagation dense)"
    return f"behind layers pruned by {pruned:g} (propagation pruned)"


class _Told:
    """Adds up the bytes that were read, and passes them on."""

    def __init__(self, ask: Ask, cells: Sequence[Cell]) -> None:
        refs = (ask.foundation.tensors[tensor] for cell in cells for tensor in cell.tensors)
        self._total = sum(ref.nbytes for ref in refs) * (len(ask.experts) + 1)
        self._done = 0
        self._progress = ask.progress

    def __call__(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(min(self._done, self._total), self._total)
