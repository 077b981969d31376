"""Inputs that change under the reader, hold NaN, or would be written over."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import (
    contents,
    family,
    llama_config,
    llama_shapes,
    load,
    random_state,
    recipe,
    save,
)

from mergewise import merge, merge_state_dicts
from mergewise.errors import CheckpointError, NonFiniteError, OutputError, RecipeError

SHARD = 3000


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return family(tmp_path / "models")


def touched(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))


def edited(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    touched(path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def replaced(path: Path) -> None:
    data, status = path.read_bytes(), path.stat()
    path.unlink()
    path.with_name("other").write_bytes(b"takes the inode")
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("change", [touched, edited, cut, replaced, Path.unlink])
@pytest.mark.parametrize("moment", [1, 6000])
def test_an_input_changes_during_the_run(
    change: Any, moment: int, models: Path, tmp_path: Path
) -> None:
    """Whatever was written by then, no folder is finished that mixes two states of an input."""
    file = models / "expert_b" / "model.safetensors"
    changed = False

    def progress(done: int, total: int) -> None:
        nonlocal changed
        if done >= moment and not changed:
            changed = True
            change(file)

    with pytest.raises(CheckpointError, match=r"expert_b.*model\.safetensors"):
        merge(recipe(models, "ties"), tmp_path / "out", shard_size=SHARD, progress=progress)
    assert changed
    assert not (tmp_path / "out" / "config.json").exists()


def test_an_input_changes_between_two_runs(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    file = models / "expert_b" / "model.safetensors"

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(Exception, match="Run the same command again"):
        merge(recipe(models, "linear"), out, shard_size=SHARD, workers=1, progress=stop)
    touched(file)
    with pytest.raises(OutputError, match=r"other inputs.*--restart"):
        merge(recipe(models, "linear"), out, shard_size=SHARD)
    merge(recipe(models, "linear"), out, shard_size=SHARD, restart=True)
    assert (out / "config.json").exists()


def test_inputs_are_only_read(models: Path, tmp_path: Path) -> None:
    def states() -> dict[Path, Any]:
        return {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in models.rglob("*")}

    before, bytes_before = states(), contents(models)
    merge(recipe(models, "dare_ties"), tmp_path / "out")
    assert states() == before and contents(models) == bytes_before


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_output_is_an_input(overwrite: bool, models: Path, tmp_path: Path) -> None:
    before = contents(models)
    link = tmp_path / "link"
    link.symlink_to(models / "expert_a")
    for out in (models / "expert_a", models / "base" / ".." / "expert_a", link):
        with pytest.raises(OutputError, match="is the folder of the input"):
            merge(recipe(models, "linear"), out, overwrite=overwrite)
    assert contents(models) == before


def test_the_output_holds_what_an_input_links_to(models: Path, tmp_path: Path) -> None:
    """As in the hub's cache, an input may be a folder of links."""
    store = tmp_path / "store"
    store.mkdir()
    file = models / "expert_a" / "model.safetensors"
    kept = file.rename(store / "model.safetensors")
    file.symlink_to(kept)
    before = contents(store)
    with pytest.raises(OutputError, match="holds its files"):
        merge(recipe(models, "linear"), store, overwrite=True)
    assert contents(store) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("method", ["linear", "ties", "slerp", "della", "model_stock"])
def test_a_number_that_is_none(method: str, value: float, models: Path, tmp_path: Path) -> None:
    folder = models / "expert_a"
    state = load(folder)
    state["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save(folder, state)
    document = recipe(models, method, 1 if method == "slerp" else 2)
    with pytest.raises(NonFiniteError, match=r"layers\.1\.mlp\.up_proj.*expert_a holds NaN") as e:
        merge(document, tmp_path / "out")
    assert "--allow-nonfinite" in str(e.value)
    assert not (tmp_path / "out").exists()
    result = merge(document, tmp_path / "out", allow_nonfinite=True)
    assert "model.layers.1.mlp.up_proj.weight of " in result.warnings[-1]
    record = json.loads((tmp_path / "out" / "mergewise_provenance.json").read_text())
    assert any("expert_a" in text for text in record["settings"]["nonfinite"])
    good = load(tmp_path / "out")["model.layers.0.mlp.up_proj.weight"]
    assert torch.isfinite(good).all()


def test_a_copied_tensor_is_looked_at_too(models: Path, tmp_path: Path) -> None:
    state = load(models / "base")
    state["model.norm.weight"][0] = float("nan")
    save(models / "base", state)
    document = recipe(models, "ties", exclude=["model.norm.*"])
    with pytest.raises(NonFiniteError, match=r"model\.norm\.weight of model .*base"):
        merge(document, tmp_path / "out")
    result = merge(document, tmp_path / "out", allow_nonfinite=True)
    assert "model.norm.weight of " in result.warnings[-1]
    assert torch.isnan(load(tmp_path / "out")["model.norm.weight"][0])


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_a_result_that_does_not_fit_its_type(method: str, models: Path, tmp_path: Path) -> None:
    for name in ("base", "expert_a", "expert_b"):
        state = load(models / name)
        state["model.norm.weight"][2] = 3e5
        save(models / name, state)
    document = recipe(models, method, out_dtype="float16")
    with pytest.raises(NonFiniteError, match=r"model\.norm\.weight.*do not fit float16.*wider"):
        merge(document, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_copied_tensor_that_does_not_fit(models: Path, tmp_path: Path) -> None:
    state = load(models / "base")
    state["model.norm.weight"][2] = 3e5
    save(models / "base", state)
    document = recipe(models, "ties", exclude=["model.norm.*"], out_dtype="float16")
    with pytest.raises(NonFiniteError, match="do not fit float16"):
        merge(document, tmp_path / "out")


def test_in_memory_too() -> None:
    good = {"w": torch.ones(3)}
    bad = {"w": torch.tensor([1.0, float("nan"), 1.0])}
    with pytest.raises(NonFiniteError, match=r"tensor w of model experts\[1\]"):
        merge_state_dicts([good, bad], "linear", parameters={"weight": 1})
    out = merge_state_dicts([good, bad], "linear", parameters={"weight": 1}, allow_nonfinite=True)
    assert torch.isnan(out["w"]).tolist() == [False, True, False]


def test_a_layer_that_the_config_lacks(tmp_path: Path) -> None:
    """Found while planning, not after hours of merging."""
    shapes = llama_shapes(layers=4)
    config = llama_config(shapes) | {"num_hidden_layers": 2}
    save(tmp_path / "model", random_state(shapes, 0), config)
    sources = [{"model": str(tmp_path / "model"), "layer_range": [2, 4]}]
    recipe = {"merge_method": "passthrough", "slices": [{"sources": sources}]}
    with pytest.raises(RecipeError, match=r"has 2 layers \(0 to 1\)"):
        merge(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()
