"""Speed and memory of merges, against a plain copy, bare decompositions and mergekit.

    make bench                                          # all of it
    make bench ARGS='--methods linear,ties --sizes 0.2B --runs 5 --no-peer'
    make bench ARGS='--methods tsv_m,iso_c --matrix-sizes 1.1B --matrix-runs 1'

Whole processes are measured, page cache warm. Methods that go block by block stand next to a plain
copy of the same bytes (`plain_copy.py`), so that a ratio holds even where the machine's speed
drifts. Columns:

    merge / copy    wall time of the process less start-up, over the copy's
    process / copy  wall time of the whole process, over the copy's
    start-up        the same command on a model of a few kilobytes
    planned MB      the peak that `mergewise plan` foretells

Methods of singular vectors stand next to the decompositions that their formulas need
(`matrices.py`), by default on two layers of the 1.1 B model: the whole of it takes hours.

mergekit 0.1.5 is run once per method, cold, from `.venv-mergekit` if that exists
(benchmarks/mergekit_reference/install.sh makes it); that takes about ten times as long as the rest.
The last table compares start-up: help, and a merge of a few kilobytes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import matrices
from matrices import MatrixRow
from models import SHAPES, made_apart
from processes import Usage, measure, merging, write_recipe
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
MERGEKIT = HERE.parent / ".venv-mergekit" / "bin" / "mergekit-yaml"


class Case(NamedTuple):
    """A recipe to be measured.

    Attributes:
        each: parameters of every expert; `whole`: of the recipe.
        based: whether the base is named.
        listed: whether it is among the models, too.
        peer: whether mergekit has the method.
    """

    method: str
    each: str = ""
    whole: str = ""
    based: bool = True
    experts: int = 3
    listed: bool = False
    peer: bool = True


SPARSE = "weight: 0.4, density: 0.5"
PUBLISHED = "weight: 0.4, density: 0.2"
OVER_ALL = "granularity: model"

BLOCKS: dict[str, Case] = {
    "linear": Case("linear", "weight: 0.4", based=False),
    "slerp": Case("slerp", "", "t: 0.4", experts=1, listed=True),
    "task_arithmetic": Case("task_arithmetic", "weight: 0.4"),
    "model_stock": Case("model_stock"),
    "ties": Case("ties", SPARSE),
    "dare_ties": Case("dare_ties", SPARSE),
    "della": Case("della", SPARSE + ", epsilon: 0.1"),
    "breadcrumbs": Case("breadcrumbs", SPARSE + ", gamma: 0.01"),
    # thresholds over the whole model
    "ties:model": Case("ties", PUBLISHED, OVER_ALL, peer=False),
    "lota": Case("lota", peer=False),
    "localize_and_stitch": Case("localize_and_stitch", peer=False),
    "pcb": Case("pcb", peer=False),
}
MATRICES: dict[str, Case] = {
    name: Case(name, experts=1 if name == "rotate" else 2, peer=False) for name in matrices.NEEDED
}


@dataclass
class Row:
    """Medians for one method at one size; ratios are medians of paired runs."""

    size: str
    method: str
    wall: float
    cpu: float
    memory: int
    planned: int
    copy: float
    start_up: float
    process_over_copy: float
    merge_over_copy: float
    mergekit_wall: float | None = None
    mergekit_memory: int | None = None


class Bench:
    def __init__(self, folder: Path, runs: int) -> None:
        self.folder = folder
        self.runs = runs
        self.out = folder / "out"

    def recipe(self, size: str, name: str, case: Case) -> tuple[Path, list[Path]]:
        """The recipe of a case, and the models it reads."""
        base, *experts = made_apart(self.folder, size)
        used = experts[: case.experts]
        path = self.folder / f"{size}-{name.replace(':', '-')}.yml"
        models = [*([base] if case.listed else []), *used]
        write_recipe(path, case.method, base if case.based else None, models, case.each, case.whole)
        return path, [*([base] if case.based else []), *used]

    def merge(self, recipe: Path) -> Usage:
        shutil.rmtree(self.out, ignore_errors=True)
        return measure(merging(recipe, self.out))

    def planned(self, recipe: Path) -> int:
        """Peak bytes, as the plan has it."""
        command = [sys.executable, "-m", "mergewise", "plan", str(recipe), "--json", "-q"]
        return int(json.loads(measure(command).output)["peak_memory"][str(matrices.WORKERS)])

    def copy(self, inputs: list[Path]) -> Usage:
        target = self.folder / "copied"
        target.unlink(missing_ok=True)
        files = [str(path / "model.safetensors") for path in inputs]
        return measure([sys.executable, str(HERE / "plain_copy.py"), str(target), *files])

    def mergekit(self, recipe: Path) -> Usage:
        shutil.rmtree(self.out, ignore_errors=True)
        return measure([str(MERGEKIT), str(recipe), str(self.out), "--no-copy-tokenizer"])

    def start_up(self, name: str, case: Case) -> float:
        recipe, _ = self.recipe("tiny", name, case)
        return statistics.median(self.merge(recipe).wall for _ in range(self.runs))

    def start_ups(self, peer: bool) -> dict[str, Usage]:
        """What a command costs that has next to nothing to do."""
        recipe, _ = self.recipe("tiny", "linear", BLOCKS["linear"])
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

    def row(self, size: str, name: str, peer: bool) -> Row:
        """A method that goes block by block, beside a copy."""
        case = BLOCKS[name]
        recipe, inputs = self.recipe(size, name, case)
        start_up = self.start_up(name, case)
        self.copy(inputs)  # page cache
        self.merge(recipe)  # compiled kernels
        pairs = [(self.copy(inputs), self.merge(recipe)) for _ in range(self.runs)]
        merges = [merge for _, merge in pairs]
        other = self.mergekit(recipe) if peer and case.peer else None
        return Row(
            size=size,
            method=name,
            wall=statistics.median(m.wall for m in merges),
            cpu=statistics.median(m.cpu for m in merges),
            memory=max(m.memory for m in merges),
            planned=self.planned(recipe),
            copy=statistics.median(c.wall for c, _ in pairs),
            start_up=start_up,
            process_over_copy=statistics.median(m.wall / c.wall for c, m in pairs),
            merge_over_copy=statistics.median((m.wall - start_up) / c.wall for c, m in pairs),
            mergekit_wall=other.wall if other else None,
            mergekit_memory=other.memory if other else None,
        )

    def matrix_row(self, size: str, name: str, runs: int) -> MatrixRow:
        """A method of singular vectors, beside the decompositions it needs."""
        case = MATRICES[name]
        recipe, inputs = self.recipe(size, name, case)
        start_up, planned = self.start_up(name, case), self.planned(recipe)
        self.copy(inputs)  # page cache
        return matrices.row(
            size, name, case.experts, runs, lambda: (self.merge(recipe), start_up, planned)
        )


def table(rows: list[Row]) -> Table:
    """The results, one row a method and size."""
    shown = Table(title="mergewise against a plain copy of the same bytes")
    for name in (
        "size", "method", "merge / copy", "process / copy", "wall s", "start-up s", "copy s",
        "CPU s", "peak MB", "planned MB", "mergekit s", "faster by", "mergekit MB",
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
            f"{r.memory / 1e6:.0f}", f"{r.planned / 1e6:.0f}", *peer,
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


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=HERE / "out", help="for models and results")
    parser.add_argument("--methods", help=f"of {', '.join([*BLOCKS, *MATRICES])}; default all")
    parser.add_argument("--sizes", default="0.2B,1.1B", help="for methods that go block by block")
    parser.add_argument("--runs", type=int, default=3, help="of those")
    parser.add_argument("--matrix-sizes", default="1.1B-2L", help="for those of singular vectors")
    parser.add_argument("--matrix-runs", type=int, default=1, help="of those")
    parser.add_argument(
        "--peer", action=argparse.BooleanOptionalAction, default=MERGEKIT.exists(),
        help="also run mergekit 0.1.5, once each (default: if it is installed)",
    )  # fmt: skip
    options = parser.parse_args()
    if options.peer and not MERGEKIT.exists():
        parser.error(f"{MERGEKIT} is absent; run benchmarks/mergekit_reference/install.sh first")
    for size in f"{options.sizes},{options.matrix_sizes}".split(","):
        if size not in SHAPES:
            parser.error(f"a size is one of {', '.join(SHAPES)}, got {size}")
    known = [*BLOCKS, *MATRICES]
    options.methods = options.methods.split(",") if options.methods else known
    for name in options.methods:
        if name not in known:
            parser.error(f"--methods: of {', '.join(known)} expected, got {name}")
    return options


def main() -> None:
    options = _options()
    console = Console(width=150)
    bench = Bench(options.folder, options.runs)
    rows: list[Row] = []
    matrix_rows: list[MatrixRow] = []
    result = options.folder / "bench.json"
    for name in options.methods:
        for size in (options.sizes if name in BLOCKS else options.matrix_sizes).split(","):
            if name in BLOCKS:
                rows.append(bench.row(size, name, options.peer))
                console.print(table(rows[-1:]))
            else:
                matrix_rows.append(bench.matrix_row(size, name, options.matrix_runs))
                console.print(matrices.table(matrix_rows[-1:]))
            _keep(result, rows, matrix_rows, {})
    for shown, known in ((table(rows), rows), (matrices.table(matrix_rows), matrix_rows)):
        if known:
            console.print(shown)
    starts = bench.start_ups(options.peer)
    console.print(start_table(starts))
    _keep(result, rows, matrix_rows, starts)
    console.print(f"written to {result}")


def _keep(
    path: Path, rows: list[Row], matrix_rows: list[MatrixRow], starts: dict[str, Usage]
) -> None:
    found = {
        "merges": [asdict(row) for row in rows],
        "matrices": [asdict(row) for row in matrix_rows],
        "start_up": {
            name: {"wall": usage.wall, "cpu": usage.cpu, "memory": usage.memory}
            for name, usage in starts.items()
        },
    }
    path.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
