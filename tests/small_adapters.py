"""Adapters of a few kilobytes, as PEFT saves them, and what they do, computed at once."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from small_models import State

PREFIX = "base_model.model."


def pattern_value(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def write(folder: Path, state: State, config: Mapping[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def lora(
    folder: Path,
    base: State,
    modules: Sequence[str],
    *,
    rank: int = 3,
    alpha: float = 6,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    turned: bool = False,
    embedded: Sequence[str] = (),
    whole: Mapping[str, torch.Tensor] | None = None,
    **config: Any,
) -> Path:
    """A random LoRA of the named modules of `base`; keyword arguments go into its config.

    Args:
        turned: the weights are [inputs, outputs].
        embedded: modules that are embeddings.
        whole: tensors that the adapter replaces.
    """
    draw = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw).mul(0.1).to(dtype)

    state: State = {}
    for module in [*modules, *embedded]:
        weight = base[f"{module}.weight"]
        r = pattern_value(config.get("rank_pattern", {}), module, rank)
        start = f"{PREFIX}{module}."
        if module in embedded:
            state[f"{start}lora_embedding_A"] = random(r, weight.shape[0])
            state[f"{start}lora_embedding_B"] = random(weight.shape[1], r)
        else:
            shape = weight.shape[::-1] if turned else weight.shape
            ones = [1] * (len(shape) - 2)
            state[f"{start}lora_A.weight"] = random(r, *shape[1:])
            state[f"{start}lora_B.weight"] = random(shape[0], r, *ones)
        if config.get("use_dora"):
            outputs = weight.shape[1] if turned or module in embedded else weight.shape[0]
            state[f"{start}lora_magnitude_vector"] = random(outputs).abs() + 0.5
    for name, tensor in (whole or {}).items():
        state[PREFIX + name] = tensor
    told = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "fan_in_fan_out": turned}
    return write(folder, state, told | config)


def dense(base: State, folder: Path) -> State:
    """The base with the adapter in `folder` on top, in float64: what every way must come to."""
    config = json.loads((folder / "adapter_config.json").read_text())
    found = load_file(folder / "adapter_model.safetensors")
    state = {n.removeprefix(PREFIX): t.double() for n, t in found.items()}
    out = {n: t.double() if t.is_floating_point() else t for n, t in base.items()}
    for name, tensor in state.items():
        plain = name.replace(".base_layer.", ".")
        if plain in out:
            out[plain] = tensor
    for name in state:
        module, mark, _ = name.partition(".lora_A.weight")
        embedding, mark_too, _ = name.partition(".lora_embedding_A")
        if mark:
            _add(out, module, state, ".lora_A.weight", ".lora_B.weight", config)
        elif mark_too:
            _add(out, embedding, state, ".lora_embedding_A", ".lora_embedding_B", config)
    return out


def _add(
    out: State, module: str, state: State, a_end: str, b_end: str, config: Mapping[str, Any]
) -> None:
    weight = out[f"{module}.weight"]
    a, b = state[module + a_end].flatten(1), state[module + b_end].flatten(1)
    rank = pattern_value(config.get("rank_pattern", {}), module, config["r"])
    alpha = pattern_value(config.get("alpha_pattern", {}), module, config["lora_alpha"])
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    turned = config["fan_in_fan_out"] or "embedding" in a_end
    delta = scale * (b @ a)
    whole = weight + (delta.T if turned else delta.reshape(weight.shape))
    magnitude = state.get(f"{module}.lora_magnitude_vector")
    if magnitude is not None:
        outputs = whole if turned else whole.flatten(1).T  # [inputs, outputs]
        outputs = outputs * (magnitude.flatten() / outputs.norm(dim=0))
        whole = outputs if turned else outputs.T.reshape(weight.shape)
    out[f"{module}.weight"] = whole
    shift = state.get(f"{module}.lora_B.bias")
    if shift is not None:
        out[f"{module}.bias"] = out[f"{module}.bias"] + scale * shift
