"""An explicit recipe as text: the given document, with numbers for single tensors in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import yaml

from mergewise import __version__
from mergewise.checkpoint import layer_index, layer_prefix, sha256_file
from mergewise.errors import NotBuiltYetError
from mergewise.methods import get_method
from mergewise.plan import build_plan
from mergewise.recipe import Problems, Recipe, dump_documents, load_recipe, parse_documents

if TYPE_CHECKING:
    from mergewise.evidence import Evidence
    from mergewise.guides._base import Ask, Guide

Edit = Callable[[dict[str, Any]], Sequence[dict[str, Any]]]
_MOST = 9_000
"""Values for single tensors; a recipe of more would be refused when it is read."""
_PLAIN = re.compile(r"[A-Za-z_][\w/-]*(\.[\w/-]+)+", re.ASCII)


@dataclass(frozen=True)
class Values:
    """Values of one parameter of one expert.

    Attributes:
        tensors: by the tensor's name; none, for one number for all.
        other: of all other tensors.
    """

    parameter: str
    tensors: Mapping[str, float]
    other: float


def explicit(
    guide: Guide,
    ask: Ask,
    values: Sequence[Values | Sequence[Values]] = (),
    edit: Edit | None = None,
    shared: Values | None = None,
) -> tuple[str, Recipe, list[str]]:
    """The document with each expert's values, the recipe it is, and what it replaced, in words.

    Args:
        values: for each expert, of one parameter or several; nothing, if no expert gets any.
        edit: makes other changes: it is given the document as plain values, may change it, and
            returns all documents of the result (further stages come after it, and it needs a
            ``name`` then).
        shared: values of a parameter that all experts have in common, such as lambda.

    Raises:
        NotBuiltYetError: if a recipe cannot hold so many values.
        RecipeError: if the result cannot be run, such as a density that the method refuses.
    """
    each = [(one,) if isinstance(one, Values) else tuple(one) for one in values]
    both = [*(one for own in each for one in own), *([shared] if shared else [])]
    _check_count(sum(len(one.tensors) for one in both))
    given = ask.plan.recipe
    [document] = [node.plain() for node in parse_documents(given.text, given.path, Problems())]
    document.pop("guide", None)
    marks, notes = _place_marks(document, ask, each)
    if shared:
        notes += _place_shared(document, shared, marks)
    documents = [document] if edit is None else list(edit(document))
    text = dump_documents(documents)
    names = list(ask.stage.tensors)
    for mark, one in marks.items():
        text = _fill(text, mark, one, names)
    text = "".join(f"# {line}\n" for line in _header(guide, ask)) + text
    # relative paths go by the place of the recipe
    recipe = replace(load_recipe(text), path=str(ask.out or given.path))
    build_plan(recipe)
    return text, recipe, notes


def explicit_alike(guide: Guide, ask: Ask, values: Values) -> tuple[str, Recipe, list[str]]:
    """As `explicit`, with the same values for every expert, or once where they have one."""
    param = get_method(ask.plan.recipe.output.method).params[values.parameter]
    if param.per_model:
        return explicit(guide, ask, [values] * len(ask.experts))
    return explicit(guide, ask, shared=values)


def _check_count(count: int) -> None:
    if count > _MOST:
        raise NotBuiltYetError(
            f"{count:,} values for single tensors do not fit a recipe yet, which holds {_MOST:,}; "
            "`exclude` tensors in the recipe, or guide fewer experts"
        )


def _place_marks(
    document: dict[str, Any], ask: Ask, values: Sequence[Sequence[Values]]
) -> tuple[dict[str, Values], list[str]]:
    """Put marks where values will stand, one a line; what stood there, in words."""
    marks: dict[str, Values] = {}
    notes = []
    for expert, own in zip(ask.experts, values, strict=True) if values else ():
        model = document["models"][expert.index]
        parameters = model.get("parameters") or {}
        for one in own:
            old = parameters.get(one.parameter)
            if old is not None:
                notes.append(f"{one.parameter} {old} of {expert.label} is replaced")
            mark = f"(values {len(marks)})"
            marks[mark] = one
            parameters = parameters | {one.parameter: mark}
        model["parameters"] = parameters
    _drop_shared(document, {one.parameter for one in marks.values()})
    return marks, notes


def _place_shared(document: dict[str, Any], values: Values, marks: dict[str, Values]) -> list[str]:
    given = document.setdefault("parameters", {})
    old = given.get(values.parameter)
    mark = f"(values {len(marks)})"
    marks[mark] = values
    given[values.parameter] = mark
    return [] if old is None else [f"{values.parameter} {old} is replaced"]


def _drop_shared(document: dict[str, Any], parameters: Iterable[str]) -> None:
    """Values for all models, which none of them would use any more."""
    shared = document.get("parameters")
    for name in parameters:
        if isinstance(shared, dict):
            shared.pop(name, None)
    if not shared:
        document.pop("parameters", None)


def _fill(text: str, mark: str, values: Values, names: Sequence[str]) -> str:
    """Put the values where their mark stands, one a line, in the order of layers."""
    pattern = re.compile(rf"^( *){re.escape(values.parameter)}: {re.escape(mark)}$", re.M)
    found = pattern.search(text)
    if found is None:  # the model is not in the result
        return text
    if not values.tensors:
        return text[: found.end() - len(mark)] + _number(values.other) + text[found.end() :]
    lines = [f"{found[1]}{line}" for line in (f"{values.parameter}:", *_lines(values, names))]
    return text[: found.start()] + "\n".join(lines) + text[found.end() :]


def _lines(values: Values, names: Sequence[str]) -> Iterator[str]:
    before: tuple[str | None, int | None] | None = None
    for name, value in _ordered(values, names):
        place = layer_prefix(name), layer_index(name)
        if place != before and place[0] is not None:
            yield f"# {_words(f'{place[0]}{place[1]}')}"
        before = place
        yield f"- {{filter: {_scalar(name)}, value: {_number(value)}}}"
    yield "# everything else"
    yield f"- value: {_number(values.other)}"


def _ordered(values: Values, names: Sequence[str]) -> list[tuple[str, float]]:
    """Values so that the first whose filter is a part of a tensor's name is that tensor's own.

    A name that is a part of another one's comes after it; if that other is not guided, it is
    named with the value of the rest.
    """
    text = "\n".join(names)
    inner = [name for name in values.tensors if text.count(name) > 1]
    outer = {n: max(len(i) for i in inner if i in n) for n in names if any(i in n for i in inner)}
    wanted = {name: values.tensors.get(name, values.other) for name in outer}
    wanted |= values.tensors

    def place(name: str) -> tuple[int, str, int, str]:
        first = -len(name) if name in outer else 0
        return first, layer_prefix(name) or "", layer_index(name) or 0, name

    return [(name, wanted[name]) for name in sorted(wanted, key=place)]


def _number(value: float) -> str:
    """Nine significant digits, without an exponent."""
    text = format(Decimal(f"{value:.9g}"), "f")
    return text if "." in text else f"{text}.0"


def _scalar(name: str) -> str:
    if _PLAIN.fullmatch(name):
        return name
    quoted: str = yaml.safe_dump(name, default_style='"', width=1 << 20)
    return quoted.strip()


def _header(guide: Guide, ask: Ask) -> Iterator[str]:
    yield f"Written by `mergewise guide {guide.name}` {__version__}; merges without the data."
    yield f"Guide: {guide.name} ({_words(guide.source)})"
    chosen = ((name, getattr(ask.settings, name)) for name in guide.params)
    said = ", ".join(f"{name} {value}" for name, value in chosen if value is not None)
    if said:
        yield f"Settings: {said}"
    told: dict[str, None] = {}
    for expert in ask.experts:
        for one in expert.evidence.values():
            told[f"Evidence of {_words(expert.label)}: {_file(one)}"] = None
        for one in expert.base.values():
            told[f"Evidence of the base for {_words(expert.label)}: {_file(one)}"] = None
    yield from told


def _file(evidence: Evidence) -> str:
    return f"{_words(evidence.path.name)}, sha256 {sha256_file(evidence.path)}"


def _words(text: str) -> str:
    """One line of a comment, whatever a name holds."""
    return "".join(c if c.isprintable() else "?" for c in text)
