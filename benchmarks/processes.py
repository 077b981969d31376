"""Whole processes: run to their end, timed, their peak memory read."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Usage:
    """One finished process: seconds of wall and processor time, peak resident bytes."""

    wall: float
    cpu: float
    memory: int
    output: str


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
    output = process.stdout.read().decode()
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{output[-2000:]}")
    return Usage(wall, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, output)


def merging(recipe: Path, out: Path) -> list[str]:
    """The command that merges a recipe."""
    return [sys.executable, "-m", "mergewise", "merge", str(recipe), str(out), "-q"]


def write_recipe(
    path: Path,
    method: str,
    base: Path | None,
    models: Sequence[Path | str],
    each: str = "",
    whole: str = "",
    dtype: str = "bfloat16",
) -> None:
    """Write a recipe.

    Args:
        each: parameters of every model, such as ``weight: 0.5, density: 0.2``.
        whole: parameters of the method.
        dtype: what is computed and stored in; ``none`` leaves it to the models.
    """
    lines = [f"merge_method: {method}"]
    lines += [f"dtype: {dtype}"] if dtype != "none" else []
    lines += [f"base_model: {base}"] if base else []
    lines += [f"parameters: {{{whole}}}"] if whole else []
    lines.append("models:")
    for model in models:
        lines.append(f"  - model: {model}")
        lines += [f"    parameters: {{{each}}}"] if each else []
    path.write_text("\n".join(lines) + "\n")
