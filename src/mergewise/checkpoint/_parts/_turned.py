"""Which weights are stored ``[inputs, outputs]``, as GPT-2's Conv1D and gpt-oss's experts are."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Protocol

from mergewise.checkpoint._parts._kinds import tensor_kind
from mergewise.checkpoint._parts._layers import layer_index, layer_prefix


class Shaped(Protocol):
    """What has a shape."""

    @property
    def shape(self) -> tuple[int, ...]: ...


class Orientation:
    """How a model stores its weights; each layer is looked at once.

    Args:
        tensors: the model's, by name.
    """

    def __init__(self, tensors: Mapping[str, Shaped]) -> None:
        self._tensors = tensors
        self._known: dict[Hashable, bool] = {}

    def turned(self, name: str, kind: str) -> bool:
        """Whether a tensor of a kind (`tensor_kind`) is stored inputs first, as far as is told."""
        if kind not in ("matrix", "stack"):
            return False
        layer = (kind, layer_prefix(name), layer_index(name))
        if layer not in self._known:
            tell = stored_turned if kind == "matrix" else stack_turned
            self._known[layer] = bool(tell(name, self._tensors))
        return self._known[layer]


def stored_turned(name: str, tensors: Mapping[str, Shaped]) -> bool | None:
    """Whether a weight is stored inputs first; None if nothing tells.

    Told by the biases of its layer's oblong weights: a bias is as long as the outputs.
    """
    votes = {
        bias.shape[0] == other.shape[1]
        for key, other in _of_layer(name, tensors)
        if key.endswith(".weight") and len(other.shape) == 2
        if other.shape[0] != other.shape[1]
        for bias in [tensors.get(key.removesuffix("weight") + "bias")]
        if bias is not None and len(bias.shape) == 1 and bias.shape[0] in other.shape
    }
    return votes.pop() if len(votes) == 1 else None


def stack_turned(name: str, tensors: Mapping[str, Shaped]) -> bool | None:
    """Whether stacked experts ``[experts, ., .]`` are stored inputs first; None if nothing tells.

    Told by the layer's stacks: gate and up joined have twice the outputs that down has inputs.
    """
    shapes = {
        other.shape
        for key, other in _of_layer(name, tensors)
        if len(other.shape) == 3 and tensor_kind(key, other.shape) == "stack"
    }
    votes = {
        turned
        for n, rows, columns in shapes
        for count, *down in shapes
        if n == count
        for turned, joined in ((False, [rows, columns]), (True, [columns, rows]))
        if joined == ([2 * down[1], down[0]] if not turned else [2 * down[0], down[1]])
    }
    return votes.pop() if len(votes) == 1 else None


def _of_layer(name: str, tensors: Mapping[str, Shaped]) -> Iterator[tuple[str, Shaped]]:
    layer = layer_index(name)
    if layer is None:
        return
    start = name.split(f".{layer}.", maxsplit=1)[0] + f".{layer}."
    for key, tensor in tensors.items():
        if key.startswith(start):
            yield key, tensor
