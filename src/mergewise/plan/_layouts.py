"""Models of one architecture whose files name their tensors differently."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mergewise.checkpoint import TensorRef, in_layout_of, shown, tied_head
from mergewise.errors import CheckpointError, IncompatibleModelsError
from mergewise.plan._model import TensorMeta, View


def in_one_layout(donor: View, view: View, ignored: Callable[[str], bool]) -> tuple[View, str]:
    """`view` under the donor's names, and a remark on it; itself and "" if there is no need.

    There is a need where each has tensors that the other lacks. `transformers` is then asked how
    it would load both; it is not loaded otherwise.

    Args:
        ignored: whether a name does not matter, because the recipe excludes it.

    Raises:
        IncompatibleModelsError: if both are of one architecture and cannot be brought together.
    """
    lacks = [n for n in donor.tensors if n not in view.tensors and not ignored(n)]
    more = [n for n in view.tensors if n not in donor.tensors and not ignored(n)]
    config = donor.config or view.config
    if not (lacks and more and config and view.checkpoint) or _type(donor) != _type(view):
        return view, ""
    refs = {n: _ref(donor, meta) for n, meta in donor.tensors.items()}
    try:
        found = in_layout_of(refs, config, view.checkpoint)
    except CheckpointError as error:
        raise IncompatibleModelsError(_refusal(donor, view, lacks, more, str(error))) from None
    if len(found.tensors.keys() & donor.tensors.keys()) <= len(donor.tensors) - len(lacks):
        return view, ""  # the names are those that transformers expects of both: not a layout
    remark = (
        f"{view.label} names its tensors otherwise than {donor.label} (such as {shown(more[0])}); "
        f"it is read under {donor.label}'s names, as transformers would load both"
    )
    return replace(
        view,
        tensors={n: TensorMeta(n, t.dtype, t.shape) for n, t in found.tensors.items()},
        checkpoint=found,
        tied=tied_head(list(found.tensors), found.config),
    ), remark


def _type(view: View) -> object:
    return view.config.get("model_type") if view.config else None


def _ref(view: View, meta: TensorMeta) -> TensorRef:
    """A tensor of the donor; one of an earlier stage has no bytes, only a name and a shape."""
    known = view.ref(meta.name)
    return known or TensorRef(meta.name, meta.dtype, meta.shape, 0, meta.nbytes, view.folder)


def _refusal(donor: View, view: View, lacks: list[str], more: list[str], reason: str) -> str:
    names = (donor.config or {}).get("architectures")
    cls = names[0] if isinstance(names, list) and names else "AutoModel"
    return (
        f"{view.label} and {donor.label} name their tensors differently ({len(more)} such as "
        f"{shown(more[0])}, {len(lacks)} such as {shown(lacks[0])}), and cannot be converted: "
        f"{reason}. If they are one architecture in two layouts, save each in the same: "
        f"`from transformers import {cls}`, then `{cls}.from_pretrained(MODEL)"
        ".save_pretrained(OUT, save_original_format=False)`"
    )
