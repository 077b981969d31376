"""Killed anywhere and started again: the bytes of a run that was not, and nothing half done."""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from children import finish, needs_fork, start
from small_models import contents, family, recipe

from mergewise import merge
from mergewise.errors import OutputError

pytestmark = needs_fork
SHARD = 40_000
METHODS = ("linear", "ties", "dare_ties", "della", "slerp", "model_stock", "fisher", "regmean")
KILLS = 20


def experts(method: str) -> int:
    return 1 if method == "slerp" else 2


@pytest.fixture(scope="module")
def models(tmp_path_factory: Any) -> Path:
    return family(tmp_path_factory.mktemp("models"), layers=4, hidden=64, vocab=400, inner=96)


def run_slowly(document: dict[str, Any], out: Path, options: dict[str, Any]) -> None:
    from mergewise.checkpoint import FileReader

    read_into = FileReader.read_into

    def slow(self: FileReader, *arguments: Any) -> None:
        time.sleep(0.002)
        read_into(self, *arguments)

    FileReader.read_into = slow  # type: ignore[method-assign]
    merge(document, out, shard_size=SHARD, **options)


def run_until(step: int, document: dict[str, Any], out: Path, options: dict[str, Any]) -> None:
    """Merge, and die before the `step`-th opening, renaming or removal in the output folder."""
    place, seen = str(out), 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "open", "shutil.rmtree"):
            path = arguments[0]
            # entries of a folder that is removed are named relative to its descriptor
            if place in str(path) or event in ("os.remove", "os.rmdir"):
                seen += 1
                if seen > step:
                    os._exit(77)

    sys.addaudithook(watch)
    merge(document, out, **options)


def assert_unfinished_or(complete: list[dict[str, bytes]], out: Path) -> None:
    """A folder with a config has every file of one of the `complete` ones."""
    if (out / "config.json").exists():
        found = contents(out)
        assert any(wanted.items() <= found.items() for wanted in complete), sorted(found)


def test_killed_at_random_moments(models: Path, tmp_path: Path) -> None:
    draw = random.Random(7)
    kills = resumed = 0
    while kills < KILLS:
        for method in METHODS:
            document = recipe(models, method, experts(method), seed=3)
            whole, out = tmp_path / "whole" / method, tmp_path / str(kills) / method
            if not whole.exists():
                merge(document, whole, shard_size=SHARD, workers=1)
            wanted = contents(whole)
            while True:
                options = {"workers": draw.choice((1, 2))}
                child = start(run_slowly, tmp_path / "log", document, out, options)
                child.join(draw.uniform(0.1, 0.6))
                if not child.is_alive():
                    break
                child.kill()
                kills += 1
                child.join()
                resumed += any(out.glob(".mergewise/*.safetensors"))
                assert_unfinished_or([wanted], out)
                if (out / "config.json").exists() and not (out / ".mergewise").exists():
                    break
            assert child.exitcode in (0, -9), (tmp_path / "log").read_text()
            left = {n for n in contents(out) if n.startswith(".mergewise-finished")}
            assert {n: d for n, d in contents(out).items() if n not in left} == wanted, method
    assert resumed >= KILLS // 4, "too few kills left anything to go on with"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: Any) -> Path:
    return family(tmp_path_factory.mktemp("tiny"), layers=1)


def test_killed_before_every_change_of_the_folder(tiny: Path, tmp_path: Path) -> None:
    _kill_at_every_step(tmp_path, recipe(tiny, "ties"), {})


def test_killed_at_every_change_while_replacing_a_model(tiny: Path, tmp_path: Path) -> None:
    old = tmp_path / "old" / "out"
    merge(recipe(tiny, "slerp", 1), old, shard_size=1500, workers=1)
    _kill_at_every_step(tmp_path, recipe(tiny, "linear"), contents(old))


def _kill_at_every_step(tmp_path: Path, document: dict[str, Any], old: dict[str, bytes]) -> None:
    options: dict[str, Any] = {"workers": 1, "overwrite": bool(old), "shard_size": 3000}
    merge(document, tmp_path / "whole" / "out", **options)
    wanted = contents(tmp_path / "whole" / "out")
    log = tmp_path / "log"
    for step in range(1000):
        out = tmp_path / f"step_{step}" / "out"
        for name, data in old.items():
            out.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(data)
        code = finish(start(run_until, log, step, document, out, options))
        assert code in (0, 77), log.read_text()
        if code == 0:
            break
        assert_unfinished_or([wanted, *([old] if old else [])], out)
        if (out / ".mergewise-finished").exists():
            assert wanted.items() <= contents(out).items(), f"step {step}"
            with pytest.raises(OutputError, match="not empty"):
                merge(document, out, **{**options, "overwrite": False})
        else:
            merge(document, out, **options)
        assert contents(out) == wanted, f"step {step}"
    assert step > 25
