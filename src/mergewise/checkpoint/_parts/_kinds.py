"""What kind of weight a tensor is, by its name and shape: methods for matrices want to know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from mergewise.checkpoint._parts._layers import is_embedding_like, is_pre_layer

Kind = Literal["vector", "embedding", "matrix", "stack", "convolution"]


def tensor_kind(name: str, shape: Sequence[int]) -> Kind:
    """The kind of a tensor.

    Returns:
        `vector` for fewer than two axes and for biases, those of all experts in one tensor too;
        `embedding` for tokens, positions and output heads;
        `stack` for the matrices of several experts of a mixture in one tensor,
        ``[experts, rows, columns]``; `convolution` for other tensors of three axes or more;
        else `matrix`.
    """
    parts = name.split(".")
    if len(shape) < 2 or parts[-1].endswith("bias"):
        return "vector"
    learned = len(shape) == 3 and parts[-1] != "weight"  # ViT's class token and positions
    if is_embedding_like(name) or ((len(shape) == 2 or learned) and is_pre_layer(name)):
        return "embedding"
    if len(shape) == 2:
        return "matrix"
    stacked = len(shape) == 3 and any("experts" in part or "moe" in part for part in parts)
    return "stack" if stacked else "convolution"
