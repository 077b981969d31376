"""Which tensors have the vocabulary along one of their axes: embeddings, heads, output biases.

No table of architectures: the config says how large the vocabulary is, and a tensor with an axis
of that length is one, if its name says so, or if it lies outside the layers and nothing else in
the config has the same size. (In layers, products of sizes coincide with vocabularies: the fused
gate and up projection of Mixtral 8x22B has 32,768 rows.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mergewise.checkpoint import config_value, head_and_embedding, is_embedding_like, layer_index

_OWNERS = frozenset(("embed_tokens", "lm_head", "wte", "embed_in", "embed_out", "word_embeddings"))
_BIASES = frozenset(("final_logits_bias",))
_PER_LAYER = "embed_tokens_per_layer"


@dataclass(frozen=True)
class VocabularyTensors:
    """A model's vocabulary as its tensors show it.

    Attributes:
        rows: the length of the vocabulary's axis, padding included.
        axes: which axis that is, by tensor.
        unclear: tensors that seem to have a vocabulary of another size.
    """

    rows: int
    axes: Mapping[str, int] = field(default_factory=dict)
    unclear: tuple[str, ...] = ()


def vocabulary_tensors(
    shapes: Mapping[str, tuple[int, ...]], config: dict[str, Any] | None
) -> VocabularyTensors | None:
    """Find the tensors with a vocabulary axis; None for a model without any.

    Args:
        shapes: by name.
        config: the model's ``config.json``.
    """
    named = [name for name in shapes if _named(name)]
    rows = _rows(shapes, config, named)
    if rows is None:
        return None
    alone = rows not in _sizes(config)
    axes = {}
    for name, shape in shapes.items():
        outside = alone and layer_index(name) is None
        axis = _axis(shape, rows) if _named(name) else _only(shape, rows) if outside else None
        if axis is not None:
            axes[name] = axis
    unclear = tuple(n for n in shapes if n not in axes and _PER_LAYER in n.split("."))
    return VocabularyTensors(rows, axes, unclear) if axes else None


def _named(name: str) -> bool:
    parts = name.split(".")
    owner = parts[-2] if len(parts) > 1 else ""
    if is_embedding_like(name) or owner in _OWNERS or parts[-1] in _BIASES:
        return True
    return parts[-3:-1] == ["shared_head", "head"]  # DeepSeek's layers that predict further tokens


def _rows(
    shapes: Mapping[str, tuple[int, ...]], config: dict[str, Any] | None, named: list[str]
) -> int | None:
    stated = config_value(config, "vocab_size")
    if isinstance(stated, int) and any(stated in shapes[name] for name in named):
        return stated
    pair = head_and_embedding(list(shapes))
    if pair is not None and shapes[pair[1]]:
        return shapes[pair[1]][0]
    return stated if isinstance(stated, int) and stated > 0 else None


def _sizes(config: dict[str, Any] | None) -> set[int]:
    """Every other size in a config; an axis of one of these lengths may be something else."""
    found: set[int] = set()
    parts = [config or {}]
    while parts:
        for key, value in parts.pop().items():
            if isinstance(value, dict):
                parts.append(value)
            elif isinstance(value, int) and "vocab" not in key:
                found.add(value)
    return found


def _axis(shape: tuple[int, ...], rows: int) -> int | None:
    """The vocabulary's axis of a tensor known by name: the first, where there is a choice."""
    return shape.index(rows) if rows in shape else None


def _only(shape: tuple[int, ...], rows: int) -> int | None:
    return shape.index(rows) if shape.count(rows) == 1 else None
