"""Speed and memory of merges, against a plain copy and against mergekit.

    make bench                                       # both sizes, every method
    make bench ARGS='--sizes 0.2B --methods linear,ties --runs 5 --no-peer'

Whole processes are measured, page cache warm, each method next to a plain copy of the same bytes
(`plain_copy.py`), so that a ratio holds even where the machine's speed drifts. Columns:

    merge / copy    wall time of the process less start-up, over the copy's
    process / copy  wall time of the whole process, over the copy's
    start-up        the same command on a model of a few kilobytes

mergekit 0.1.5 is run once per method, cold, from `.venv-mergekit` if that exists
(benchmarks/mergekit_reference/install.sh makes it); that takes about ten times as long as the rest.
The second table compares start-up: help, and a merge of a few kilobytes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from models import SHAPES, made_apart
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
MERGEKIT = HERE.parent / ".venv-mergekit" / "bin" / "mergekit-yaml"

# parameters per expert, of the whole recipe, whether the base is named, experts used
METHODS: dict[str, tuple[str, str, bool, int]] = {
    "linear": ("weight: 0.4", "", False, 3),
    "slerp": ("", "parameters: {t: 0.4}", True, 1),
    "task_arithmetic": ("weight: 0.4", "", True, 3),
    "model_stock": ("", "", True, 3),
    "ties": ("weight: 0.4, density: 0.5", "", True, 3),
    "dare_ties": ("weight: 0.4, density: 0.5", "", True, 3),
    "della": ("weight: 0.4, density: 0.5, epsilon: 0.1", "", True, 3),
    "breadcrumbs": ("weight: 0.4, density: 0.5, gamma: 0.01", "", True, 3),
}


@dataclass
class Usage:
    """One finished process: seconds of wall and processor time, peak resident bytes."""

    wall: float
    cpu: float
    memory: int


@dataclass
class Row:
    """Medians for one method at one size; ratios are medians of paired runs."""

    size: str
    method: str
    wall: float
    cpu: float
    memory: int
    copy: float
    start_up: float
    process_over_copy: float
    merge_over_copy: float
    mergekit_wall: float | None = None
    mergekit_memory: int | None = None


def measure(command: Sequence[str]) -> Usage:
    """Run a command to its end.

    Raises:
        RuntimeError: with the end of its output, if it fails.
    """
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{output.decode()[-2000:]}")
    return Usage(wall, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)


def write_recipe(path: Path, method: str, models: list[Path]) -> list[Path]:
    """Write a recipe; returns the models it reads."""
    each, top, with_base, experts = METHODS[method]
    lines = [f"merge_method: {method}", "dtype: bfloat16", *([top] if top else [])]
    if with_base:
        lines.append(f"base_model: {models[0]}")
    lines.append("models:")
    used = models[1 : 1 + experts]
    for model in [*([models[0]] if method == "slerp" else []), *used]:
        lines.append(f"  - model: {model}")
        if each:
            lines.append(f"    parameters: {{{each}}}")
    path.write_text("\n".join(lines) + "\n")
    return [*([models[0]] if with_base else []), *used]


class Bench:
    def __init__(self, folder: Path, runs: int) -> None:
        self.folder = folder
        self.runs = runs
        self.out = folder / "out"

    def merge(self, recipe: Path) -> Usage:
        shutil.rmtree(self.out, ignore_errors=True)
        return measure(
            [sys.executable, "-m", "mergewise", "merge", str(recipe), str(self.out), "-q"]
        )

    def copy(self, inputs: list[Path]) -> Usage:
        target = self.folder / "copied"
        target.unlink(missing_ok=True)
        files = [str(path / "model.safetensors") for path in inputs]
        script = [sys.executable, str(HERE / "plain_copy.py"), str(target), *files]
        return measure(script)

    def mergekit(self, recipe: Path) -> Usage:
        shutil.rmtree(self.out, ignore_errors=True)
        return measure([str(MERGEKIT), str(recipe), str(self.out), "--no-copy-tokenizer"])

    def start_up(self, method: str) -> float:
        models = made_apart(self.folder, "tiny")
        recipe = self.folder / f"tiny-{method}.yml"
        write_recipe(recipe, method, models)
        return statistics.median(self.merge(recipe).wall for _ in range(self.runs))

    def start_ups(self, peer: bool) -> dict[str, Usage]:
        """What a command costs that has next to nothing to do."""
        models = made_apart(self.folder, "tiny")
        recipe = self.folder / "tiny-linear.yml"
        write_recipe(recipe, "linear", models)
        commands = {
            "mergewise --help": lambda: measure([sys.executable, "-m", "mergewise", "--help"]),
            "mergewise plan": lambda: measure(
                [sys.executable, "-m", "mergewise", "plan", str(recipe)]
            ),
            "mergewise merge": lambda: self.merge(recipe),
        }
        if peer:
            commands["mergekit-yaml --help"] = lambda: measure([str(MERGEKIT), "--help"])
            commands["mergekit-yaml"] = lambda: self.mergekit(recipe)
        return {
            name: min((run() for _ in range(self.runs)), key=lambda usage: usage.wall)
            for name, run in commands.items()
        }

    def row(self, size: str, method: str, models: list[Path]) -> Row:
        recipe = self.folder / f"{size}-{method}.yml"
        inputs = write_recipe(recipe, method, models)
        start_up = self.start_up(method)
        self.copy(inputs)  # page cache
        self.merge(recipe)  # compiled kernels
        pairs = [(self.copy(inputs), self.merge(recipe)) for _ in range(self.runs)]
        merges = [merge for _, merge in pairs]
        return Row(
            size=size,
            method=method,
            wall=statistics.median(m.wall for m in merges),
            cpu=statistics.median(m.cpu for m in merges),
            memory=max(m.memory for m in merges),
            copy=statistics.median(c.wall for c, _ in pairs),
            start_up=start_up,
            process_over_copy=statistics.median(m.wall / c.wall for c, m in pairs),
            merge_over_copy=statistics.median((m.wall - start_up) / c.wall for c, m in pairs),
        )


def table(rows: list[Row]) -> Table:
    """The results, one row a method and size."""
    shown = Table(title="mergewise against a plain copy of the same bytes")
    for name in (
        "size", "method", "merge / copy", "process / copy", "wall s", "start-up s", "copy s",
        "CPU s", "peak MB", "mergekit s", "faster by", "mergekit MB",
    ):  # fmt: skip
        shown.add_column(name, justify="left" if name in ("size", "method") else "right")
    for r in rows:
        peer = ("", "", "")
        if r.mergekit_wall and r.mergekit_memory:
            peer = (
                f"{r.mergekit_wall:.0f}",
                f"{r.mergekit_wall / r.wall:.0f}×",
                f"{r.mergekit_memory / 1e6:.0f}",
            )
        shown.add_row(
            r.size, r.method, f"{r.merge_over_copy:.2f}", f"{r.process_over_copy:.2f}",
            f"{r.wall:.2f}", f"{r.start_up:.2f}", f"{r.copy:.2f}", f"{r.cpu:.1f}",
            f"{r.memory / 1e6:.0f}", *peer,
        )  # fmt: skip
    return shown


def start_table(starts: dict[str, Usage]) -> Table:
    """Start-up costs, the fastest of the runs."""
    shown = Table(title="start-up: help, and a merge of a few kilobytes")
    for name in ("command", "wall s", "CPU s", "peak MB"):
        shown.add_column(name, justify="left" if name == "command" else "right")
    for name, usage in starts.items():
        row = (f"{usage.wall:.2f}", f"{usage.cpu:.2f}", f"{usage.memory / 1e6:.0f}")
        shown.add_row(name, *row)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=HERE / "out", help="for models and results")
    parser.add_argument("--sizes", default="0.2B,1.1B")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--peer", action=argparse.BooleanOptionalAction, default=MERGEKIT.exists(),
        help="also run mergekit 0.1.5, once each (default: if it is installed)",
    )  # fmt: skip
    options = parser.parse_args()
    if options.peer and not MERGEKIT.exists():
        parser.error(f"{MERGEKIT} is absent; run benchmarks/mergekit_reference/install.sh first")
    console = Console(width=150)
    bench = Bench(options.folder, options.runs)
    rows: list[Row] = []
    for size in options.sizes.split(","):
        if size not in SHAPES:
            parser.error(f"--sizes: one of {', '.join(SHAPES)} expected, got {size}")
        console.print(f"making models of {size} in {options.folder}")
        models = made_apart(options.folder, size)
        for method in options.methods.split(","):
            row = bench.row(size, method, models)
            if options.peer:
                peer = bench.mergekit(options.folder / f"{size}-{method}.yml")
                row.mergekit_wall, row.mergekit_memory = peer.wall, peer.memory
            rows.append(row)
            console.print(table([row]))
    console.print(table(rows))
    starts = bench.start_ups(options.peer)
    console.print(start_table(starts))
    result = options.folder / "bench.json"
    found = {
        "merges": [asdict(row) for row in rows],
        "start_up": {name: asdict(usage) for name, usage in starts.items()},
    }
    result.write_text(json.dumps(found, indent=1))
    console.print(f"written to {result}")


if __name__ == "__main__":
    main()
