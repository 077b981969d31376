"""Methods on task vectors alone: deltas, or factors, with a base of zeros."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.checkpoint import tensor_kind
from mergewise.engine import merge_state_dicts
from mergewise.errors import MergewiseError
from mergewise.forms._adapter_files import Factors
from mergewise.methods import Method, PlacedMethod, Settings, get_method, placed

if TYPE_CHECKING:
    from torch import Tensor


def merged_alone(
    tensors: Mapping[str, Sequence[Tensor]], method: str, parameters: Mapping[str, Any], seed: int
) -> dict[str, Tensor]:
    """A method's merge of some tensors as if they were whole models, with a base of zeros.

    Raises:
        MergewiseError: for parameters that the method does not take, or that need whole models.
    """
    chosen = get_method(method)
    if parameters.get("granularity") == "model":
        raise MergewiseError(
            "granularity: model is not to be had here, as adapters are merged weight by "
            "weight; merge BASE+ADAPTER models by a recipe instead"
        )
    count = len(next(iter(tensors.values())))
    models = [{name: values[i] for name, values in tensors.items()} for i in range(count)]
    zeros = {name: torch.zeros_like(values[0]) for name, values in tensors.items()}
    base = zeros if chosen.base == "required" else None
    return merge_state_dicts(models, chosen.name, base=base, parameters=parameters, seed=seed)


def with_defaults(method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    """A method's parameters, as given or by default."""
    return {name: param.default for name, param in method.params.items()} | dict(given)


def left_alone(
    module: str, each: Sequence[Factors | None], method: str, parameters: Mapping[str, Any]
) -> str:
    """Why nothing is left of changes; empty if they are zero, or the method is for the weight."""
    changes = [one for one in each if one]
    chosen = get_method(method)
    if not isinstance(chosen, PlacedMethod) or not any(bool(one.b.any()) for one in changes):
        return ""
    kind = tensor_kind(f"{module}.weight", changes[0].shape)
    values = placed(chosen, with_defaults(chosen, parameters), kind)
    return chosen.elsewhere(Settings(values))


def factor_wise(
    factors: Sequence[tuple[Tensor, Tensor]], method: str, values: Mapping[str, Any], seed: int
) -> tuple[Tensor, Tensor]:
    """B and A of several adapters, each merged apart by a method.

    Args:
        values: the method's parameters; others are passed over.
    """
    known = get_method(method).params
    merged = merged_alone(
        {"a": [a for _, a in factors], "b": [b for b, _ in factors]},
        method,
        {name: value for name, value in values.items() if name in known},
        seed,
    )
    return merged["b"], merged["a"]
