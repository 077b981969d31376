"""Repeated layers, embeddings and heads, recognised from tensor names.

No list of architectures: a name's layer is the first of its dotted parts that is a number, so
``model.layers.3.mlp.experts.7.w1.weight`` is in layer 3 of ``model.layers.``, whatever follows.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from mergewise.checkpoint._config import config_value

_MAX_DIGITS = 6


@dataclass(frozen=True)
class LayerGroup:
    """Layers that share a prefix.

    Attributes:
        prefix: everything before the number, with its dot: ``model.layers.``.
        count: the highest number plus one.
        suffixes: what follows the number, over all layers, in order of appearance.
        indices: the numbers that occur, ascending; with gaps when layers are missing.
        tensors: how many names belong to the group.
    """

    prefix: str
    count: int
    suffixes: tuple[str, ...]
    indices: tuple[int, ...]
    tensors: int


class _Parts(NamedTuple):
    prefix: str
    number: int
    suffix: str


def _is_index(part: str) -> bool:
    digits = part.isascii() and part.isdigit() and len(part) <= _MAX_DIGITS
    return digits and (part == "0" or not part.startswith("0"))


@lru_cache(1 << 17)  # names are split again and again while a merge is planned
def _split(name: str) -> _Parts | None:
    parts = name.split(".")
    for i, part in enumerate(parts):
        if _is_index(part):
            prefix = "".join(f"{before}." for before in parts[:i])
            return _Parts(prefix, int(part), ".".join(parts[i + 1 :]))
    return None


def layer_prefix(name: str) -> str | None:
    """What precedes the layer's number, such as ``model.layers.``; None outside of layers."""
    parts = _split(name)
    return parts.prefix if parts else None


def layer_index(name: str) -> int | None:
    """The number of the layer a tensor is in; None outside of layers."""
    parts = _split(name)
    return parts.number if parts else None


def renumber(name: str, new_index: int) -> str:
    """The same tensor's name in layer `new_index`; a name outside of layers is returned as is."""
    parts = _split(name)
    if parts is None:
        return name
    return f"{parts.prefix}{new_index}" + (f".{parts.suffix}" if parts.suffix else "")


def find_layers(names: Iterable[str]) -> list[LayerGroup]:
    """Every group of repeated layers, the one with most tensors first."""
    groups: dict[str, list[_Parts]] = {}
    for name in names:
        if parts := _split(name):
            groups.setdefault(parts.prefix, []).append(parts)
    found = [_group(prefix, members) for prefix, members in groups.items()]
    return sorted(found, key=lambda group: (-group.tensors, group.prefix))


def _group(prefix: str, members: list[_Parts]) -> LayerGroup:
    indices = tuple(sorted({part.number for part in members}))
    suffixes = tuple(dict.fromkeys(part.suffix for part in members))
    return LayerGroup(prefix, indices[-1] + 1, suffixes, indices, len(members))


def main_layers(names: Iterable[str]) -> LayerGroup | None:
    """The group with most tensors: the layers that recipes count and slice. None without any."""
    groups = find_layers(names)
    return groups[0] if groups else None


_TOKEN_EMBEDDING = re.compile(
    r"embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|token_embeddings?|shared|embeddings?"
)
_BEFORE_LAYERS = re.compile(
    rf"{_TOKEN_EMBEDDING.pattern}|wpe|embed_positions|position_embeddings?|pos_embed|patch_embed"
    r"|token_type_embeddings|word_embeddings_layer_?norm|embed_layer_norm|layernorm_embedding"
    r"|embedding_hidden_mapping_in|patch_embeddings?|cls_token|embed_tokens_per_layer"
    r"|per_layer_model_projection|per_layer_projection_norm|pre_layrnorm|conv1|conv2|project_in"
)
_HEAD = re.compile(r"lm_head|embed_out|output|vocab_projector|proj_out|generator_lm_head")


