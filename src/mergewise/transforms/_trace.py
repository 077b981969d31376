"""Which modules a forward pass calls, in which order, and what their outputs go into.

One batch is run while every operation is watched. An output keeps its mark through views, casts
and dropout; the operation that then takes it says what it feeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.evidence.models import call

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mergewise.evidence import LiveModel
    from mergewise.evidence.models import Fed

_NONLINEAR = {
    "relu", "relu6", "gelu", "silu", "tanh", "sigmoid", "leaky_relu", "elu", "hardtanh", "celu",
    "hardswish", "hardsigmoid", "softplus", "mish", "_prelu_kernel", "threshold", "clamp", "glu",
    "clamp_min", "log_sigmoid_forward", "erf", "rrelu_with_noise",
}  # fmt: skip
_SAME_VALUES = {
    "view", "_unsafe_view", "reshape", "flatten", "transpose", "t", "permute", "unsqueeze",
    "squeeze", "expand", "slice", "split", "split_with_sizes", "chunk", "contiguous", "clone",
    "alias", "detach", "_to_copy", "to", "dropout", "native_dropout", "max_pool2d_with_indices",
}  # fmt: skip
_ACTIVATIONS = ("torch.nn.modules.activation", "transformers.activations")
_NO_ACTIVATIONS = ("MultiheadAttention", "Softmax", "Softmax2d", "LogSoftmax", "Softmin")


@dataclass
class Trace:
    """What one forward pass showed.

    Attributes:
        calls: how often each watched module was called, by path, in the order of first calls.
        activated: paths whose output goes into a nonlinearity.
        normalised: paths whose output goes into a batch norm.
        final: paths whose output is the model's own.
    """

    calls: dict[str, int] = field(default_factory=dict)
    activated: set[str] = field(default_factory=set)
    normalised: set[str] = field(default_factory=set)
    final: set[str] = field(default_factory=set)


class _Marks:
    """Which watched outputs a tensor holds; tensors are kept alive, so that ids stay theirs."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[Tensor, frozenset[str]]] = {}

    def put(self, tensor: Tensor, paths: frozenset[str]) -> None:
        self._held[id(tensor)] = (tensor, paths)

    def of(self, value: Any) -> frozenset[str]:
        """The marks of every tensor in a nest of values."""
        found = [self._held[id(t)][1] for t in _tensors(value) if id(t) in self._held]
        return frozenset().union(*found)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def trace(model: LiveModel, fed: Fed, watched: Mapping[str, nn.Module]) -> Trace:
    """Run one batch and see.

    Args:
        watched: modules by path.
    """
    found, marks = Trace(), _Marks()
    with ExitStack() as stack:
        for handle in _hooks(model.module, watched, found, marks):
            stack.callback(handle.remove)
        with torch.no_grad(), _watching(found, marks):
            output = call(model, fed.inputs)
    found.final |= marks.of(output)
    return found


def _hooks(
    module: nn.Module, watched: Mapping[str, nn.Module], found: Trace, marks: _Marks
) -> Iterable[Any]:
    def left(path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            found.calls[path] = found.calls.get(path, 0) + 1
            for tensor in _tensors(output):
                marks.put(tensor, frozenset((path,)))

        return hook

    def enters(module: nn.Module, args: Any) -> None:
        found.activated |= marks.of(args)

    for path, child in watched.items():
        yield child.register_forward_hook(left(path))
    for child in module.modules():
        kind = type(child)
        if kind.__module__ in _ACTIVATIONS and kind.__name__ not in _NO_ACTIVATIONS:
            yield child.register_forward_pre_hook(enters)


def _watching(found: Trace, marks: _Marks) -> Any:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watching(TorchDispatchMode):  # type: ignore[misc, no-untyped-call, unused-ignore]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            carried = marks.of(args)  # before: some operations work in place
            output = func(*args, **(kwargs or {}))
            name = func.name().split("::")[-1].split(".")[0].removesuffix("_")
            if carried and name in _NONLINEAR:
                found.activated |= carried
            elif carried and "batch_norm" in name:
                found.normalised |= carried
            elif carried and name in _SAME_VALUES:
                for tensor in _tensors(output):
                    marks.put(tensor, carried)
            return output

    return Watching()  # type: ignore[no-untyped-call, unused-ignore]
