"""Peak memory of RegMean of two large models.

    python benchmarks/regmean_memory.py [--size 1.1B]

A random bfloat16 checkpoint of Llama's shape, two experts and a random Gram matrix for every
linear layer of each are made in a temporary folder (for 1.1B: 6.6 GB of models, 10 GB of Gram
matrices), and `mergewise merge` runs on them in a process of its own, whose largest resident
memory the system reports. Exit code 1 if the limit is exceeded.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from models import SHAPES, made_apart, tensors

if TYPE_CHECKING:
    import torch

LIMIT = 3_000_000_000
TOKENS = 1000
_ROWS = 512


def main() -> int:
    options = _options()
    if options.grams:
        _write_grams(options.grams, options.size, options.seed)
        return 0
    folder = Path(tempfile.mkdtemp(prefix="mergewise-regmean-", dir=options.folder))
    try:
        _, *experts = made_apart(folder, options.size, experts=2)
        recipe = _recipe(folder, experts, options)
        command = [sys.executable, "-m", "mergewise", "merge", str(recipe), str(folder / "out")]
        if options.workers:
            command += ["--workers", str(options.workers)]
        peak, seconds = _run(command)
        size = sum(path.stat().st_size for path in folder.glob("*.gram"))
    finally:
        shutil.rmtree(folder)
    print(f"models         2 of {options.size}, bfloat16")
    print(f"Gram matrices  {size / 1e9:.2f} GB, float32")
    print(f"wall time      {seconds:.0f} s, {options.workers or os.cpu_count()} workers")
    print(f"peak memory    {peak / 1e6:.0f} MB resident (limit {LIMIT / 1e6:.0f})")
    return int(peak > LIMIT)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(SHAPES), default="1.1B")
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--folder", type=Path, default=None, help="where the temporary folder is")
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--grams", type=Path, default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


def _recipe(folder: Path, experts: list[Path], options: argparse.Namespace) -> Path:
    lines = ["merge_method: regmean", "models:"]
    for i, expert in enumerate(experts):
        file = folder / f"{expert.name}.gram"
        # apart: a process started by a large one counts that one's memory as its own peak
        asked = ["--grams", str(file), "--size", options.size, "--seed", str(i)]
        subprocess.run([sys.executable, __file__, *asked], check=True)
        lines += [f"  - model: {expert}", f"    evidence: {file}"]
    (folder / "regmean.yml").write_text("\n".join(lines) + "\n")
    return folder / "regmean.yml"


def _write_grams(path: Path, size: str, seed: int) -> None:
    from mergewise.evidence.statistics._file import (
        Entry,
        Record,
        StatisticRecord,
        key_of,
        write_evidence,
    )

    linear = [(n, s) for n, s in tensors(size) if len(s) == 2 and "embed" not in n]
    counts = {name: {"tokens": TOKENS} for name, _ in linear}
    record = Record({"input_gram": StatisticRecord(counts=counts)})
    entries = {
        key_of(name, "input_gram", "gram"): Entry(
            (side, side), "F32", lambda i=i, side=side: _gram(side, seed + 2 * i)
        )
        for i, (name, (_, side)) in enumerate(linear)
    }
    write_evidence(path, record, entries)


def _gram(side: int, seed: int) -> Iterator[torch.Tensor]:
    """Rows of X^T X + I for random X, of a rank far below its side as calibration's often is."""
    import torch

    rows = torch.randn(_ROWS, side, generator=torch.Generator().manual_seed(seed))
    for first in range(0, side, _ROWS):
        part = rows[:, first : first + _ROWS].T @ rows
        part.diagonal(first).add_(1.0)
        yield part.flatten()


def _run(command: list[str]) -> tuple[int, float]:
    """Peak resident bytes and seconds of a process."""
    start = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"the command failed: {' '.join(command)}")
    unit = 1 if sys.platform == "darwin" else 1024
    return usage.ru_maxrss * unit, time.monotonic() - start


if __name__ == "__main__":
    sys.exit(main())
