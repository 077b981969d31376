"""What ``config.json`` must and must not say before a checkpoint is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mergewise.checkpoint._files import shown, where
from mergewise.errors import CheckpointError

TEXT_CONFIGS = ("text_config", "llm_config", "language_config")
"""Where multimodal models keep the language model's part."""

_KINDS: dict[str, tuple[type, ...]] = {
    "architectures": (list,),
    "model_type": (str,),
    "tie_word_embeddings": (bool,),
    "dtype": (str, dict),
    "torch_dtype": (str, dict),
    "vocab_size": (int,),
    "num_hidden_layers": (int,),
    "hidden_size": (int, list),
    "text_config": (dict,),
    "quantization_config": (dict,),
    "compression_config": (dict,),
}


def text_config(config: dict[str, Any]) -> dict[str, Any] | None:
    """The nested config of the language model, if there is one."""
    for key in TEXT_CONFIGS:
        if isinstance(config.get(key), dict):
            nested: dict[str, Any] = config[key]
            return nested
    return None


def config_value(config: dict[str, Any] | None, key: str) -> Any:
    """The value of `key` in the config, else in its text config, else None."""
    if config is None:
        return None
    if config.get(key) is not None:
        return config[key]
    nested = text_config(config)
    return nested.get(key) if nested else None


def set_config_value(config: dict[str, Any], key: str, value: object) -> None:
    """Set `key` wherever the config states it, or its text config; else in the config."""
    nested = text_config(config)
    if nested is not None and key in nested:
        nested[key] = value
    if nested is None or key in config or key not in nested:
        config[key] = value


def check_config(config: dict[str, Any], path: Path) -> None:
    """Refuse a config whose known keys have wrong types; raises CheckpointError."""
    nested = text_config(config)
    for part in (config, nested or {}):
        _check_kinds(part, path)


def _check_kinds(config: dict[str, Any], path: Path) -> None:
    for key, kinds in _KINDS.items():
        value = config.get(key)
        if value is None:
            continue
        wrong = not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)
        if wrong or (key == "architectures" and not all(isinstance(a, str) for a in value)):
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise CheckpointError(
                f"{where(path)}: {key} must be {expected}, got {shown(value)}; correct the file"
            )
