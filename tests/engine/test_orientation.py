"""Weights stored [inputs, outputs] merge as their transposes do, from files and in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mergewise import merge, merge_state_dicts

METHODS = ["ext_sub", "svc", "knots", "widen", "wudi", "copy_region"]
PARAMETERS = {"copy_region": {"width": 0.5}}
GPT2 = {"h.0.mlp.c_fc.weight": (48, 12), "h.0.mlp.c_proj.weight": (12, 48)}
GPT_OSS = {
    "layers.0.mlp.experts.gate_up_proj": (3, 20, 12),
    "layers.0.mlp.experts.down_proj": (3, 12, 10),
}
SQUARE = {  # as wide inside as outside, as in gpt-oss's published sizes
    "layers.0.mlp.experts.gate_up_proj": (3, 24, 12),
    "layers.0.mlp.experts.down_proj": (3, 12, 12),
}
State = dict[str, Tensor]


def family(shapes: dict[str, tuple[int, ...]], experts: int) -> list[State]:
    draw = torch.Generator().manual_seed(5)
    base = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    tuned = [
        {n: t + 0.1 * torch.randn(t.shape, generator=draw) for n, t in base.items()}
        for _ in range(experts)
    ]
    return [base, *tuned]


def turned(state: State) -> State:
    """Every matrix stored the other way round, with biases by which GPT-2's layout is told."""
    out = {name: tensor.mT.contiguous() for name, tensor in state.items()}
    for name, tensor in state.items():
        if tensor.dim() == 2:
            out[name.replace("weight", "bias")] = torch.zeros(tensor.shape[0])
    return out


def merged_files(method: str, states: list[State], folder: Path) -> State:
    paths = []
    for i, state in enumerate(states):
        path = folder / f"model{i}"
        path.mkdir(parents=True)
        save_file(state, path / "model.safetensors")
        paths.append(str(path))
    models = [{"model": path} for path in paths[1:]]
    recipe = {"merge_method": method, "base_model": paths[0], "models": models}
    merge(recipe | {"parameters": PARAMETERS.get(method, {})}, folder / "out")
    return load_file(folder / "out" / "model.safetensors")


@pytest.mark.parametrize("shapes", [GPT2, GPT_OSS, SQUARE], ids=["gpt2", "gpt_oss", "square"])
@pytest.mark.parametrize("method", METHODS)
def test_as_the_transposes(method: str, shapes: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    states = family(shapes, 1 if method == "copy_region" else 2)
    given = PARAMETERS.get(method, {})
    straight = merge_state_dicts(states[1:], method, base=states[0], parameters=given)
    other = [turned(state) for state in states]
    memory = merge_state_dicts(other[1:], method, base=other[0], parameters=given)
    files = merged_files(method, other, tmp_path)
    for name, tensor in straight.items():
        torch.testing.assert_close(memory[name].mT, tensor, rtol=1e-4, atol=1e-5)
        assert torch.equal(files[name], memory[name])
