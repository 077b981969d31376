"""Statistics beside weights: which evidence file has what a method needs, from headers alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mergewise._paths import exists, expanded
from mergewise.checkpoint import TensorRef
from mergewise.errors import EvidenceError
from mergewise.evidence import Evidence, load_evidence
from mergewise.methods import Method, Need
from mergewise.recipe import Recipe, Source


@dataclass(frozen=True)
class Statistic:
    """A sum in an evidence file, and what to divide it by."""

    file: Path
    ref: TensorRef
    count: int


Statistics = tuple[tuple[Statistic, ...], ...]
"""For each need of a method, one for each expert, or one for the base."""


@dataclass(frozen=True)
class Own:
    """A model's evidence for one tensor.

    Attributes:
        tensor: what the tensor is called in that model.
        files: the model's evidence.
    """

    tensor: str
    files: Sequence[Evidence] = ()


@dataclass(frozen=True)
class Described:
    """What a tensor's experts have.

    Attributes:
        statistics: empty if any need of any expert is not met.
        turned: the tensor is stored [inputs, outputs].
        lacking: where only some experts have it, the numbers of the others; the base counts
            as -1.
        grouped: it is a convolution of several groups, and the evidence is over all of them.
    """

    statistics: Statistics = ()
    turned: bool = False
    lacking: tuple[int, ...] = ()
    grouped: bool = False


def open_evidence(text: str, recipe: Recipe) -> Evidence:
    """Open a file named in a recipe: relative to the current folder, else to the recipe's.

    Raises:
        MergewiseError: if it is no evidence file.
    """
    return load_evidence(evidence_path(text, recipe) or text)


def evidence_path(text: str, recipe: Recipe) -> Path | None:
    """Where a file named in a recipe is; None if it is nowhere."""
    path = expanded(text)
    return next((p for p in (path, Path(recipe.path).parent / path) if exists(p)), None)


def lacking(
    method: Method, needs: Sequence[Need], source: Source, files: Sequence[Evidence]
) -> str:
    """What a model of a recipe lacks for a method, in words; empty if nothing."""
    for need in needs:
        if any(need.statistic in file.statistics for file in files):
            continue
        have = ", ".join(sorted({name for file in files for name in file.statistics}))
        got = f"its evidence has {have}" if files else "it has no `evidence`"
        reader = f"{method.name} with `{need.asked_by}`" if need.asked_by else method.name
        place = "add `evidence: FILE` here"
        if source.implicit:
            place = f"list it under `models:` too, as {{model: {source.model}, evidence: FILE}}"
        whose = "the base" if need.of == "base" else "every model"
        return (
            f"{source.model}: {reader} reads {need.statistic} of {whose}, and {got}; "
            f"{how_to_collect([need.statistic], str(source.model))} and {place}"
        )
    return ""


def how_to_collect(statistics: Sequence[str], model: str, out: str = "FILE") -> str:
    """How a model's statistics are had."""
    from mergewise.evidence.statistics import all_statistics

    known = [all_statistics().get(name) for name in statistics]
    command = f"mergewise collect {','.join(statistics)} {model}"
    if any(statistic is not None and statistic.need == "file" for statistic in known):
        return (
            f"read it from the file in which training left it ({command} --data THAT_FILE -o "
            f"{out}), or let a guide do so (mergewise guides),"
        )
    return f"collect it ({command} --data DATA -o {out})"


def find_statistics(
    needs: Sequence[Need],
    tensors: Sequence[str],
    shape: tuple[int, ...],
    files: Sequence[Sequence[Evidence]],
    base: Own | None = None,
) -> Described:
    """What is known of a tensor of what a method needs.

    Args:
        tensors: the tensor's name in each expert.
        files: each expert's evidence.
        base: the base's.

    Raises:
        EvidenceError: for a statistic of another shape, without a count, or given twice.
    """
    found: list[tuple[Statistic, ...]] = []
    experts = [Own(name, own) for name, own in zip(tensors, files, strict=True)]
    turned = False
    for need in (suited(need, shape) for need in needs):
        models = experts if need.of == "experts" else [base or Own("")]
        each = [_find(need, own.tensor, own.files) for own in models]
        known = [one for one in each if one is not None]
        if len(known) < len(each):
            absent = tuple(i for i, one in enumerate(each) if one is None)
            if need.of == "base":
                return Described(lacking=(-1,) if found else ())
            return Described(lacking=absent if known else ())
        if any(left_out(need, shape, statistic.ref.shape) for _, statistic in known):
            grouped = any(_of_groups(need, shape, statistic.ref.shape) for _, statistic in known)
            return Described(grouped=grouped)
        for (evidence, statistic), own in zip(known, models, strict=True):
            told = own.tensor in evidence.record.turned
            turned = turned or is_turned(need, shape, statistic.ref.shape, told)
            where = str(statistic.file)
            check_shape(need, shape, statistic.ref.shape, where, own.tensor, turned)
        found.append(tuple(statistic for _, statistic in known))
    return Described(tuple(found), turned)


