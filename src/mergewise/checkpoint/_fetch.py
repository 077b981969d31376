"""Checkpoints whose weights are on the Hub: have them here; tell their files apart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from mergewise.checkpoint._files import FileStamp
from mergewise.checkpoint._hub import AwayFile, arrived, missing, origin_of
from mergewise.checkpoint._model import Checkpoint


def fetched(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with all its files here, downloaded if need be.

    Raises:
        HubError: if one cannot be had, or is not what its header promised.
        OutputError: if there is no room for them.
    """
    stamps = arrived(checkpoint.stamps)
    return checkpoint if stamps == checkpoint.stamps else replace(checkpoint, stamps=stamps)


def to_fetch(checkpoints: Iterable[Checkpoint]) -> list[AwayFile]:
    """The files of checkpoints that are yet to be downloaded, each once."""
    return missing(stamp for each in checkpoints for stamp in each.stamps.values())


def identity(file: Path, state: FileStamp) -> list[object]:
    """What tells one version of a file from another, the same before and after a download.

    Of a file in the Hub's cache: repository, commit, path and size; else size and time of change.
    """
    origin = origin_of(file)
    if origin is None:
        return [file.name, state.size, state.mtime_ns]
    at = file.parts.index(origin.commit)
    return [origin.repo, origin.commit, "/".join(file.parts[at + 1 :]), state.size]
