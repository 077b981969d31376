"""The parts of a model (language tower, vision tower, encoder, decoder), from tensor names.

No list of architectures: a tensor's module shows in the words of its name before the layer's
number. The modules have mergekit's names where it has any (`text_decoder`, `vision_tower`,
`multi_modal_projector`, `encoder`, `decoder`, `shared`, `default`).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

from mergewise.checkpoint._parts._layers import (
    LayerGroup,
    find_layers,
    head_and_embedding,
    layer_prefix,
    main_layers,
)

DEFAULT = "default"
TEXT = "text_decoder"
SHARED = "shared"

_SIDES = {
    "multi_modal_projector": re.compile(
        r"multi_?modal_(projector|embedder)|mm_projector|(?!vocab_)\w+_projector|projector|connector|aligner"
        r"|(\w+_)?merger(_list)?|modality_projection|(text|visual|vision|audio|language)_projection"
        r"|image_newline|embed_vision|embed_audio|logit_scale|logit_bias"
    ),
    "vision_tower": re.compile(
        r"vision_tower|vision_model|vision_encoder|vision_backbone|vision|visual|image_encoder"
    ),
    "audio_tower": re.compile(r"audio_tower|audio_model|audio_encoder|audio|speech_encoder"),
    "qformer": re.compile(r"qformer|query_tokens"),
}
_ALIASES = {
    TEXT: ("language_model", "text_model", "text_tower", "decoder", "llm", "text_encoder"),
    "vision_tower": ("vision_model", "visual", "vision_encoder", "vision"),
    "audio_tower": ("audio_model", "audio_encoder", "audio"),
    "multi_modal_projector": ("projector", "mm_projector", "connector", "merger"),
    DEFAULT: ("decoder", "encoder", TEXT, "model"),
}


@dataclass(frozen=True)
class ModelModule:
    """A part of a model.

    Attributes:
        name: what it is called in every model that has such a part.
        tensors: their names, in the order of the files; never empty.
        layers: the repeated layers that slices count; None without any.
    """

    name: str
    tensors: tuple[str, ...]
    layers: LayerGroup | None


def find_modules(names: Collection[str]) -> dict[str, ModelModule]:
    """The modules that a model's tensors fall into, by name; together they hold every tensor.

    A model without parts is one module called `default`. An encoder-decoder has `encoder`,
    `decoder` and, for what both use, `shared`. A model with a vision or audio part has
    `text_decoder` beside that; output heads go with their embedding.
    """
    sides = {name: _side(name) for name in names}
    plain = [name for name in names if sides[name] is None]
    groups = [group for group in find_layers(plain) if group.tensors > 1]
    if not groups:  # a vision model alone, or no layers at all
        return {DEFAULT: ModelModule(DEFAULT, tuple(names), main_layers(names))} if names else {}
    pair = _encoder_decoder(groups)
    rest = SHARED if pair else TEXT if len(plain) < len(names) else DEFAULT
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(sides[name] or _plain_module(name, pair) or rest, []).append(name)
    if pair:
        _follow(found, names)
    return {name: _module(name, its) for name, its in found.items()}


def _module(name: str, tensors: list[str]) -> ModelModule:
    return ModelModule(name, tuple(tensors), main_layers(tensors))


def _side(name: str) -> str | None:
    """The side module that a word of the name, before any layer's number, tells."""
    prefix = layer_prefix(name)
    return _told(name if prefix is None else prefix.removesuffix("."))


@lru_cache(1 << 12)  # the layers of a model share a handful of prefixes
def _told(start: str) -> str | None:
    words = start.split(".")
    for module, pattern in _SIDES.items():
        if any(pattern.fullmatch(word) for word in words):
            return module
    return None


def _encoder_decoder(groups: list[LayerGroup]) -> tuple[str, str] | None:
    """What the names of encoder and decoder begin with, if the model has both."""
    starts = {group.prefix for group in groups}
    for start in sorted(starts):
        words = start.split(".")
        for i, word in enumerate(words):
            if word != "encoder":
                continue
            stem = "".join(f"{before}." for before in words[:i])
            if any(other.startswith(f"{stem}decoder.") for other in starts):
                return f"{stem}encoder.", f"{stem}decoder."
    return None


def _plain_module(name: str, pair: tuple[str, str] | None) -> str | None:
    if pair is None:
        return None
    return next((m for m, start in zip(_TWO, pair, strict=True) if name.startswith(start)), None)


_TWO = ("encoder", "decoder")


def _follow(found: dict[str, list[str]], names: Collection[str]) -> None:
    """Put an output head outside both towers where its embedding is."""
    heads = head_and_embedding(names)
    if heads is None or heads[0] not in found.get(SHARED, ()):
        return
    home = next(module for module, its in found.items() if heads[1] in its)
    if home != SHARED:
        found[SHARED].remove(heads[0])
        found[home].append(heads[0])
        if not found[SHARED]:
            del found[SHARED]


def module_called(name: str, modules: dict[str, ModelModule]) -> ModelModule | None:
    """The module that a recipe means by `name`; None if there is no such one.

    Beside its own name, a module may be called by a usual other one (`language_model`), or by
    what the names of its layers begin with (``model.visual.blocks``).
    """
    if name in modules:
        return modules[name]
    if len(modules) == 1 and name in (*_ALIASES[DEFAULT], *_ALIASES[TEXT]):
        return next(iter(modules.values()))
    for module in modules.values():
        start = module.layers.prefix if module.layers else ""
        if name in _ALIASES.get(module.name, ()) or (start and name.rstrip(".") + "." == start):
            return module
    return None
