"""A config for a model made of other layers than the donor's."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

from mergewise.checkpoint._config import text_config
from mergewise.checkpoint._files import shown
from mergewise.errors import CheckpointError, NotBuiltYetError

COUNT_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
"""Where configs state the number of layers."""

_PER_LAYER = re.compile(
    r".*layer.*|block_types|block_configs|num_(attention|key_value|query|kv)_heads"
    r"|intermediate_size|ffn_multipliers|activation_sparsity_pattern|.*_pattern"
)
_LAYER_NUMBERS = re.compile(
    r"mlp_only_layers|attn_layer_indices|full_attn_idxs|full_attention_idxs"
    r"|cross_attention_layers|hybrid_layer_ids"
)
_UNCLEAR = {"attention_types"}


def layer_count(config: dict[str, Any] | None) -> int | None:
    """The number of layers a config states, at its top or in its text config; else None."""
    found = _place(config) if config else None
    return found[0][found[1]] if found else None


def _place(config: dict[str, Any]) -> tuple[dict[str, Any], str] | None:
    for part in (text_config(config) or {}, config):
        for key in COUNT_KEYS:
            if isinstance(part.get(key), int) and not isinstance(part[key], bool):
                return part, key
    return None


def with_layers(config: dict[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """A copy of `config` for a model whose layer i is the donor's layer ``kept[i]``.

    The count is changed, lists with one entry a layer (``layer_types``) are put together anew,
    lists of layer numbers (``mlp_only_layers``) are translated. A layer may be kept repeatedly.

    Raises:
        CheckpointError: if the config states no layer count, or has fewer layers than asked for.
        NotBuiltYetError: for encoder-decoder models and layouts that cannot be translated.
    """
    config = copy.deepcopy(config)
    place = _place(config)
    if place is None:
        raise CheckpointError(
            f"the config states no number of layers; expected one of {', '.join(COUNT_KEYS)}"
        )
    part, key = place
    count = part[key]
    outside = [index for index in kept if not 0 <= index < count]
    if outside:
        raise CheckpointError(f"layer {outside[0]} asked for, but {key} is {count}")
    if list(kept) != list(range(count)):
        _check_supported(config, part)
        _rearrange(part, kept, count)
        part[key] = len(kept)
    return config


def _check_supported(config: dict[str, Any], part: dict[str, Any]) -> None:
    if config.get("is_encoder_decoder"):
        raise NotBuiltYetError("slices of encoder-decoder models are not built yet; merge whole")
    for key in _UNCLEAR & part.keys():
        raise NotBuiltYetError(
            f"the config's {key} cannot be rewritten for other layers yet: {shown(part[key])}; "
            "merge the models whole"
        )


def _rearrange(part: dict[str, Any], kept: Sequence[int], count: int) -> None:
    for key, value in part.items():
        if not isinstance(value, list):
            continue
        if _LAYER_NUMBERS.fullmatch(key):
            part[key] = [new for new, old in enumerate(kept) if old in value]
        elif len(value) == count and _PER_LAYER.fullmatch(key):
            part[key] = [value[index] for index in kept]
