"""Which PyTorch files of a folder are a model's weights, and whether they may be opened."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from mergewise.checkpoint._access import access
from mergewise.checkpoint._files import shown, where
from mergewise.errors import CheckpointError

ENDINGS = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SAFE_TORCH = (2, 10)
_USUAL = "pytorch_model.bin"
_BESIDE = ("training_args.bin", "optimizer.", "scheduler.", "scaler.", "rng_state", "adapter_")
"""Beginnings of names of what trainers save beside the weights."""


def is_pickle(name: str) -> bool:
    """Whether a file's name says that it is written by ``torch.save``."""
    return name.endswith(ENDINGS)


def refuse_pickles(path: Path, names: list[str]) -> None:
    """Raise CheckpointError if a file of `names` is a PyTorch file and may not be opened."""
    found = [name for name in names if is_pickle(name)]
    if found and not access().pickle:
        raise CheckpointError(
            f"{where(path)}: a PyTorch file ({shown(found[0])}), which is a pickle, and pickles "
            "can run code; --allow-pickle (in Python: mergewise.allow(pickle=True)) reads its "
            "weights and runs nothing, or fetch the .safetensors version"
        )


def refuse_old_torch(files: Iterable[Path], version: str) -> None:
    """Raise CheckpointError if torch itself would read PyTorch files, and is too old to be let.

    Models that are run are loaded by `transformers`, which uses ``torch.load(weights_only=True)``.
    Before torch 2.10 a file could corrupt memory there (CVE-2026-24747).
    """
    found = [file for file in files if is_pickle(file.name)]
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if found and numbers < _SAFE_TORCH:
        raise CheckpointError(
            f"{where(found[0])}: to run a model from a PyTorch file torch 2.10 or later is needed, "
            f"got {version}; merge it into safetensors first (a recipe with it alone), or upgrade"
        )


def choose_pickles(path: Path, names: list[str]) -> tuple[str, str] | None:
    """The weights among the files of the folder `path`, as (file, "") or ("", index).

    ``pytorch_model.bin``, its index, or the only PyTorch file; None if there are none, or they may
    not be opened.

    Raises:
        CheckpointError: if there are several.
    """
    if not access().pickle:
        return None
    files = [n for n in names if is_pickle(n) and not n.startswith(_BESIDE)]
    if _USUAL in files:
        return _USUAL, ""
    if f"{_USUAL}.index.json" in names:
        return "", f"{_USUAL}.index.json"
    if len(files) > 1:
        raise CheckpointError(
            f"{where(path)}: {len(files)} PyTorch files ({', '.join(map(shown, files[:3]))}"
            f"{', …' if files[3:] else ''}) and no {_USUAL}.index.json; name one of the files"
        )
    return (files[0], "") if files else None
