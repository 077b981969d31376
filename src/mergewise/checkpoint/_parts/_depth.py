"""A config for a model made of other layers than the donor's."""

from __future__ import annotations

import copy
import re
from collections.abc import Hashable, Sequence
from typing import Any

from mergewise.checkpoint._config import TEXT_CONFIGS
from mergewise.checkpoint._files import shown
from mergewise.checkpoint._parts._layer_kinds import (
    attention_kind,
    keep_kinds,
    named_types,
    ruled_kinds,
)
from mergewise.errors import CheckpointError, NotBuiltYetError

Config = dict[str, Any]

COUNT_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
"""Where configs state the number of layers."""

_VISION = (*COUNT_KEYS, "depth", "layers")
_AUDIO = ("encoder_layers", *COUNT_KEYS)
_ENCODER = ("encoder_layers", "num_encoder_layers", "num_layers", "num_hidden_layers")
_DECODER = ("decoder_layers", "num_decoder_layers", *COUNT_KEYS)
_PLACES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "vision_tower": (("vision_config", "vision_tower_config"), _VISION),
    "audio_tower": (("audio_config", "speech_config"), _AUDIO),
    "qformer": (("qformer_config",), COUNT_KEYS),
    "encoder": (("encoder", *TEXT_CONFIGS, ""), _ENCODER),
    "decoder": (("decoder", *TEXT_CONFIGS, ""), _DECODER),
}
_LANGUAGE = ((*TEXT_CONFIGS, ""), COUNT_KEYS)

_PER_LAYER = re.compile(
    r".*layer.*|block_types|block_configs|num_(attention|key_value|query|kv)_heads"
    r"|intermediate_size|ffn_multipliers|activation_sparsity_pattern|.*_pattern|attn_type_list"
)
_LAYER_NUMBERS = re.compile(
    r"mlp_only_layers|attn_layer_indices|full_attn_idxs|full_attention_idxs|moe_layers"
    r"|cross_attention_layers|hybrid_layer_ids|full_?att_?block_indexes|global_attn_indexes"
)
_READ_OUT = re.compile(
    r"deepstack_visual_indexes|intermediate_layers_indices|out_(indices|features)"
)
_STAGES = "depths"
"""How many blocks each stage of a vision model has; stages differ in width."""


def layer_count(config: Config | None, module: str = "default") -> int | None:
    """The number of layers a config states for a module (by default the language model's)."""
    found = _place(config, module) if config else None
    return found[0][found[1]] if found else None


def _place(config: Config, module: str) -> tuple[Config, str] | None:
    """The part of the config that describes a module, and its key for the number of layers."""
    names, keys = _PLACES.get(module, _LANGUAGE)
    for name in names:
        part = config.get(name) if name else config
        if not isinstance(part, dict):
            continue
        for key in keys:
            if isinstance(part.get(key), int) and not isinstance(part[key], bool):
                return part, key
    return None


def layer_kinds(config: Config | None, module: str, count: int) -> list[Hashable]:
    """For each of `count` layers, what the config says it is; equal for layers of one kind."""
    place = _place(config, module) if config else None
    if place is None or place[0][place[1]] > count:
        return [()] * count
    part = place[0]
    lists = [v for k, v in part.items() if _is_per_layer(k, v, part[place[1]])]
    numbers = [v for k, v in part.items() if isinstance(v, list) and _LAYER_NUMBERS.fullmatch(k)]
    ruled = ruled_kinds(part, count)
    return [
        (
            repr([v[i] for v in lists if i < len(v)]),
            tuple(i in v for v in numbers),
            ruled[i],
        )
        for i in range(count)
    ]


def _is_per_layer(key: str, value: object, count: int) -> bool:
    if not isinstance(value, list | str) or _LAYER_NUMBERS.fullmatch(key):
        return False
    if isinstance(value, str) and not key.endswith("_pattern"):
        return False
    return len(value) == count and bool(_PER_LAYER.fullmatch(key))


