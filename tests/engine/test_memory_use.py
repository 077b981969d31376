"""Resident memory does not grow with the models: blocks go through, nothing piles up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import near, recipe, save

SCRIPT = """
import json, resource, sys
import mergewise.engine._run as run
from mergewise import merge
run.FUSE_FROM_ELEMENTS = 0
peaks = []
for i, path in enumerate(sys.argv[2:]):
    merge(json.loads(open(path).read()), sys.argv[1] + str(i), workers=2, shard_size="8MB")
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(json.dumps(peaks))
"""


def checkpoint(root: Path, megabytes: int) -> Path:
    """Base and two experts, `megabytes` together; one tensor is half of each."""
    rows = megabytes * 1_000_000 // 3 // 2 // 1000 // 2
    base = {"half": torch.randn(rows, 1000).bfloat16()}
    base |= {f"layers.{i}.w": torch.randn(rows // 4, 1000).bfloat16() for i in range(4)}
    for i, name in enumerate(("base", "expert_a", "expert_b")):
        save(root / name, near(base, i))
    return root


@pytest.mark.skipif(sys.platform != "linux", reason="counts in kilobytes, as Linux does")
@pytest.mark.parametrize("fuse", ["1", "0"])
def test_ten_times_the_model_in_the_same_memory(fuse: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    recipes: list[Any] = []
    for size in (6, 60):
        models = checkpoint(tmp_path / str(size), size)
        for method in ("ties", "model_stock"):
            recipes.append(tmp_path / f"{method}_{size}.json")
            recipes[-1].write_text(json.dumps(recipe(models, method)))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "out"), *map(str, recipes)],
        env={**os.environ, "MERGEWISE_FUSE": fuse},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    small, large = json.loads(done.stdout)[1], json.loads(done.stdout)[3]
    assert large - small < 40_000, f"{large - small:,} kB more for ten times the model"
