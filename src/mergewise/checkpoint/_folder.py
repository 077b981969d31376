"""Open a checkpoint: a folder or a file, understood from headers alone.

Which files of a folder count, in this order:

1. ``model.safetensors``. An index beside it is then ignored with a warning, as `transformers`
   ignores it, unless it agrees.
2. ``model.safetensors.index.json`` and the shards it names. Other ``.safetensors`` files
   (``consolidated.safetensors``, say) are left out with a warning.
3. The only ``*.safetensors.index.json``.
4. The only ``*.safetensors``.
5. Where the caller allows it (`access`), PyTorch files; see `_torch_files`.
6. The only GGUF file, or the files of the only split model; see `_gguf`.

A folder with ``model_index.json`` is a diffusers pipeline (`_pipeline`); of files that diffusers
wrote in variants, one is chosen first (`_variants`). Anything else is refused, with the reason. The
files may be links, as in the hub's cache; names in an index are plain file names or refused.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from mergewise._paths import expanded
from mergewise.checkpoint._config import check_config
from mergewise.checkpoint._files import FileStamp, shown, where
from mergewise.checkpoint._gguf import only_gguf, open_gguf
from mergewise.checkpoint._hub import (
    away,
    header_of,
    here,
    incomplete,
    listed,
    locate,
    repo_of,
)
from mergewise.checkpoint._index import Index, read_index
from mergewise.checkpoint._json import read_json
from mergewise.checkpoint._model import Checkpoint, TensorRef
from mergewise.checkpoint._packed import (
    quantisation,
    refuse_unasked,
    unpacked_checkpoint,
    with_settings,
)
from mergewise.checkpoint._refuse import refuse_missing, refuse_other_formats
from mergewise.checkpoint._safetensors import Header
from mergewise.checkpoint._torch_files import (
    choose_pickles,
    is_pickle,
    read_torch_file,
    refuse_pickles,
)
from mergewise.checkpoint._variants import choose_variant
from mergewise.errors import CheckpointError

MAX_CONFIG = 8_000_000
"""Bytes of a config.json; real ones stay under one megabyte."""
_SINGLE = "model.safetensors"
_BESIDE = ("adapter_", "surgery.")
"""Beginnings of names of files that hold something else than the model's weights."""


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Open a folder or one file of weights, reading headers, index and config.

    A name on the Hub (``org/name[@revision]``) is opened likewise: its small files are downloaded,
    of its weights the headers alone are read; see `arrived` and `FileReader`.

    Raises:
        CheckpointError: if there is no checkpoint, or it is broken: the message names the file.
        HubError: if it is no path here, but a name on the Hub, and cannot be had there.
        NotBuiltYetError: if it is an adapter, quantised or GGUF.
    """
    given = str(path)
    path = expanded(path) if given.startswith("~") else Path(path)
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{where(path)}: cannot be opened: {error}") from None
    if not exists:
        path = _on_hub(given, path)
        repo = repo_of(path)
        is_folder = path.is_dir() or (repo is not None and path == repo.folder)
    try:
        return _open_folder(path) if is_folder else _open_file(path)
    except CheckpointError as error:
        raise incomplete(path, error) from None


def _on_hub(given: str, path: Path) -> Path:
    """Where the cache has, or will have, what is not at `path`; raises if that is nowhere."""
    found = path if away(path) is not None else locate(given)
    if found is None:
        refuse_missing(given)
    return found


def _open_file(path: Path) -> Checkpoint:
    if path.suffix == ".gguf":
        return open_gguf(path, path.parent, _config(path.parent))
    if path.suffix != ".safetensors" and not is_pickle(path.name):
        refuse_other_formats(path, [path.name])
        raise CheckpointError(f"{where(path)}: a folder or a .safetensors file expected")
    refuse_pickles(path, [path.name])
    config = _config(path.parent)
    return _assemble(path, path.parent, [path], None, config, [])


def _open_folder(path: Path) -> Checkpoint:
    try:
        names = listed(path)
    except OSError as error:
        raise CheckpointError(f"{where(path)}: cannot be listed: {error}") from None
    if "model_index.json" in names:
        from mergewise.checkpoint._pipeline import open_pipeline  # its parts are opened here

        return open_pipeline(path)
    if (file := only_gguf(path, names)) is not None:
        return open_gguf(file, path, _config(path))
    single, index_name, warnings = _choose(path, names)
    config = _config(path)
    if single:
        return _assemble(path, path, [path / single], None, config, warnings)
    index = read_index(path / index_name)
    ending = ".bin" if index_name.endswith(".bin.index.json") else ".safetensors"
    extra = [
        n for n in names
        if n.endswith(ending) and n not in index.shards and not n.startswith("surgery.")
    ]  # fmt: skip
    index.refuse_siblings(extra)
    if extra:
        warnings.append(f"{where(path)}: not in {index_name}, ignored: {_some(extra)}")
    files = [path / shard for shard in index.shards]
    return _assemble(path, path, files, index, config, warnings)


def _choose(path: Path, names: list[str]) -> tuple[str, str, list[str]]:
    """The single file, or "" and the index, by the rules above."""
    weights = [n for n in names if n.endswith(".safetensors") and not n.startswith(_BESIDE)]
    indexes = [n for n in names if n.endswith(".safetensors.index.json")]
    usual = f"{_SINGLE}.index.json"
    if chosen_variant := choose_variant(path, names):
        return chosen_variant
    if _SINGLE in weights:
        ignored = [n for n in [*weights, *indexes] if n != _SINGLE]
        return _SINGLE, "", _ignored(path, ignored)
    if usual in indexes or len(indexes) == 1:
        return "", usual if usual in indexes else indexes[0], []
    if len(weights) == 1 and not indexes:
        return weights[0], "", []
    if not weights and (chosen := choose_pickles(path, names)):
        return *chosen, []
    refuse_other_formats(path, names)
    if not weights:
        raise CheckpointError(
            f"{where(path)}: no .safetensors file in this folder; expected model.safetensors, "
            "or model.safetensors.index.json and its shards"
        )
    raise CheckpointError(
        f"{where(path)}: {len(weights)} .safetensors files and no {usual} that says what belongs "
        f"together ({_some(weights)}); fetch the index, or name one of the files"
    )


def _ignored(path: Path, names: list[str]) -> list[str]:
    if not names:
        return []
    return [f"{where(path)}: {_SINGLE} is read; beside it, ignored: {_some(names)}"]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(shown(name) for name in names[:3]) + more


def _config(folder: Path) -> dict[str, Any] | None:
    path = folder / "config.json"
    config = None
    if path.is_symlink() or path.exists():
        config = read_json(path, "config", MAX_CONFIG)
        check_config(config, path)
    return _quantised(config, path)


def _quantised(config: dict[str, Any] | None, path: Path) -> dict[str, Any] | None:
    """Refuse quantised weights that nobody asked to read, before any header is read."""
    config = with_settings(config, path.parent)
    if stated := quantisation(config):
        refuse_unasked(path, stated[1], stated[0])
    return config


def _assemble(
    path: Path,
    folder: Path,
    files: list[Path],
    index: Index | None,
    config: dict[str, Any] | None,
    warnings: list[str],
) -> Checkpoint:
    tensors: dict[str, TensorRef] = {}
    stamps: dict[Path, FileStamp] = {}
    metadata: dict[str, str] = {}
    for file in files:
        header = _header(file, index, warnings)
        metadata = metadata or header.metadata
        stamps[file] = header.stamp
        for name, info in header.tensors.items():
            if name in tensors:
                raise CheckpointError(
                    f"{where(file)}: tensor {shown(name)} is also in "
                    f"{where(tensors[name].file.name)}; one shard must hold each tensor"
                )
            tensors[name] = TensorRef(name, info.dtype, info.shape, info.start, info.end, file)
    if not tensors:
        raise CheckpointError(f"{where(path)}: the checkpoint holds no tensors")
    if index:
        warnings = [*warnings, *index.compare(tensors)]
    raw = index.raw if index else None
    plain = Checkpoint(path, folder, tuple(files), tensors, config, raw, tuple(warnings), stamps)
    return unpacked_checkpoint(replace(plain, metadata=metadata))


def _header(file: Path, index: Index | None, warnings: list[str]) -> Header:
    if index and not file.exists() and away(file) is None:
        raise CheckpointError(
            f"{where(file)}: this shard is named in {index.path.name} but missing; "
            "fetch the rest of the checkpoint"
        )
    if not is_pickle(file.name):
        return header_of(file)
    found = read_torch_file(here(file))
    warnings += found.warnings
    return found.header
