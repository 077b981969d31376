"""How much a component of a layer matters to a model on data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.checkpoint import Checkpoint, FileReader
from mergewise.errors import EvidenceError
from mergewise.evidence import Evidence
from mergewise.guides._measures._cells import Cell
from mergewise.guides._measures._weights import driven_square

if TYPE_CHECKING:
    from torch import Tensor

_SUM = "sum_squares"


class Importance:
    """Importances of the cells of one model: roots of means over tokens.

    The matrices of a mixture's experts count as one matrix: squares add up over experts, each
    with the tokens that reached it.

    Args:
        model: whose weights count; None if outputs alone do.
        minus: a model whose weights are subtracted first.
        told: called with the bytes of weights read.
    """

    def __init__(
        self,
        statistic: str,
        evidence: Evidence,
        model: Checkpoint | None = None,
        minus: Checkpoint | None = None,
        told: Callable[[int], None] | None = None,
    ) -> None:
        self.statistic = statistic
        self.evidence = evidence
        self.model = model
        self.minus = minus
        self._told = told

    def of(self, cells: Sequence[Cell]) -> dict[Cell, float]:
        """The importance of every cell that the evidence describes.

        Raises:
            EvidenceError: if the evidence does not fit the model.
            NonFiniteError: if a weight is NaN or infinite.
            CheckpointError: if a file changed or is damaged.
        """
        files = {} if self.model is None else dict(self.model.stamps)
        files |= {} if self.minus is None else self.minus.stamps
        with FileReader(files) as reader:
            found = {cell: self._cell(cell, reader) for cell in cells}
        return {cell: value for cell, value in found.items() if value is not None}

    def _cell(self, cell: Cell, reader: FileReader) -> float | None:
        known = [t for t in cell.tensors if (self.statistic, t) in self.evidence.entries]
        tokens = [self._tokens(tensor) for tensor in known]
        if not sum(tokens):
            return None
        return math.sqrt(sum(self._square(tensor, reader) for tensor in known) / sum(tokens))

    def _tokens(self, tensor: str) -> int:
        return self.evidence.counts(self.statistic, tensor).get("tokens", 0)

    def _square(self, tensor: str, reader: FileReader) -> float:
        """Summed over tokens: the squared norm of outputs, or of driven weights."""
        squares = self._sum(tensor)
        if self.model is None:
            return float(squares.sum())
        ref = self.model.tensors[tensor]
        other = None if self.minus is None else self.minus.tensors[tensor]
        turned = tensor in self.evidence.record.turned
        try:
            found = driven_square(reader, ref, squares, turned, other)
        except EvidenceError as error:
            raise EvidenceError(f"{self.evidence.path}: {error}") from None
        if self._told is not None:
            self._told(ref.nbytes + (other.nbytes if other else 0))
        return found

    def _sum(self, tensor: str) -> Tensor:
        sums = self.evidence.sums(self.statistic, tensor)
        if _SUM not in sums or sums[_SUM].dim() != 1:
            raise EvidenceError(
                f"{self.evidence.path}: {self.statistic} of {tensor} has no {_SUM} by channel; "
                "the file is damaged, collect it again"
            )
        return sums[_SUM].to(torch.float64)
