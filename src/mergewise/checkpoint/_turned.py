"""Which weights are stored ``[inputs, outputs]``, as GPT-2's Conv1D stores them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from mergewise.checkpoint._layers import layer_index


class Shaped(Protocol):
    """What has a shape."""

    @property
    def shape(self) -> tuple[int, ...]: ...


def stored_turned(name: str, tensors: Mapping[str, Shaped]) -> bool | None:
    """Whether a weight is stored inputs first; None if nothing tells.

    Told by the biases of its layer's oblong weights: a bias is as long as the outputs.
    """
    layer = layer_index(name)
    if layer is None:
        return None
    start = name.split(f".{layer}.", maxsplit=1)[0] + f".{layer}."
    votes = {
        bias.shape[0] == other.shape[1]
        for key, other in tensors.items()
        if key.startswith(start) and key.endswith(".weight") and len(other.shape) == 2
        if other.shape[0] != other.shape[1]
        for bias in [tensors.get(key.removesuffix("weight") + "bias")]
        if bias is not None and len(bias.shape) == 1 and bias.shape[0] in other.shape
    }
    return votes.pop() if len(votes) == 1 else None
