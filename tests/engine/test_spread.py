"""Statistics that are repeated along axes, of the base, and of output sides, through files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_models import assert_same, family, load, recipe
from torch import Tensor

from mergewise import merge, merge_state_dicts
from mergewise.engine._evidence import SpreadSource
from mergewise.engine._sources import TensorSource
from mergewise.errors import EvidenceError
from mergewise.evidence.statistics._file import (
    Record,
    StatisticRecord,
    WrittenSum,
    key_of,
    write_evidence,
)


@pytest.mark.parametrize(
    ("means", "shape"),
    [
        ((5, 1), (5, 7)),
        ((1, 7), (5, 7)),
        ((1, 1), (5, 7)),
        ((5, 7), (5, 7)),
        ((5, 1, 3), (5, 4, 3)),
        ((1,), (6,)),
        ((6,), (6,)),
        ((), ()),
    ],
)
def test_any_range_of_a_repeated_statistic(means: Any, shape: Any) -> None:
    known = torch.arange(float(math.prod(means))).reshape(means)
    source = SpreadSource(TensorSource("m", "w", known), shape)
    whole = known.expand(shape).flatten()
    for start in range(len(whole)):
        for size in range(1, len(whole) - start + 1):
            assert torch.equal(source.read(start, size, 0), whole[start : start + size])


def nodes(folder: Path) -> dict[str, Tensor]:
    """One number a row, in an evidence file beside the model."""
    draw = torch.Generator().manual_seed(len(folder.name) + ord(folder.name[-1]))
    means = {
        name: torch.rand((tensor.shape[0], *[1] * (tensor.dim() - 1)), generator=draw)
        for name, tensor in load(folder).items()
    }
    record = Record({"fisher_nodes": StatisticRecord({}, {n: {"examples": 1} for n in means})})
    entries = {
        key_of(name, "fisher_nodes", "squares"): WrittenSum(
            tuple(mean.shape), "F32", lambda mean=mean: iter([mean.flatten()])
        )
        for name, mean in means.items()
    }
    write_evidence(folder.with_suffix(".nodes"), record, entries)
    return means


def test_rows_of_a_file_stand_for_their_elements(tmp_path: Path) -> None:
    root = family(tmp_path, dtype=torch.float32)
    folders = [root / f"expert_{c}" for c in "ab"]
    means = [nodes(folder) for folder in folders]
    document = {
        "merge_method": "fisher",
        "parameters": {"information": "fisher_nodes"},
        "models": [{"model": str(f), "evidence": str(f.with_suffix(".nodes"))} for f in folders],
    }
    merge(document, root / "out")
    experts = [load(folder) for folder in folders]
    full = [{n: mean.expand(experts[0][n].shape) for n, mean in each.items()} for each in means]
    direct = merge_state_dicts(experts, "fisher", evidence=[{"fisher": each} for each in full])
    torch.testing.assert_close(load(root / "out"), direct)


def test_a_statistic_repeated_otherwise_is_refused() -> None:
    models = [{"w": torch.ones(4, 6)}] * 2
    with pytest.raises(EvidenceError, match=r"shape \[6, 1\], expected \[4, 6\]"):
        merge_state_dicts(
            models, "fisher", parameters={"information": "fisher_nodes"},
            evidence=[{"fisher_nodes": {"w": torch.ones(6, 1)}}] * 2,
        )  # fmt: skip


@pytest.mark.parametrize("method", ["mats", "gradient_matching", "bcwi", "aim"])
def test_a_second_stage_reads_evidence_by_file(method: str, tmp_path: Path) -> None:
    """The same bytes whether its model is a stage of the recipe or what that stage writes."""
    root = family(tmp_path, dtype=torch.float32)
    first = {"name": "first", **recipe(root, "linear", parameters={"weight": 0.5})}
    last = recipe(root, method, experts=1)
    merge(first, root / "soup")
    alone = {**last, "models": [{**last["models"][0], "model": str(root / "soup")},
                                *last["models"][1:]]}  # fmt: skip
    merge(alone, root / "two_runs")
    last["models"][0]["model"] = "first"
    path = root / "both.yml"
    path.write_text(yaml.safe_dump_all([first, last]))
    merge(path, root / "one_run")
    assert_same(load(root / "one_run"), load(root / "two_runs"))
