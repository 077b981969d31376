"""Make checkpoints of Llama's shape for benchmarks: a base and experts near it, bfloat16.

    python benchmarks/models.py FOLDER --size 1.1B --experts 3

Weights are random; experts are the base plus a small normal change, rounded to bfloat16, so that
task vectors have the many equal magnitudes that real ones have.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mergewise.checkpoint import create_shard, plan_shards, write_at

if TYPE_CHECKING:
    import torch

SHAPES = {
    # hidden, feed-forward, layers, heads, key-value heads, vocabulary
    "tiny": (32, 64, 2, 4, 4, 64),
    "0.2B": (1024, 2816, 12, 16, 4, 32000),
    "1.1B": (2048, 5632, 22, 32, 4, 32000),
    "1.1B-2L": (2048, 5632, 2, 32, 4, 32000),  # two of its layers
}
SHARD_BYTES = 5_000_000_000


def tensors(size: str) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a Llama of `size`."""
    hidden, wide, layers, heads, kv, vocabulary = SHAPES[size]
    narrow = hidden // heads * kv
    found: list[tuple[str, tuple[int, ...]]] = [("model.embed_tokens.weight", (vocabulary, hidden))]
    for i in range(layers):
        prefix = f"model.layers.{i}"
        found += [
            (f"{prefix}.input_layernorm.weight", (hidden,)),
            (f"{prefix}.self_attn.q_proj.weight", (hidden, hidden)),
            (f"{prefix}.self_attn.k_proj.weight", (narrow, hidden)),
            (f"{prefix}.self_attn.v_proj.weight", (narrow, hidden)),
            (f"{prefix}.self_attn.o_proj.weight", (hidden, hidden)),
            (f"{prefix}.post_attention_layernorm.weight", (hidden,)),
            (f"{prefix}.mlp.gate_proj.weight", (wide, hidden)),
            (f"{prefix}.mlp.up_proj.weight", (wide, hidden)),
            (f"{prefix}.mlp.down_proj.weight", (hidden, wide)),
        ]
    return [*found, ("model.norm.weight", (hidden,)), ("lm_head.weight", (vocabulary, hidden))]


def config(size: str) -> dict[str, object]:
    hidden, wide, layers, heads, kv, vocabulary = SHAPES[size]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocabulary,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def make(folder: Path, size: str, seed: int, change: int | None) -> None:
    """Write one model: the base of `seed`, or the base plus change number `change`."""
    if (folder / "config.json").exists():
        return
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    names = tensors(size)
    layout = plan_shards([(n, "BF16", s) for n, s in names], SHARD_BYTES)[0]
    path = folder / layout.filename
    path.unlink(missing_ok=True)
    file = create_shard(path, layout)
    for i, (name, shape) in enumerate(names):
        weights = _normal(seed, i, shape) * 0.02
        if change is not None:
            # how much a layer changed differs from layer to layer, as in real fine-tunes
            scale = 4e-4 * (1 + i % 5)
            weights = weights.bfloat16().float() + _normal(seed + change + 1, i, shape) * scale
        data = weights.bfloat16().view(torch.uint8).numpy().reshape(-1)
        write_at(file, memoryview(data), layout.offsets[name])
    os.close(file)
    (folder / "config.json").write_text(json.dumps(config(size), indent=2))


def _normal(seed: int, tensor: int, shape: tuple[int, ...]) -> torch.Tensor:
    import numpy as np
    import torch

    generator = np.random.Generator(np.random.PCG64([seed, tensor]))
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))


def make_all(folder: Path, size: str, experts: int = 3, seed: int = 20) -> list[Path]:
    """The base and its experts below `folder`, made if they are not there yet."""
    made = [folder / size / "base", *(folder / size / f"expert_{i}" for i in range(experts))]
    for i, path in enumerate(made):
        make(path, size, seed, None if i == 0 else i - 1)
    return made


def made_apart(folder: Path, size: str, experts: int = 3) -> list[Path]:
    """As `make_all`, in a process of its own: a process started by one that is or was large counts
    that one's memory as its own peak."""
    command = [sys.executable, __file__, str(folder), "--size", size, "--experts", str(experts)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [Path(line) for line in done.stdout.splitlines()]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=sorted(SHAPES), default="1.1B")
    parser.add_argument("--experts", type=int, default=3)
    options = parser.parse_args()
    for path in make_all(options.folder, options.size, options.experts):
        print(path)
