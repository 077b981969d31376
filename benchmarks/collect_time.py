"""What collecting costs beside the bare forward passes.

    python benchmarks/collect_time.py [--layers 22] [--texts 15] [--length 512] [--pairs 3]

A random bfloat16 model of a 1.1 B Llama's shape is run on random token ids, once bare and once
with the statistic that LEWIS reads, in turn. Prints the median ratio of the pairs.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mergewise.evidence import collect, open_model
from mergewise.evidence.models._call import call

SHAPE = {
    "hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32,
    "num_key_value_heads": 4, "vocab_size": 32000,
}  # fmt: skip


def main() -> None:
    options = _options()
    folder = Path(tempfile.mkdtemp(prefix="mergewise-time-"))
    try:
        torch.manual_seed(0)
        config = LlamaConfig(**SHAPE, num_hidden_layers=options.layers)
        torch.set_default_dtype(getattr(torch, options.dtype))
        LlamaForCausalLM(config).save_pretrained(folder / "model")
        torch.set_default_dtype(torch.float32)
        live = open_model(folder / "model", "causal_lm")
        shape = (options.texts, options.length)
        ids = torch.randint(0, SHAPE["vocab_size"], shape)
        batches = [
            {"input_ids": part, "attention_mask": torch.ones_like(part)}
            for part in ids.split(options.batch_size)
        ]
        pairs = [_pair(live, batches, options.statistics, folder) for _ in range(options.pairs)]
    finally:
        shutil.rmtree(folder)
    for bare, whole in pairs:
        print(f"bare {bare:.1f} s, with {options.statistics} {whole:.1f} s: {whole / bare:.2f}")
    ratio = statistics.median(whole / bare for bare, whole in pairs)
    print(f"median of {len(pairs)} pairs: {ratio:.2f} times the bare forward passes")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--texts", type=int, default=15)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--statistics", default="input_moments")
    return parser.parse_args()


def _pair(live, batches, names, folder: Path) -> tuple[float, float]:
    start = time.perf_counter()
    with torch.no_grad():
        for batch in batches:
            call(live, batch)
    bare = time.perf_counter() - start
    start = time.perf_counter()
    collect(names, live, batches, folder / "found.evd", overwrite=True)
    return bare, time.perf_counter() - start


if __name__ == "__main__":
    main()
