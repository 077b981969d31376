"""Merging, with Ctrl-C as what it is: a contender must not take it for its own failure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mergewise.engine import merge_state_dicts
from mergewise.errors import InterruptedMergeError

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.lab._family import State


def merge(experts: Sequence[State], method: str, **how: Any) -> dict[str, Tensor]:
    """`mergewise.merge_state_dicts`; takes its keyword arguments.

    Raises:
        KeyboardInterrupt: on Ctrl-C.
        MergewiseError: if these models or parameters cannot be merged.
    """
    try:
        return merge_state_dicts(experts, method, **how)
    except InterruptedMergeError:
        raise KeyboardInterrupt from None
