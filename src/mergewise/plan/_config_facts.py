"""What configs say of the arithmetic, whichever version of transformers wrote them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergewise.checkpoint import config_value, text_config

_PLAIN = (
    "vocab_size", "max_position_embeddings", "hidden_act", "rms_norm_eps", "num_attention_heads",
)  # fmt: skip


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Keys on which two configs disagree in what they mean, not in how they are written.

    A config of a model with a language part may leave out there what is usual.
    """
    left, right = _facts(one), _facts(other)
    alike = (text_config(one) is None) == (text_config(other) is None)
    return [
        key
        for key in left
        if left[key] != right[key] and (alike or None not in (left[key], right[key]))
    ]


def _facts(config: dict[str, Any]) -> dict[str, Any]:
    heads, width = (config_value(config, key) for key in ("num_attention_heads", "hidden_size"))
    share = None
    if isinstance(heads, int) and isinstance(width, int) and heads > 0:
        share = width // heads
    return {
        **{key: config_value(config, key) for key in _PLAIN},
        **_rotary(config),
        "num_key_value_heads": _or(config_value(config, "num_key_value_heads"), heads),
        "head_dim": _or(config_value(config, "head_dim"), share),
    }


def _rotary(config: dict[str, Any]) -> dict[str, Any]:
    """Rotary embeddings: transformers 5 has in `rope_parameters` what were keys of their own."""
    stated = config_value(config, "rope_parameters")
    stated = stated if isinstance(stated, Mapping) else {}
    local = stated.get("sliding_attention")
    whole = stated.get("full_attention", stated)
    whole = whole if isinstance(whole, Mapping) else {}
    near = local.get("rope_theta") if isinstance(local, Mapping) else None
    return {
        "rope_theta": _or(config_value(config, "rope_theta"), whole.get("rope_theta")),
        "rope_local_base_freq": _or(config_value(config, "rope_local_base_freq"), near),
        "rope_scaling": _scaling(config_value(config, "rope_scaling")) or _scaling(whole) or None,
    }


def _scaling(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {}
    rest = {k: v for k, v in value.items() if k not in ("type", "rope_type", "rope_theta")}
    kind = value.get("rope_type", value.get("type", "default"))
    return {} if kind == "default" and not rest else {"rope_type": kind, **rest}


def _or(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value