def with_layers(
    config: Config,
    kept: Sequence[int],
    module: str = "default",
    donors: Sequence[Config] | None = None,
) -> Config:
    """A copy of `config` for a model whose layer i is the donor's layer ``kept[i]``.

    The count is changed, lists with one entry a layer (``layer_types``) are put together anew,
    lists of layer numbers (``mlp_only_layers``) are translated, rules for layer i (a period, a
    number of first layers) are checked and rewritten. A layer may be kept repeatedly.

    Args:
        config: of the model that describes everything else.
        kept: a layer's number for each layer of the result.
        module: the module whose layers these are; parts of the config about others stay.
        donors: for each layer of the result, the config of the model it is taken from; by default
            all are `config`.

    Raises:
        CheckpointError: if a config states no layer count, has fewer layers than asked for, or
            cannot say which layer is of which kind.
        NotBuiltYetError: for layouts that cannot be translated.
    """
    donors = donors or [config] * len(kept)
    config = copy.deepcopy(config)
    part, key = _required_place(config, module)
    rows = [_row(donor, index, module) for donor, index in zip(donors, kept, strict=True)]
    whole = [index for _, index, _ in rows] == list(range(part[key]))
    if whole and all(source == part for source, _, _ in rows):
        return config
    _read_last(part, part[key])
    _check_supported(part, part[key], module, config)
    _rearrange(part, rows, part[key])
    _set_count(config, part, key, len(kept), module)
    keep_kinds(part, rows)
    return config


def _required_place(config: Config, module: str) -> tuple[Config, str]:
    place = _place(config, module)
    if place is None:
        keys = ", ".join(_PLACES.get(module, _LANGUAGE)[1])
        raise CheckpointError(f"the config states no number of layers; expected one of {keys}")
    return place


def _row(donor: Config, index: int, module: str) -> tuple[Config, int, int]:
    part, key = _required_place(donor, module)
    count: int = part[key]
    if not 0 <= index < count:
        raise CheckpointError(f"layer {index} asked for, but {key} is {count}")
    return part, index, count


def _set_count(config: Config, part: Config, key: str, count: int, module: str) -> None:
    if module == "encoder" and part.get("num_hidden_layers") == part[key]:
        part["num_hidden_layers"] = count  # BART and Whisper call it by both names
    if module == "encoder" and key == "num_layers" and part.get("num_decoder_layers") is None:
        part["num_decoder_layers"] = part[key]  # T5's decoder is as deep where nothing is said
    if module == "decoder" and key == "num_layers":
        key = "num_decoder_layers"
    part[key] = count
    if part.get("num_nextn_predict_layers"):
        part["num_nextn_predict_layers"] = 0


def _check_supported(part: Config, count: int, module: str, config: Config) -> None:
    if config.get("is_encoder_decoder") and module not in ("encoder", "decoder", "vision_tower"):
        raise NotBuiltYetError(
            "this is an encoder-decoder, and its parts are not told apart by their names; merge "
            "whole models"
        )
    unread = "attention_types" in part and named_types(part, count) is None
    for key in ["attention_types"] * unread + [_STAGES] * (_STAGES in part):
        raise NotBuiltYetError(
            f"the config's {key} cannot be rewritten for other layers yet: {shown(part[key])}; "
            "merge the models whole"
        )
    for key, value in part.items():
        if _READ_OUT.fullmatch(key) and value:
            raise NotBuiltYetError(
                f"the config's {key} ({shown(value)}) names layers of this module that others "
                "read; it cannot be rewritten for other layers yet: merge this module whole"
            )


def _read_last(part: Config, old: int) -> None:
    """A backbone whose output is its last layer's goes on giving its last layer's (DINOv2)."""
    if part.get("out_features") in (None, [], [f"stage{old}"]) and part.get("out_indices") in (
        None, [], [old], [-1],
    ):  # fmt: skip
        for key in ("out_features", "out_indices", "stage_names"):
            part.pop(key, None)


def _rearrange(part: Config, rows: Sequence[tuple[Config, int, int]], count: int) -> None:
    for key, value in part.items():
        if isinstance(value, list) and _LAYER_NUMBERS.fullmatch(key):
            told = [index in (source.get(key) or []) for source, index, _ in rows]
            part[key] = [new for new, listed in enumerate(told) if listed]
        elif _is_per_layer(key, value, count):
            items = [_item(key, *row) for row in rows]
            part[key] = "".join(items) if isinstance(value, str) else items


def _item(key: str, source: Config, index: int, count: int) -> Any:
    value = source.get(key)
    if _is_per_layer(key, value, count) and value is not None:
        return value[index]
    if key == "layer_types" and (kind := attention_kind(source, index, count)):
        return kind
    raise CheckpointError(
        f"the config's {key} lists something for each layer, and the config of another model, "
        f"whose layer {index} is taken, does not; bring the configs to one form"
    )
