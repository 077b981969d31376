"""What guides that train masks have in common: which tensors, the files, the recipe."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergewise import __version__
from mergewise.checkpoint import layer_index
from mergewise.errors import DataError, GuideError
from mergewise.evidence import Evidence, fingerprint_of
from mergewise.evidence.statistics import role_of
from mergewise.guides._base import Ask, Expert, Guide, Guided, Map
from mergewise.guides._document import explicit
from mergewise.guides._evidence import earlier
from mergewise.guides._lines import Lines
from mergewise.guides._measures._cells import find_cells, map_of
from mergewise.guides._names import file_name
from mergewise.plan import TensorPlan
from mergewise.recipe import Recipe

if TYPE_CHECKING:
    from mergewise.evidence import MaskSettings
    from mergewise.evidence.statistics import Progress

METHOD = "localize_and_stitch"
_OPTIONS = {"limit", "template", "split", "max_length", "batch_size", "device", "dtype",
            "trust_remote_code", "prepare", "progress"}  # fmt: skip


@dataclass(frozen=True)
class Masked:
    """An expert's mask.

    Attributes:
        losses: mean loss of a prediction in nats: at the first epoch, and with the mask.
    """

    expert: Expert
    file: Evidence
    losses: tuple[float, float]


def problem_of(recipe: Recipe) -> str | None:
    """Why a recipe cannot have trained masks; None if it can."""
    if recipe.output.method == METHOD:
        return None
    return f"it trains masks for {METHOD}, not for {recipe.output.method}; change merge_method"


def guided_by_masks(guide: Guide, ask: Ask, settings: MaskSettings) -> Guided:
    """Train a mask for every expert, keep them, and write the recipe that names them.

    Raises:
        GuideError: if no tensor has a mask, or nobody said where files go.
        MergewiseError: as `collect_mask` raises.
    """
    tensors = chosen_tensors(ask)
    for expert in ask.experts:
        _look(ask, expert)
    trained = [_trained(ask, expert, tensors, settings) for expert in ask.experts]
    shares = [_share(one.file, tensors) for one in trained]
    empty = tuple(
        f"{one.expert.label}: no element is in its mask, so nothing of it is merged; raise "
        "`epochs`, `lr` or `density`"
        for one, share in zip(trained, shares, strict=True)
        if share == 0
    )
    named = tuple(replace(one.expert, evidence={"mask": one.file}) for one in trained)
    asked = replace(ask, experts=named)
    text, recipe, notes = explicit(guide, asked, edit=lambda d: [_edited(d, asked, trained)])
    maps = tuple(_map(ask, one) for one in trained)
    notes += [_told(one, share) for one, share in zip(trained, shares, strict=True)]
    notes += [*_rest(ask, tensors), *_overlaps(trained)]
    return Guided(text, recipe, maps, tuple(notes), (*ask.warnings, *empty))


def chosen_tensors(ask: Ask) -> list[str]:
    """The tensors that get a mask: of the layers, or those that `tensors` names.

    Raises:
        GuideError: if there is none.
    """
    merged = [name for name, tensor in ask.stage.tensors.items() if _can_have(tensor)]
    patterns = ask.settings.tensors
    if patterns:
        globs = [part.strip() for part in patterns.split(",")]
        found = [name for name in merged if any(fnmatchcase(name, one) for one in globs)]
    else:
        found = [name for name in merged if layer_index(name) is not None] or merged
    if not found:
        what = f"`tensors: {patterns}` matches none" if patterns else "there is none"
        raise GuideError(f"of the tensors that are merged, {what} that a mask can be trained over")
    return found


def _can_have(tensor: TensorPlan) -> bool:
    """Whether all models have it, in one shape."""
    shape = tensor.meta.shape
    same = all(item.meta.shape == shape for item in tensor.inputs)
    return tensor.fate == "merge" and tensor.meta.elements > 0 and same


def _look(ask: Ask, expert: Expert) -> None:
    """Find before the first training what would fail in the last."""
    data, role = ask.data[expert.label], role_of(expert.checkpoint)
    first = next(iter(data), None)
    if first is None:
        raise DataError(f"{data.name}: no records, and {expert.label} is to be trained on it")
    label = first.get("labels", first.get("label"))
    if role in ("text_classifier", "image_classifier") and label is None:
        raise DataError(
            f"{data.name}: no field `label` in its first record, and {expert.label} is a "
            "classifier; add each record's class, a whole number"
        )
    if ask.options.get("offload"):
        raise GuideError("training a mask needs the whole model in memory; leave out `offload`")


def _trained(ask: Ask, expert: Expert, tensors: Sequence[str], settings: MaskSettings) -> Masked:
    from mergewise.evidence import collect_mask

    options = {k: v for k, v in ask.options.items() if k in _OPTIONS and v is not None}
    out, known = _place(ask, expert, tensors, settings, options)
    if known and (there := earlier(out)):
        ask.tell(f"mask of {expert.label}: taken from {out}")
        return Masked(expert, there, _losses(there))
    data = ask.data[expert.label]
    ask.tell(f"mask of {expert.label} on {data.name}, {settings.epochs} epochs")
    progress = options.pop("progress", None) or _telling(ask, expert)
    found, _ = collect_mask(
        expert.checkpoint.path, ask.foundation, data, out, tensors, settings,
        overwrite=True, progress=progress, **options,
    )  # fmt: skip
    return Masked(expert, found, _losses(found))


def _place(
    ask: Ask, expert: Expert, tensors: Sequence[str], settings: MaskSettings,
    options: Mapping[str, Any],
) -> tuple[Path, bool]:  # fmt: skip
    """The mask's file, named by all that decides it; and whether all of that is known."""
    data = ask.data[expert.label]
    mark = data.fingerprint()
    content = {
        "version": __version__,
        "models": [fingerprint_of(m.path) for m in (ask.foundation, expert.checkpoint)],
        "tensors": sorted(tensors),
        "settings": asdict(settings),
        "options": {k: repr(v) for k, v in sorted(options.items()) if k != "progress"},
        "data": mark or repr(data.rows),
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return ask.keep(f"{file_name(expert.label)}.mask-{digest[:12]}.safetensors"), mark is not None


def _losses(file: Evidence) -> tuple[float, float]:
    part = file.record.parts[0]
    return part["first_loss"], part["loss"]


def _share(file: Evidence, tensors: Sequence[str]) -> float:
    total = inside = 0
    for name in tensors:
        mask = file.sums("mask", name)["mask"]
        total, inside = total + mask.numel(), inside + int(mask.sum())
    return inside / total


def _edited(document: dict[str, Any], ask: Ask, trained: Sequence[Masked]) -> dict[str, Any]:
    """The recipe with masks in place of densities."""
    levels = [document, *(document["models"][one.expert.index] for one in trained)]
    for level in levels:
        given = level.get("parameters") or {}
        kept = {k: v for k, v in given.items() if k not in ("density", "granularity", "localize")}
        level.pop("parameters", None)
        if kept:
            level["parameters"] = kept
    document["parameters"] = {**document.get("parameters", {}), "localize": "mask"}
    for one in trained:
        document["models"][one.expert.index]["evidence"] = ask.refer(one.file.path)
    return document


def _told(one: Masked, share: float) -> str:
    first, last = one.losses
    return (
        f"{one.expert.label}: its mask holds {share:.4%} of the changes; loss {first:.4g} in the "
        f"first epoch, {last:.4g} with the mask"
    )


def _rest(ask: Ask, tensors: Sequence[str]) -> list[str]:
    known = set(tensors)
    rest = [n for n, t in ask.stage.tensors.items() if t.fate == "merge" and n not in known]
    if not rest:
        return []
    more = ", …" if rest[2:] else ""
    return [f"{len(rest)} tensors have no mask and keep the base's values: "
            f"{', '.join(rest[:2])}{more}"]  # fmt: skip


def _overlaps(trained: Sequence[Masked]) -> list[str]:
    """Pairs of experts, the likest first: how much of their masks is common."""
    from mergewise.evidence import overlaps

    table = overlaps([one.file for one in trained])
    names = [one.expert.label for one in trained]
    pairs = [(table[i][j], i, j) for i, j in combinations(range(len(names)), 2)]
    return [
        f"masks of {names[i]} and {names[j]} have {value:.2%} of their elements in common (Jaccard)"
        for value, i, j in sorted(pairs, key=lambda pair: (-pair[0], *pair[1:]))
    ]


def _map(ask: Ask, one: Masked) -> Map:
    known = set(one.file.tensors("mask"))
    held = {cell: [n for n in cell.tensors if n in known] for cell in find_cells(ask.stage)}
    shares = {cell: _share(one.file, names) for cell, names in held.items() if names}
    return map_of(one.expert, "share in the mask", shares)


def _telling(ask: Ask, expert: Expert) -> Callable[[Progress], None]:
    """Says now and then how far a training is."""
    lines = Lines(ask)

    def told(at: Progress) -> None:
        of = "" if at.total is None else f" of {at.total:,}"
        lines(f"mask of {expert.label}: {at.stage}, {at.done:,}{of} records")

    return told
