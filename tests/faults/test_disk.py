"""Disks that fill up and folders that cannot be written: a clear error, and nothing half done."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from children import finish, needs_fork, start
from small_models import contents, family, recipe

from mergewise import merge
from mergewise.errors import MergewiseError, OutputError

SHARD = 3000


@pytest.fixture(scope="module")
def models(tmp_path_factory: Any) -> Path:
    return family(tmp_path_factory.mktemp("models"))


@pytest.fixture
def whole(models: Path, tmp_path: Path) -> dict[str, bytes]:
    out = tmp_path / "whole" / "out"
    merge(recipe(models, "ties"), out, shard_size=SHARD)
    return contents(out)


def failing(call: Any, after: int, code: int) -> Any:
    """`call`, which fails with `code` from the call number `after` on."""
    count = 0

    def wrapped(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count > after:
            raise OSError(code, os.strerror(code))
        return call(*arguments)

    return wrapped


@pytest.mark.parametrize("call", ["pwrite", "posix_fallocate", "fsync"])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_no_space(
    call: str, after: int, models: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: Any
) -> None:
    before = contents(models)
    out = tmp_path / "new" / "out"
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing(getattr(os, call), after, errno.ENOSPC))
        with pytest.raises(OutputError, match="no space left on the disk; free some and run"):
            merge(recipe(models, "ties"), out, shard_size=SHARD)
    assert not (out / "config.json").exists()
    assert contents(models) == before
    merge(recipe(models, "ties"), out, shard_size=SHARD)
    assert contents(out) == whole


def test_no_space_at_once_leaves_no_folder(models: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(os, "posix_fallocate", failing(None, 0, errno.ENOSPC))
    with pytest.raises(OutputError):
        merge(recipe(models, "linear"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("after", range(8))
def test_a_move_that_fails(
    after: int, models: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: Any
) -> None:
    """Publication meets errors too: renames of shards and small files, after the weights exist."""
    from mergewise.engine import _publish

    out = tmp_path / "new" / "out"
    with monkeypatch.context() as patch:
        begin = _publish.Workspace.begin_publishing

        def begin_and_fail(space: Any) -> None:
            begin(space)
            patch.setattr(os, "replace", failing(os.replace, after, errno.EIO))
            patch.setattr(Path, "replace", failing(Path.replace, after, errno.EIO))

        patch.setattr(_publish.Workspace, "begin_publishing", begin_and_fail)
        with pytest.raises(OutputError, match="run the same command again"):
            merge(recipe(models, "ties"), out, shard_size=SHARD)
    assert not (out / "config.json").exists()
    again = merge(recipe(models, "ties"), out, shard_size=SHARD)
    assert again.resumed == len(again.files)
    assert contents(out) == whole


def limited(document: dict[str, Any], out: Path) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
    with pytest.raises(OutputError, match="cannot be written"):
        merge(document, out, shard_size="1MB")
    assert not (out / "config.json").exists()


@needs_fork
def test_files_limited_in_size(models: Path, tmp_path: Path) -> None:
    child = start(limited, tmp_path / "log", recipe(models, "linear"), tmp_path / "out")
    assert finish(child) == 0, (tmp_path / "log").read_text()


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Any:
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if (
        sys.platform != "linux"
        or os.getuid()
        or subprocess.run(command, capture_output=True).returncode
    ):
        pytest.skip("cannot mount a tmpfs here")
    yield place
    subprocess.run(["umount", str(place)])


def test_a_disk_that_is_full(models: Path, tmp_path: Path, tiny_disk: Path) -> None:
    family(tmp_path, layers=20)
    with pytest.raises(OutputError, match=r"are needed on this disk and .* are free; make room"):
        merge(recipe(tmp_path, "linear"), tiny_disk / "out")
    (tiny_disk / "filler").write_bytes(bytes(44_000))
    with pytest.raises(OutputError, match="free"):
        merge(recipe(models, "linear"), tiny_disk / "out", shard_size=SHARD)
    (tiny_disk / "filler").unlink()
    assert not (tiny_disk / "out" / "config.json").exists()
    merge(recipe(models, "linear"), tiny_disk / "out", shard_size=SHARD)


def test_a_file_in_the_place_of_the_folder(models: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="is a file; give a folder"):
        merge(recipe(models, "linear"), tmp_path / "out")
    with pytest.raises(OutputError, match=r"cannot be written to .*choose another"):
        merge(recipe(models, "linear"), tmp_path / "out" / "below")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("call", ["mkdir", "open"])
def test_a_folder_that_is_read_only(
    call: str, code: int, models: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    out = tmp_path / "out"
    real = getattr(os, call)

    def refuse(path: Any, *arguments: Any, **more: Any) -> Any:
        if str(path).startswith(str(out)):
            raise OSError(code, os.strerror(code))
        return real(path, *arguments, **more)

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(OutputError, match=r"out: cannot be written to \(.*choose another"):
        merge(recipe(models, "linear"), out)
    monkeypatch.undo()
    assert not (out / "config.json").exists()


def test_a_folder_that_cannot_be_listed(models: Path, tmp_path: Path, monkeypatch: Any) -> None:
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(Path, "iterdir", failing(None, 0, errno.EACCES))
    with pytest.raises(MergewiseError, match="cannot be"):
        merge(recipe(models, "linear"), out)


def test_a_link_in_the_place_of_the_working_folder(models: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("keep me")
    out = tmp_path / "out"
    out.mkdir()
    (out / ".mergewise").symlink_to(elsewhere)
    with pytest.raises(OutputError, match="is a link"):
        merge(recipe(models, "linear"), out, overwrite=True, restart=True)
    assert (elsewhere / "precious").read_text() == "keep me"
