"""Which parameter each number in an optimizer's state stands for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.checkpoint import Checkpoint
from mergewise.errors import CheckpointError, EvidenceError, MissingExtraError
from mergewise.evidence.statistics._adam_state import OptimizerState, Slot

if TYPE_CHECKING:
    from torch import nn

Shapes = Mapping[str, tuple[int, ...]]
Order = tuple[list[str], ...]

_WRAPPERS = ("module.", "_orig_mod.", "model.module.")
_PLAIN_NAMES = (r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")


def skeleton(checkpoint: Checkpoint) -> nn.Module:
    """The checkpoint's model without its numbers.

    Raises:
        MissingExtraError: if `transformers` is not installed.
        CheckpointError: if its config does not name a model that `transformers` has.
    """
    try:
        import transformers
    except ImportError:
        raise MissingExtraError("hf", "transformers") from None
    model = getattr(transformers, checkpoint.architecture or "", None)
    if model is None:
        raise CheckpointError(
            f"{checkpoint.path}: the config's `architectures` names no model of transformers "
            f"(got {checkpoint.architecture!r}), so the order of its parameters is not known; "
            "use an optimizer file that tells parameters by name"
        )
    config = transformers.AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True)
    try:
        with torch.device("meta"):
            built: nn.Module = model(config)
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{checkpoint.path}: no model from its config: {error}") from None
    return built


def named_by_file(state: OptimizerState, shapes: Shapes) -> list[str] | None:
    """Names of the slots as the file tells them; None if it does not.

    Args:
        shapes: of the model's parameters.

    Raises:
        EvidenceError: naming the first that is no parameter of the model, or has another shape.
    """
    if not all(slot.name for slot in state.slots):
        return None
    names = [_unwrapped(slot.name or "", shapes) for slot in state.slots]
    for name, slot in zip(names, state.slots, strict=True):
        if name not in shapes:
            raise EvidenceError(
                f"{state.path}: it has a second moment for {name}, which the model does not have; "
                "is this the checkpoint of that training run?"
            )
        if slot.shape is not None and slot.shape != shapes[name]:
            raise EvidenceError(
                f"{state.path}: the second moment of {name} has shape {list(slot.shape)}, the "
                f"parameter {list(shapes[name])}; is this the checkpoint of that training run?"
            )
    return names


def named_by_order(state: OptimizerState, module: nn.Module) -> list[str]:
    """Names of the slots by the orders in which trainers hand parameters to an optimizer.

    These are: two groups, those with weight decay and those without, by the rules of several
    releases of `transformers`; or one group of all. Shapes and sizes of groups must agree.

    Raises:
        EvidenceError: if none fits, naming the first mismatch; or if two fit that differ.
    """
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    fitting: list[list[str]] = []
    problems: list[tuple[int, str]] = []
    for order in _orders(module):
        names = [name for part in order for name in part]
        problem = _mismatch(state, order, names, shapes)
        if problem is not None:
            problems.append(problem)
        elif names not in fitting:
            fitting.append(names)
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        at = next(i for i, pair in enumerate(zip(*fitting, strict=False)) if len(set(pair)) > 1)
        raise EvidenceError(
            f"{state.path}: number {at} may be {fitting[0][at]} or {fitting[1][at]}: both orders "
            "fit its shapes; use a file that tells parameters by name or by groups"
        )
    _, text = max(problems)
    raise EvidenceError(
        f"{state.path}: its parameters are not in an order that is known for "
        f"{type(module).__name__}: {text}; is this the checkpoint of that training run, and were "
        "all parameters trained?"
    )


def _unwrapped(name: str, shapes: Shapes) -> str:
    for prefix in _WRAPPERS:
        if name not in shapes and name.startswith(prefix):
            name = name[len(prefix) :]
    return name


def _mismatch(
    state: OptimizerState, order: Order, names: Sequence[str], shapes: Shapes
) -> tuple[int, str] | None:
    """Where an order first disagrees: at which number, and how."""
    for i, (slot, name) in enumerate(zip(state.slots, names, strict=False)):
        if slot.shape is not None and slot.shape != shapes[name]:
            return i, _other_shape(i, slot, name, shapes)
    shorter = min(len(names), len(state.slots))
    if len(names) != len(state.slots):
        return shorter, f"it has {len(state.slots)} parameters, the model {len(names)}"
    sizes = tuple(len(part) for part in order if part)
    if state.groups is not None and sizes != tuple(n for n in state.groups if n):
        return shorter, f"it has groups of {state.groups} parameters, expected {sizes}"
    return None


def _other_shape(i: int, slot: Slot, name: str, shapes: Shapes) -> str:
    return f"number {i} has shape {list(slot.shape or ())}, but {name} {list(shapes[name])}"


def _orders(module: nn.Module) -> Iterator[Order]:
    every = [name for name, _ in module.named_parameters()]
    inside = _inside_norms(module)
    patterns = [re.compile(pattern) for pattern in _PLAIN_NAMES]
    # transformers now, then its releases before patterns of names
    yield _two(every, {n for n in every if any(p.search(n.lower()) for p in patterns)} | inside[0])
    biases = {n for n in every if "bias" in n}
    yield _two(every, biases | inside[0] | inside[1])
    yield _two(every, biases | inside[0])
    yield (every,)


def _two(every: Sequence[str], plain: set[str]) -> Order:
    return [n for n in every if n not in plain], [n for n in every if n in plain]


def _inside_norms(module: nn.Module) -> tuple[set[str], set[str]]:
    """Parameters in modules that are torch's LayerNorm, and in those with norm in their class."""
    exact, alike = set(), set()
    for path, child in module.named_modules():
        names = {f"{path}.{n}" if path else n for n, _ in child.named_parameters()}
        if isinstance(child, torch.nn.LayerNorm):
            exact |= names
        elif type(child).__name__.endswith("Norm"):
            alike |= names
    return exact, alike
