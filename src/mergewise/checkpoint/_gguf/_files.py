"""Which GGUF files make a model."""

from __future__ import annotations

import re
from pathlib import Path

from mergewise.checkpoint._files import shown, where
from mergewise.errors import CheckpointError

_SPLIT = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf")
_MAX_FILES = 1000
_OTHERS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".safetensors.index.json")


def gguf_files(path: Path) -> list[Path]:
    """The file, or all files of the split model that it belongs to.

    Raises:
        CheckpointError: if its name counts too many.
    """
    found = _SPLIT.fullmatch(path.name)
    if found is None:
        return [path]
    number = int(found[3])
    if not 0 < number <= _MAX_FILES:
        raise CheckpointError(f"{where(path)}: 1 to {_MAX_FILES} files expected, got {number}")
    return [path.with_name(f"{found[1]}-{i + 1:05}-of-{found[3]}.gguf") for i in range(number)]


def only_gguf(path: Path, names: list[str]) -> Path | None:
    """The only GGUF file of a folder without other weights, or one of its only split model.

    Raises:
        CheckpointError: if there are several models.
    """
    found = sorted(name for name in names if name.endswith(".gguf"))
    if not found or any(name.endswith(_OTHERS) for name in names):
        return None
    models = {m[1] if (m := _SPLIT.fullmatch(name)) else name for name in found}
    if len(models) > 1:
        some = ", ".join(shown(name) for name in found[:3])
        raise CheckpointError(f"{where(path)}: {len(models)} GGUF models ({some}); name one file")
    return path / found[0]
