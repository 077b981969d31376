"""Masks over a task vector: which of an expert's changes a merge takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergewise.evidence.statistics._stored import StoredStatistic

if TYPE_CHECKING:
    from torch import Tensor


class Mask(StoredStatistic):
    """One number, 0 or 1, for every element; a guide trains it, or a file holds it."""

    name = "mask"
    summary = "which of an expert's changes are taken; trained by guides, or read from a file"
    sums = {"mask": "1 where the change is taken, else 0; shape of the tensor"}
    data = "labelled"
    source = "Localize-and-Stitch, He et al. 2024, arXiv 2408.13656"

    def unfit(self, value: Tensor, shape: Sequence[int]) -> str:
        """Bools, or zeros and ones, of the tensor's shape are expected."""
        if tuple(value.shape) != tuple(shape):
            return f"has shape {list(value.shape)}, expected {list(shape)}"
        known = bool(((value == 0) | (value == 1)).all())
        return "" if known else "is no mask; expected zeros and ones"

    @classmethod
    def describe(cls) -> str:
        """The formula, in plain text."""
        return (
            "m_j = 1 where the merge takes the expert's change of element j, else 0. The guides "
            "localize_and_stitch and grafting train such masks: m = round(sigmoid(S)), S by "
            "gradient descent on the expert's loss at base + sigmoid(S) * (expert - base). Here "
            "one that lies in a safetensors file (bools, or zeros and ones, under the names of "
            "the checkpoint's tensors) is made evidence."
        )
