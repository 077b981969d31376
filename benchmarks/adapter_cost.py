"""What four LoRAs cost as inputs, beside the four dense models that they make.

    python benchmarks/adapter_cost.py [--size 1.1B] [--rank 16] [--runs 5] [--methods ties,linear]

Makes a base of Llama's shape, adapters of all its linear modules, and, by merging each alone, the
dense models. Then every method is run on `BASE+ADAPTER` and on the dense models, whole processes
in turn, page cache warm; the ratio is that of the medians. With `dtype: bfloat16` in the recipe,
an adapter's model is rounded as the dense one was, and both write the same bytes; with `--dtype
none` adapters are not rounded. The share of elements that differ is measured too. The folder takes
16 GB for models of 1.1 B; it is left there unless `--clean`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from models import SHAPES, made_apart, tensors
from processes import Usage, measure, merging, write_recipe
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
METHODS = {
    "linear": ("weight: 0.25", False),
    "task_arithmetic": ("weight: 0.3", True),
    "ties": ("weight: 0.3, density: 0.5", True),
    "dare_ties": ("weight: 0.3, density: 0.5", True),
}


@dataclass
class Row:
    """Medians of wall and processor seconds; ratios of medians; peak resident bytes."""

    method: str
    dense_wall: float
    adapters_wall: float
    ratio: float
    dense_cpu: float
    adapters_cpu: float
    cpu_ratio: float
    dense_memory: int
    adapters_memory: int
    differing: float


def make_adapter(folder: Path, size: str, rank: int, seed: int) -> None:
    """A random LoRA of all linear modules but the head, its change like a fine-tuning's."""
    import torch
    from safetensors.torch import save_file

    if (folder / "adapter_config.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    draw = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in tensors(size):
        if not name.endswith("proj.weight"):
            continue
        start = "base_model.model." + name.removesuffix("weight")
        a = torch.randn(rank, shape[1], generator=draw) / shape[1] ** 0.5
        b = torch.randn(shape[0], rank, generator=draw) * 0.02
        state[f"{start}lora_A.weight"], state[f"{start}lora_B.weight"] = a, b
    save_file({n: t.bfloat16() for n, t in state.items()}, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": "all-linear",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def make_dense(base: Path, adapter: Path, out: Path, recipe: Path) -> None:
    """The model that an adapter makes of the base, written."""
    if (out / "config.json").exists():
        return
    write_recipe(recipe, "linear", None, [f"{base}+{adapter}"], "weight: 1")
    measure(merging(recipe, out))


class Cost:
    """The models of one size, and what their merges cost."""

    def __init__(self, folder: Path, size: str, rank: int, count: int) -> None:
        self.folder = folder / f"adapters-{size}"
        [self.base] = made_apart(folder, size, experts=0)
        # torch in this process would count as the peak of those that it starts
        command = [sys.executable, __file__, "--folder", str(folder), "--size", size]
        subprocess.run([*command, "--rank", str(rank), "--adapters", str(count), "--only-make"],
                       check=True)  # fmt: skip
        self.dense, self.adapted = [], []
        for i in range(count):
            adapter, dense = self.folder / f"adapter_{i}", self.folder / f"dense_{i}"
            make_dense(self.base, adapter, dense, self.folder / "one.yml")
            self.dense.append(str(dense))
            self.adapted.append(f"{self.base}+{adapter}")

    def row(self, method: str, runs: int, dtype: str) -> Row:
        each, based = METHODS[method]
        recipes = {}
        for kind, models in (("dense", self.dense), ("adapters", self.adapted)):
            recipes[kind] = self.folder / f"{method}-{kind}.yml"
            write_recipe(
                recipes[kind], method, self.base if based else None, models, each, dtype=dtype
            )
        for kind in recipes:  # page cache, compiled kernels
            self._merge(recipes, kind)
        differing = self._differing()
        runs_of = {"dense": list[Usage](), "adapters": list[Usage]()}
        for _ in range(runs):
            for kind, found in runs_of.items():
                found.append(self._merge(recipes, kind))
        walls, cpus = (
            {k: statistics.median(getattr(u, what) for u in us) for k, us in runs_of.items()}
            for what in ("wall", "cpu")
        )
        most = {k: max(u.memory for u in us) for k, us in runs_of.items()}
        return Row(
            method, walls["dense"], walls["adapters"], walls["adapters"] / walls["dense"],
            cpus["dense"], cpus["adapters"], cpus["adapters"] / cpus["dense"],
            most["dense"], most["adapters"], differing,
        )  # fmt: skip

    def _merge(self, recipes: dict[str, Path], kind: str) -> Usage:
        out = self.folder / f"out-{kind}"
        shutil.rmtree(out, ignore_errors=True)
        return measure(merging(recipes[kind], out))

    def _differing(self) -> float:
        """Share of elements that the two merges do not have alike."""
        code = (
            "import sys, numpy as np\n"
            "a, b = (np.memmap(p, dtype=np.uint16, mode='r', offset=int(o)) for p, o in "
            "zip(sys.argv[1:3], sys.argv[3:]))\n"
            "print(np.count_nonzero(a != b) / len(a))"
        )
        paths = [
            self.folder / f"out-{kind}" / "model.safetensors" for kind in ("dense", "adapters")
        ]
        starts = [str(8 + int.from_bytes(p.open("rb").read(8), "little")) for p in paths]
        command = [sys.executable, "-c", code, *map(str, paths), *starts]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def table(rows: list[Row]) -> Table:
    shown = Table(title="adapters beside the dense models that they make")
    for name in ("method", "dense s", "adapters s", "ratio", "dense CPU s", "adapters CPU s",
                 "CPU ratio", "dense MB", "adapters MB", "differing"):  # fmt: skip
        shown.add_column(name, justify="left" if name == "method" else "right")
    for r in rows:
        shown.add_row(
            r.method, f"{r.dense_wall:.2f}", f"{r.adapters_wall:.2f}", f"{r.ratio:.2f}",
            f"{r.dense_cpu:.1f}", f"{r.adapters_cpu:.1f}", f"{r.cpu_ratio:.2f}",
            f"{r.dense_memory / 1e6:.0f}", f"{r.adapters_memory / 1e6:.0f}", f"{r.differing:.1e}",
        )  # fmt: skip
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=HERE / "out", help="for models and results")
    parser.add_argument("--size", choices=sorted(SHAPES), default="1.1B")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--dtype", choices=("bfloat16", "none"), default="bfloat16")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--clean", action="store_true", help="delete the models at the end")
    parser.add_argument("--only-make", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only_make:
        for i in range(options.adapters):
            folder = options.folder / f"adapters-{options.size}" / f"adapter_{i}"
            make_adapter(folder, options.size, options.rank, seed=i)
        return
    console = Console(width=150)
    cost = Cost(options.folder, options.size, options.rank, options.adapters)
    rows = []
    for method in options.methods.split(","):
        rows.append(cost.row(method, options.runs, options.dtype))
        console.print(table(rows[-1:]))
    console.print(table(rows))
    result = options.folder / f"adapter_cost-{options.size}.json"
    result.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    if options.clean:
        shutil.rmtree(cost.folder)
        shutil.rmtree(cost.base.parent)


if __name__ == "__main__":
    main()