def is_embedding_like(name: str) -> bool:
    """Whether one axis of the tensor is the vocabulary: token embeddings and output heads."""
    parts = name.split(".")
    if layer_index(name) is not None or parts[-1] not in ("weight", "bias"):
        return False
    owner = parts[-2] if len(parts) > 1 else ""
    if owner == "decoder":  # BERT's cls.predictions.decoder, RoBERTa's lm_head.decoder
        return len(parts) > 2 and parts[-3] in ("predictions", "lm_head")
    if owner == "predictions":
        return parts[-1] == "bias"
    return bool(_HEAD.fullmatch(owner) or _TOKEN_EMBEDDING.fullmatch(owner))


def is_pre_layer(name: str) -> bool:
    """Whether the tensor acts before the layers: embeddings, positions, their norms."""
    if layer_index(name) is not None:
        return False
    return any(_BEFORE_LAYERS.fullmatch(part) for part in name.split("."))


def is_end(name: str) -> bool:
    """Whether the tensor belongs to embeddings or an output head, norms and biases included.

    A name that begins with ``conv1`` is a convolutional network's, and no embedding.
    """
    plain = name.startswith(("conv1.", "conv2."))
    return is_embedding_like(name) or (is_pre_layer(name) and not plain)


def is_post_layer(name: str) -> bool:
    """Whether the tensor acts behind the layers: final norm, head, pooler, classifier."""
    return layer_index(name) is None and not is_pre_layer(name)


_PAIRS: Mapping[str, tuple[str, ...]] = {
    "lm_head.weight": (
        "model.embed_tokens.weight",
        "model.language_model.embed_tokens.weight",
        "transformer.wte.weight",
        "wte.weight",
        "transformer.word_embeddings.weight",
        "shared.weight",
        "model.shared.weight",
        "model.decoder.embed_tokens.weight",
        "backbone.embeddings.weight",
        "backbone.embedding.weight",
        "model.embeddings.weight",
        "model.word_embeddings.weight",
        "transformer.embed_tokens.weight",
    ),
    "language_model.lm_head.weight": ("language_model.model.embed_tokens.weight",),
    "embed_out.weight": ("gpt_neox.embed_in.weight",),
    "output.weight": ("model.tok_embeddings.weight", "tok_embeddings.weight"),
    "proj_out.weight": ("model.decoder.embed_tokens.weight",),
    "cls.predictions.decoder.weight": ("bert.embeddings.word_embeddings.weight",),
    "lm_head.decoder.weight": ("roberta.embeddings.word_embeddings.weight",),
    "vocab_projector.weight": ("distilbert.embeddings.word_embeddings.weight",),
    "generator_lm_head.weight": ("electra.embeddings.word_embeddings.weight",),
    "decoder.weight": ("model.embeddings.tok_embeddings.weight",),
    "predictions.decoder.weight": ("albert.embeddings.word_embeddings.weight",),
}
_WITH_HEAD = (
    "ForCausalLM",
    "LMHeadModel",
    "MTModel",
    "ForMaskedLM",
    "ForConditionalGeneration",
    "ForPreTraining",
)


def head_and_embedding(names: Collection[str]) -> tuple[str, str] | None:
    """The usual names of output head and token embedding; the head itself may be absent.

    A pair whose head is present is preferred. None if no known embedding is among `names`.
    """
    found = [
        (head, embedding)
        for head, embeddings in _PAIRS.items()
        for embedding in embeddings
        if embedding in names
    ]
    return next((pair for pair in found if pair[0] in names), found[0] if found else None)


def tied_head(names: Collection[str], config: dict[str, Any] | None) -> tuple[str, str] | None:
    """Head and embedding, if the model uses one tensor for both; else None.

    ``tie_word_embeddings`` decides where the config states it. Where it is silent, they are tied
    if the file lacks the head and the architecture is one that has a head.

    Returns:
        (head name, embedding name), such as ``("lm_head.weight", "model.embed_tokens.weight")``.
    """
    pair = head_and_embedding(names)
    tied = config_value(config, "tie_word_embeddings")
    if pair is None or tied is False:
        return None
    architectures = config_value(config, "architectures") or []
    headed = any(str(name).endswith(_WITH_HEAD) for name in architectures)
    implied = pair[0] not in names and headed
    return pair if implied or (tied is True and (headed or pair[0] in names)) else None
