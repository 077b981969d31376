"""Which value a parameter has for one tensor, and where it came from.

Precedence: source, slice, module, whole stage, the method's default. A level whose conditions
all miss the tensor's name passes on to the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergewise.recipe._problems import Position, fail
from mergewise.recipe._settings import Leaf, Setting

if TYPE_CHECKING:
    from mergewise.methods import Method, Param
    from mergewise.recipe._recipe import Module, Slice, Source, Stage


@dataclass(frozen=True)
class Resolved:
    """A parameter's value and, in words, its origin."""

    value: Leaf
    origin: str


def resolve(
    name: str, levels: Sequence[Mapping[str, Setting]], t: float, tensor: str, kind: type
) -> Resolved | None:
    """The first value that a level gives, most special level first."""
    for settings in levels:
        setting = settings.get(name)
        found = setting.at(t, tensor, kind) if setting else None
        if found is not None:
            return Resolved(*found)
    return None


def settings_for(
    stage: Stage,
    method: Method,
    module: Module,
    slice_: Slice,
    t: float,
    output_name: str,
    input_names: Sequence[str | None],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """All parameters of `method` for one output tensor, converted to their types.

    Args:
        stage: the stage.
        method: its method.
        module: the tensor's module.
        slice_: the tensor's slice.
        t: position of the layer in the slice, 0 to 1; 0 outside the layers.
        output_name: the output tensor's name.
        input_names: the input tensor's name in each of ``slice_.sources``; None where a model
            does not have it, which leaves that expert out.

    Returns:
        Values by parameter (per-model ones as a list, one item for each expert in the order of
        ``slice_.experts``), and where each came from, in the same shape.

    Raises:
        RecipeError: if a required parameter has no value, or the value is not allowed.
    """
    experts = [i for i in slice_.experts(method.base) if input_names[i] is not None]
    values: dict[str, Any] = {}
    origins: dict[str, Any] = {}
    for name, param in method.params.items():
        choices: list[tuple[Source | None, str | None]] = [(None, None)]
        if param.per_model:
            choices = [(slice_.sources[i], input_names[i]) for i in experts]
        found = [
            _one(stage, method, name, param, module, slice_, source, t, output_name, input_name)
            for source, input_name in choices
        ]
        values[name] = [r.value for r in found] if param.per_model else found[0].value
        origins[name] = [r.origin for r in found] if param.per_model else found[0].origin
    return values, origins


def _one(
    stage: Stage,
    method: Method,
    name: str,
    param: Param,
    module: Module,
    slice_: Slice,
    source: Source | None,
    t: float,
    output_name: str,
    input_name: str | None,
) -> Resolved:
    found = stage.resolve(
        name,
        module=module,
        slice_=slice_,
        source=source,
        t=t,
        output_name=output_name,
        input_name=input_name,
        kind=param.kind,
    )
    if found is None:
        if param.required:
            raise fail(*_missing(stage, method, name, source, input_name or output_name))
        return Resolved(param.default, f"default of {method.name}")
    problem = param.problem(found.value)
    if problem:
        raise fail(stage.position, f"{name} for {output_name} ({found.origin}): {problem}")
    return Resolved(param.convert(found.value), found.origin)


def _missing(
    stage: Stage, method: Method, name: str, source: Source | None, tensor: str
) -> tuple[Position, str]:
    place = source.position if source else stage.position
    model = f" of {source.model}" if source else ""
    return place, (
        f"{method.name} needs `{name}` for tensor {tensor}{model}, and no entry of the recipe "
        "covers it; add one without filter"
    )
