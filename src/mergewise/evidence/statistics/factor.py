"""Factors of a task vector: how much of an expert's change a merge takes, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergewise.evidence.statistics._stored import StoredStatistic

if TYPE_CHECKING:
    from torch import Tensor


class Factor(StoredStatistic):
    """One number for each row, column or element; a guide finds it, or a file holds it."""

    name = "factor"
    summary = "factors of an expert's changes, by row or column; found by guides, or from a file"
    sums = {"factor": "the factor; the tensor's shape, 1 along axes where it is repeated"}
    data = "unlabelled"
    source = "weights by attention head: SLTA (submodule linearity), 2025, arXiv 2504.10902"

    def unfit(self, value: Tensor, shape: Sequence[int]) -> str:
        """Finite numbers are expected, in the tensor's shape or repeated along some axes."""
        given = tuple(value.shape)
        fits = len(given) == len(shape) and all(
            a in (1, b) for a, b in zip(given, shape, strict=True)
        )
        if not fits:
            return (
                f"has shape {list(given)}, expected {list(shape)}, or that with 1 for axes along "
                "which the factor is repeated"
            )
        finite = value.is_floating_point() and bool(value.isfinite().all())
        return "" if finite else "holds no finite floating-point numbers"

    @classmethod
    def describe(cls) -> str:
        """The formula, in plain text."""
        return (
            "f_j: element j of the expert's task vector is multiplied by f_j where a method of "
            "task vectors merges it (`factors: true`). The guide slta finds one for each attention "
            "head (`granularity: head`). Here one that lies in a safetensors file, under the names "
            "of the checkpoint's tensors, is made evidence."
        )
