"""An unfinished file: what is complete in it is kept, verified, and not merged again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_models import family, recipe

from mergewise import merge
from mergewise.engine._shards import ShardWriter
from mergewise.errors import InterruptedMergeError


@pytest.fixture
def stopped(tmp_path: Path) -> tuple[Any, Path]:
    """A merge into one file, stopped half way."""
    models = family(tmp_path / "models", layers=4)

    def stop(done: int, total: int) -> None:
        if done * 2 > total:
            raise KeyboardInterrupt

    document = recipe(models, "ties")
    with pytest.raises(InterruptedMergeError, match="tensors of an unfinished one"):
        merge(document, tmp_path / "out", workers=1, progress=stop)
    return document, tmp_path / "out"


def complete(out: Path) -> list[str]:
    lines = (out / ".mergewise" / "model.safetensors.complete").read_text().splitlines()
    return [json.loads(line)[0] for line in lines]


def merged_again(document: Any, out: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Go on with a merge; returns the tensors that were merged by this run."""
    names: list[str] = []
    work = ShardWriter._merge

    def watched(self: ShardWriter, name: str) -> Any:
        names.append(name)
        return work(self, name)

    monkeypatch.setattr(ShardWriter, "_merge", watched)
    merge(document, out)
    return names


def same_as_uninterrupted(document: Any, out: Path) -> bool:
    merge(document, out.parent / "whole")
    weights = "model.safetensors"
    return (out / weights).read_bytes() == (out.parent / "whole" / weights).read_bytes()


def test_complete_tensors_are_kept(stopped: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    document, out = stopped
    kept = complete(out)
    assert kept
    again = merged_again(document, out, monkeypatch)
    assert again
    assert not set(again) & set(kept)
    assert same_as_uninterrupted(document, out)
    assert not (out / ".mergewise").exists()


def test_a_damaged_tensor_is_merged_again(stopped: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    document, out = stopped
    kept = complete(out)
    partial = out / ".mergewise" / "model.safetensors.partial"
    data = bytearray(partial.read_bytes())
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    at = 8 + int.from_bytes(data[:8], "little") + header[kept[0]]["data_offsets"][0]
    data[at] ^= 1
    partial.write_bytes(data)
    assert kept[0] in merged_again(document, out, monkeypatch)
    assert same_as_uninterrupted(document, out)


@pytest.mark.parametrize("damage", [b"", b"{}\n[1]\nnull\n[1, 2, 3]\n[[1], 2]\n", b"\xff\xfe"])
def test_a_damaged_list_is_not_trusted(stopped: Any, damage: bytes) -> None:
    document, out = stopped
    (out / ".mergewise" / "model.safetensors.complete").write_bytes(damage)
    merge(document, out)
    assert same_as_uninterrupted(document, out)


def test_a_shortened_file_is_begun_anew(stopped: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    document, out = stopped
    partial = out / ".mergewise" / "model.safetensors.partial"
    partial.write_bytes(partial.read_bytes()[:-5])
    assert set(complete(out)) <= set(merged_again(document, out, monkeypatch))
    assert same_as_uninterrupted(document, out)
