"""Which models an evaluation compares, what they are called, and which are the references."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mergewise._paths import expanded
from mergewise.errors import TaskError
from mergewise.evidence._tasks import Tasks
from mergewise.evidence.models._live import LiveModel

Given = str | Path | LiveModel
Model = Path | LiveModel


@dataclass(frozen=True)
class LineUp:
    """The models in the order of the table: base, experts, the others.

    Attributes:
        base: name of the base.
        experts: by task, name of its reference.
    """

    models: Mapping[str, Model]
    base: str | None
    experts: Mapping[str, str]


def line_up(
    models: Iterable[Given] | Mapping[str, Given] | Given,
    tasks: Tasks,
    base: Given | None,
    experts: Mapping[str, Given] | None,
) -> LineUp:
    """Collect the models; one given twice, as the base and in the list, say, is scored once.

    Raises:
        TaskError: if there is no model, two would have one name, or experts and tasks do not
            fit together.
    """
    named = _named(models)
    origin = base if base is not None else tasks.base
    _check_experts(experts or {}, tasks)
    references = {**tasks.experts, **(experts or {})}
    if not (named or references or origin is not None):
        raise TaskError("no models to score; give at least one, a base or an expert")
    book = _Book({_identity(model): name for name, model in named.items()})
    base_name = None if origin is None else book.add("base", _model(origin))
    expert_names = {name: book.add(name, _model(model)) for name, model in references.items()}
    for name, model in named.items():
        book.add(name, model)
    return LineUp(book.models, base_name, _by_task(tasks, expert_names))


class _Book:
    def __init__(self, names: Mapping[object, str]) -> None:
        self.names = dict(names)
        self.models: dict[str, Model] = {}

    def add(self, name: str, model: Model) -> str:
        """Enter a model under `name`, or under the name the caller gave it."""
        name = self.names.setdefault(_identity(model), name)
        if name in self.models and _identity(self.models[name]) != _identity(model):
            raise TaskError(
                f"two models are called {name!r}: {_shown(self.models[name])} and "
                f"{_shown(model)}; rename a folder, or an expert in `experts`"
            )
        self.models.setdefault(name, model)
        return name


def _named(models: Iterable[Given] | Mapping[str, Given] | Given) -> dict[str, Model]:
    if isinstance(models, Mapping):
        return {name: _model(model) for name, model in models.items()}
    if isinstance(models, str | Path | LiveModel):
        models = [models]
    distinct = {_identity(model): model for model in map(_model, models)}
    names = _short_names(list(distinct.values()))
    for name, times in Counter(names).items():
        if times > 1:
            raise TaskError(f"{times} models are called {name!r}; give a mapping of other names")
    return dict(zip(names, distinct.values(), strict=True))


def _short_names(models: list[Model]) -> list[str]:
    """Folder names; with the parent's where two are alike, whole paths if need be."""
    for parts in (1, 2):
        names = [_tail(model, parts) for model in models]
        if max(Counter(names).values(), default=1) == 1:
            return names
    return [_shown(model) for model in models]


def _tail(model: Model, parts: int) -> str:
    if isinstance(model, LiveModel):
        return model.name
    return "/".join(model.absolute().parts[-parts:])


def _model(given: Given) -> Model:
    return given if isinstance(given, LiveModel) else expanded(given)


def _identity(model: Model) -> object:
    return id(model) if isinstance(model, LiveModel) else model.resolve()


def _shown(model: Model) -> str:
    return model.name if isinstance(model, LiveModel) else str(model)


def _check_experts(given: Mapping[str, Given], tasks: Tasks) -> None:
    """An expert of the caller's must be some task's reference, or the file's."""
    known = [*tasks.experts, *(entry.expert for entry in tasks)]
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there is {', '.join(known)}"
            raise TaskError(f"expert {name!r} is the reference of no task; {hint}")


def _by_task(tasks: Tasks, names: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for entry in tasks:
        if entry.expert in names:
            found[entry.name] = names[entry.expert]
        elif entry.expert_named and names:
            close = difflib.get_close_matches(entry.expert, names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there is {', '.join(names)}"
            raise TaskError(f"task {entry.name}: no expert {entry.expert!r}; {hint}")
    return found
