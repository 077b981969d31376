"""Where a result comes from: fingerprints of inputs, checksums of outputs, versions."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mergewise.checkpoint._files import open_regular, read_at, where
from mergewise.checkpoint._hub import away
from mergewise.errors import CheckpointError

_PAGE = 65_536
_PAGES = 64
_HEAD = 1_048_576
_CHUNK = 4_194_304


def fingerprint(path: Path) -> str:
    """A quick identity of a large file: ``fp1:`` and 64 hexadecimal digits.

    SHA-256 over the size, the first MiB at most of the safetensors header (or of the file) and 64
    evenly spaced pages of 64 KiB. It tells checkpoints apart and notices a truncated or retrained
    file in milliseconds; it is no proof against someone who alters other bytes on purpose. For
    that, use `sha256_file`.

    Raises:
        CheckpointError: if the file cannot be read.
    """
    descriptor = open_regular(path)
    try:
        size = os.fstat(descriptor).st_size
        digest = hashlib.sha256(size.to_bytes(8, "little"))
        header = 8 + int.from_bytes(read_at(descriptor, 8, 0), "little")
        digest.update(read_at(descriptor, min(header, _HEAD), 0))
        for offset in _page_offsets(size):
            digest.update(read_at(descriptor, _PAGE, offset))
    except OSError as error:
        raise CheckpointError(f"{where(path)}: cannot be read: {error}") from None
    finally:
        os.close(descriptor)
    return f"fp1:{digest.hexdigest()}"


def _page_offsets(size: int) -> list[int]:
    last = max(0, size - _PAGE)
    return sorted({last * i // (_PAGES - 1) for i in range(_PAGES)})


def sha256_file(path: Path) -> str:
    """SHA-256 of a whole file, in hexadecimal; raises CheckpointError."""
    descriptor = open_regular(path)
    digest = hashlib.sha256()
    try:
        offset = 0
        while part := os.pread(descriptor, _CHUNK, offset):
            digest.update(part)
            offset += len(part)
    except OSError as error:
        raise CheckpointError(f"{where(path)}: cannot be read: {error}") from None
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of what decides the bytes of a result; nothing is imported to find them."""
    found = {"mergewise": _version("mergewise"), "torch": _version("torch")}
    return {**found, "python": platform.python_version(), "platform": platform.platform()}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def provenance(
    *,
    recipe: str,
    seeds: Mapping[str, int],
    inputs: Mapping[str, Iterable[Path]],
    outputs: Mapping[str, str],
    config: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What ``mergewise_provenance.json`` says; a dict of JSON values, without dates or paths.

    Args:
        recipe: the recipe, verbatim.
        seeds: of each stage.
        inputs: each model's files by its name in the recipe.
        outputs: checksum by file name of each shard written.
        config: further settings that decide the bytes, such as the device.

    Raises:
        CheckpointError: if an input cannot be read.
    """
    return {
        "format": 1,
        "recipe": recipe,
        "recipe_sha256": hashlib.sha256(recipe.encode("utf-8", "surrogatepass")).hexdigest(),
        "seeds": dict(seeds),
        "versions": versions(),
        "settings": dict(config or {}),
        "inputs": [
            {"model": model, "files": [_described(path) for path in files]}
            for model, files in inputs.items()
        ],
        "outputs": dict(outputs),
    }


def _described(path: Path) -> dict[str, Any]:
    gone = away(path)
    if gone is not None:  # read while it was here, and dropped: what the Hub says of it
        return {"name": path.name, "size": gone.file.size, "sha256": gone.file.sha256}
    mark = fingerprint(path)
    return {"name": path.name, "size": path.stat().st_size, "fingerprint": mark}
