"""Changes of low rank that a recipe's `dtype` rounds away before a method can see them."""

from __future__ import annotations

from collections.abc import Iterable

from mergewise.checkpoint import ChangedRef, LowRank
from mergewise.methods import MatrixMethod, get_method
from mergewise.plan._model import View
from mergewise.recipe import Stage

_NARROW = ("bfloat16", "float16")


def rounded_changes(stage: Stage, views: Iterable[View]) -> list[str]:
    """A warning if weights with a LoRA are rounded for a method of singular vectors."""
    if stage.dtype not in _NARROW or not isinstance(get_method(stage.method), MatrixMethod):
        return []
    adapted = [view.label for view in views if view.checkpoint and _is_low(view)]
    if not adapted:
        return []
    return [
        f"`dtype: {stage.dtype}` rounds the weights of {adapted[0]} before {stage.method} sees "
        "them, so that what its adapter changes is no longer of low rank; set "
        f"`out_dtype: {stage.dtype}` instead, which rounds the result alone"
    ]


def _is_low(view: View) -> bool:
    refs = view.checkpoint.tensors.values() if view.checkpoint else ()
    return any(isinstance(r, ChangedRef) and isinstance(r.change, LowRank) for r in refs)
