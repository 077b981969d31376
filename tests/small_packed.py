"""Small quantised checkpoints, and a way to read every tensor as the engine does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from small_models import State

from mergewise import allow
from mergewise.checkpoint import Checkpoint, FileReader, fetched, open_reference
from mergewise.engine._schedule import Scheduler
from mergewise.engine._sources import file_source


def write_packed(
    folder: Path, state: State, settings: Mapping[str, Any] | None, config: Mapping[str, Any] = {}
) -> Path:
    """A folder with these tensors, and a config that says how they are quantised."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: t.contiguous() for n, t in state.items()}, folder / "model.safetensors")
    more = {} if settings is None else {"quantization_config": dict(settings)}
    (folder / "config.json").write_text(json.dumps({**config, **more}))
    return folder


def opened(path: Path | str) -> Checkpoint:
    with allow(dequantize=True):
        return open_reference(path)


def read_all(path: Path | str, step: int = 1000) -> State:
    """Every tensor as the engine reads it, in pieces of `step` elements, unrounded."""
    checkpoint = fetched(opened(path))
    found = {}
    with FileReader(checkpoint.stamps) as reader:
        for name, ref in checkpoint.tensors.items():
            source = file_source("m", ref, reader, 0)
            Scheduler(1).run_one(source.prepare())
            pieces = [
                source.read(at, min(step, ref.numel - at), 0).clone()
                for at in range(0, ref.numel, step)
            ]
            found[name] = torch.cat(pieces).reshape(ref.shape)
    return found


def fp8_blocks(weight: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and ``weight_scale_inv`` of a matrix, a scale for each block x block codes."""
    rows, columns = weight.shape
    down, across = -(-rows // block), -(-columns // block)
    whole = torch.zeros(down * block, across * block)
    whole[:rows, :columns] = weight.float()
    blocks = whole.view(down, block, across, block)
    scale = blocks.abs().amax(dim=(1, 3)).clamp_(min=1e-6) / 448
    codes = (blocks / scale[:, None, :, None]).reshape(whole.shape)[:rows, :columns]
    return codes.to(torch.float8_e4m3fn), scale