def suited(need: Need, shape: tuple[int, ...]) -> Need:
    """What is needed of a tensor of this shape: of a vector, perhaps, element by element."""
    vector = need.per == "column" and need.vectors and len(shape) == 1
    return replace(need, per="element") if vector else need


def _find(need: Need, tensor: str, files: Sequence[Evidence]) -> tuple[Evidence, Statistic] | None:
    having = [file for file in files if need.sum in file.entries.get((need.statistic, tensor), {})]
    if len(having) > 1:
        raise EvidenceError(
            f"{having[0].path} and {having[1].path} both hold {need.statistic} of {tensor}; name "
            "one of them, or their sum (mergewise evidence merge A B -o FILE)"
        )
    for file in having:
        counts: Mapping[str, int] = file.counts(need.statistic, tensor)
        count = counts.get(need.unit) or next(iter(counts.values()), 0)
        if count <= 0:
            raise EvidenceError(
                f"{file.path}: {need.statistic} of {tensor} runs over no {need.unit}; "
                "collect it on more data"
            )
        ref = file.entries[need.statistic, tensor][need.sum]
        return file, Statistic(file.path, ref, count)
    return None


def left_out(need: Need, shape: tuple[int, ...], statistic: tuple[int, ...]) -> bool:
    """Whether a weight is merged as if nothing described it, whatever its evidence says.

    So are vectors where numbers by input channel are needed (what enters a norm is not what its
    weight multiplies), and where matrices are, convolutions of several groups.
    """
    vector = need.per == "column" and len(shape) < 2
    return vector or _of_groups(need, shape, statistic)


def _of_groups(need: Need, shape: tuple[int, ...], statistic: tuple[int, ...]) -> bool:
    """Whether a matrix is over the inputs of all groups of a convolution; the weight has one's."""
    if need.per != "matrix" or len(shape) < 3 or len(statistic) != 2:
        return False
    inputs = math.prod(shape[1:])
    groups, rest = divmod(statistic[0], inputs) if inputs else (0, 0)
    return groups > 1 and not rest and shape[0] % groups == 0


def is_turned(need: Need, shape: tuple[int, ...], statistic: tuple[int, ...], told: bool) -> bool:
    """Whether a tensor is stored [inputs, outputs], as GPT-2's Conv1D stores its weight.

    Args:
        statistic: the shape of its statistic.
        told: whether somebody says so; only needed of a square one.
    """
    by_inputs = need.per in ("matrix", "column") and len(statistic) > 0
    if not by_inputs or len(shape) != 2 or statistic[0] != shape[0]:
        return False
    return shape[0] != shape[1] or told


def check_shape(
    need: Need,
    tensor: tuple[int, ...],
    statistic: tuple[int, ...],
    where: str,
    name: str,
    turned: bool = False,
) -> None:
    """See that a statistic fits its tensor, which may be stored [inputs, outputs].

    Raises:
        EvidenceError: with both shapes.
    """
    wanted = list(tensor)
    fits = statistic == tensor
    if need.per == "matrix":
        inputs = math.prod(tensor[1:])
        sides = (inputs, tensor[0]) if len(tensor) == 2 else (inputs,)
        wanted = [inputs, inputs]
        fits = len(statistic) == 2 and statistic[0] == statistic[1] and statistic[0] in sides
    if need.per == "column":
        wanted = [math.prod(tensor[1:])]
        fits = len(statistic) == 1 and _columns_fit(tensor, statistic[0])
    if need.per == "spread":
        fits = len(statistic) == len(tensor) and all(
            one in (1, whole) for one, whole in zip(statistic, tensor, strict=True)
        )
    if need.per == "output_matrix":
        side = tensor[-1] if turned else math.prod(tensor[:1])
        wanted, fits = [side, side], statistic == (side, side)
    if not fits:
        raise EvidenceError(
            f"{where}: {need.statistic} of {name} has shape {list(statistic)}, expected {wanted}; "
            "was it collected on this model?"
        )


def _columns_fit(tensor: tuple[int, ...], count: int) -> bool:
    """Whether `count` can be a weight's input channels: of all groups, for a convolution."""
    inputs = math.prod(tensor[1:])
    if len(tensor) == 2:
        return count in (inputs, tensor[0])
    groups = count // inputs if inputs else 0
    return groups > 0 and count == groups * inputs and tensor[0] % groups == 0
