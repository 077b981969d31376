"""A diffusers pipeline: ``model_index.json`` and a folder for each component.

It is opened as one checkpoint. Tensors are called after their component, ``unet/conv_in.weight``;
components without weights (tokenizers, schedulers) are files to copy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mergewise.checkpoint._files import read_small, shown, stays_inside, where
from mergewise.checkpoint._folder import open_checkpoint
from mergewise.checkpoint._hub import listed
from mergewise.checkpoint._json import read_json
from mergewise.checkpoint._model import Checkpoint, Pipeline, TensorRef
from mergewise.checkpoint._output import MAX_COPIED, Copied, make_folder, write_file
from mergewise.checkpoint._variants import stem_of
from mergewise.errors import CheckpointError

INDEX_FILE = "model_index.json"
SAFETY = "safety_checker/"
"""A component whose tensors are copied: a filter's weights, not an ability to be merged."""
_MAX_INDEX = 1_000_000
_MAX_PARTS = 100
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_COPIED = re.compile(r"[\w.-]+\.(json|txt|model|jinja|spm|tiktoken)")
_NOT_COPIED = re.compile(r".*\.index(\.\w+)?\.json")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


def open_pipeline(path: Path) -> Checkpoint:
    """Open a pipeline's folder; every component with weights is opened as a checkpoint.

    Raises:
        CheckpointError: if ``model_index.json`` or a component is broken or absent.
        NotBuiltYetError: if a component is of a kind that is not read.
    """
    index = read_json(path / INDEX_FILE, "pipeline's index", _MAX_INDEX)
    folders = tuple(_folders(path, index))
    parts = {name: open_checkpoint(path / name) for name in folders if _has_weights(path / name)}
    if not parts:
        raise CheckpointError(f"{where(path)}: none of the pipeline's components has weights")
    stems = {name: stem_of(part.files[0].name) for name, part in parts.items()}
    tensors: dict[str, TensorRef] = {}
    for name, part in parts.items():
        for ref in part.tensors.values():
            full = f"{name}/{ref.name}"
            tensors[full] = replace(ref, name=full)
    return Checkpoint(
        path=path,
        folder=path,
        files=tuple(file for part in parts.values() for file in part.files),
        tensors=tensors,
        config=None,
        index=None,
        warnings=tuple(text for part in parts.values() for text in part.warnings),
        stamps={file: stamp for part in parts.values() for file, stamp in part.stamps.items()},
        pipeline=Pipeline(index, stems, folders),
    )


def _folders(path: Path, index: Mapping[str, Any]) -> Iterator[str]:
    """Names of components: entries ``[library, class]``; ``[null, null]`` is an absent one."""
    entries = {n: v for n, v in index.items() if isinstance(v, list) and not n.startswith("_")}
    if len(entries) > _MAX_PARTS:
        raise CheckpointError(f"{where(path / INDEX_FILE)}: {len(entries):,} components")
    for name, value in entries.items():
        if len(value) != 2 or not all(v is None or isinstance(v, str) for v in value):
            continue  # a setting that happens to be a list
        if value == [None, None]:
            continue
        if not _NAME.fullmatch(name):
            raise CheckpointError(
                f"{where(path / INDEX_FILE)}: a component called {shown(name)}, where the name of "
                "a folder such as 'unet' was expected"
            )
        yield name


def _has_weights(folder: Path) -> bool:
    """Whether a component is a model: `diffusers` writes a config.json for those alone."""
    try:
        names = listed(folder)
    except OSError:
        raise CheckpointError(
            f"{where(folder)}: this component is named in {INDEX_FILE} but missing; "
            "fetch the rest of the pipeline"
        ) from None
    return "config.json" in names or any(name.endswith(_WEIGHTS) for name in names)


def copy_parts(donor: Checkpoint, out: Path) -> Copied:
    """Copy what is not weights of every component, and ``model_index.json``.

    Only regular files of known endings are copied; a link that leaves the folder is not followed.

    Raises:
        OutputError: if `out` cannot be written.
    """
    names: list[str] = []
    warnings: list[str] = []
    for folder in donor.pipeline.folders if donor.pipeline else ():
        for source in sorted((donor.folder / folder).iterdir()):
            if not _COPIED.fullmatch(source.name) or _NOT_COPIED.fullmatch(source.name):
                continue
            try:
                if not stays_inside(source, donor.folder):
                    raise CheckpointError(f"{where(source)}: a link that leaves the folder")
                data = read_small(source, MAX_COPIED)
            except CheckpointError as error:
                warnings.append(f"not copied: {error}")
                continue
            make_folder(out / folder)
            write_file(out / folder / source.name, _unnamed(source.name, data))
            names.append(f"{folder}/{source.name}")
    index = {k: v for k, v in (donor.pipeline.index if donor.pipeline else {}).items()
             if k != "_name_or_path"}  # fmt: skip
    write_file(out / INDEX_FILE, (json.dumps(index, indent=2) + "\n").encode())
    return Copied((*names, INDEX_FILE), tuple(warnings))


def _unnamed(name: str, data: bytes) -> bytes:
    """A config without the path that it was once loaded from."""
    if name != "config.json" or b'"_name_or_path"' not in data:
        return data
    config = json.loads(data)
    config.pop("_name_or_path", None)
    return (json.dumps(config, indent=2) + "\n").encode()
