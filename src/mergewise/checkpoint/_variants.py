"""Which files of a folder that `diffusers` wrote are its weights: names, shards, variants.

``diffusion_pytorch_model[.VARIANT].safetensors``, or shards and
``diffusion_pytorch_model.safetensors.index[.VARIANT].json``; text encoders, which `transformers`
wrote, have ``model`` in place of ``diffusion_pytorch_model``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from mergewise.checkpoint._access import access
from mergewise.checkpoint._files import where

DIFFUSERS = "diffusion_pytorch_model"
STEMS = (DIFFUSERS, "model")
_FILE = re.compile(r"(diffusion_pytorch_model|model)(?:\.([A-Za-z0-9_]+))?\.safetensors")
_INDEX = re.compile(
    r"(diffusion_pytorch_model|model)\.safetensors\.index(?:\.([A-Za-z0-9_]+))?\.json"
)
Choice = tuple[str, str, list[str]]


def stem_of(name: str) -> str:
    """How the files of a result are to be called, after a file of its donor."""
    return DIFFUSERS if name.startswith(DIFFUSERS) else "model"


def choose_variant(path: Path, names: Sequence[str]) -> Choice | None:
    """The weights among `names`, as (file, "", warnings) or ("", index, warnings).

    The variant that the caller asked for, else the files without one, else the only variant. None
    if these rules say nothing.
    """
    found: dict[str | None, tuple[str, str]] = {}
    for name in names:
        if match := _INDEX.fullmatch(name):
            found.setdefault(match[2], ("", name))
    for name in names:
        if match := _FILE.fullmatch(name):
            found[match[2]] = (name, "")
    wanted = access().variant
    if wanted is not None and wanted in found:
        return *found[wanted], []
    if None in found:
        if wanted is not None:
            return *found[None], [_lacks(path, wanted, None)]
        theirs = len(found) > 1 and any(DIFFUSERS in name for name in found[None])
        return (*found[None], []) if theirs else None
    if len(found) == 1:
        (only,) = found
        return *found[only], [_lacks(path, wanted, only)]
    return None


def _lacks(path: Path, wanted: str | None, read: str | None) -> str:
    what = f"no variant {wanted}" if wanted else "only a variant"
    instead = f"{read} is" if read else "the weights without one are"
    return f"{where(path)}: {what} here; {instead} read"
