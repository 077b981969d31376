"""Write a transformed checkpoint: in a working folder, then moved into place, config last."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise._units import show_bytes
from mergewise.checkpoint import (
    TORCH_NAMES,
    ChangedRef,
    Checkpoint,
    FileReader,
    ShardLayout,
    TensorRef,
    cannot_write,
    changed_whole,
    copy_tokenizer,
    create_shard,
    fingerprint,
    index_json,
    merged_licence,
    plan_shards,
    read_small,
    read_whole,
    stated_licence,
    versions,
    write_at,
    write_file,
)
from mergewise.constants import DEFAULT_SHARD_BYTES
from mergewise.engine import PROVENANCE_FILE, RECIPE_FILE, Workspace, move_in
from mergewise.errors import CheckpointError, NonFiniteError, OutputError
from mergewise.evidence import known_tokens
from mergewise.vocabulary import OutputFiles, read_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from mergewise.transforms._base import Ask, Changes, Transform

_BLOCK = 1 << 24
_MAX_RECORD = 50_000_000
_SIDE_FILES = re.compile(r"surgery\..*\.safetensors")
"""Files beside the weights that belong to exactly these weights."""


@dataclass(frozen=True)
class Transformed:
    """What a transform made.

    Attributes:
        out: the output folder.
        files: weights, then further files that the transform made.
        changed: names of the tensors that are not as they were.
        notes: what was done, in words.
        warnings: what is odd.
        numbers: what was measured.
    """

    out: Path
    files: tuple[str, ...]
    changed: tuple[str, ...]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)


class Output:
    """The output folder of a transform: refused or locked before the work, filled after it.

    Raises:
        OutputError: if it holds something, is an input, or cannot be written.
    """

    def __init__(self, out: Path, ask: Ask, *, overwrite: bool, restart: bool) -> None:
        self.out, self.ask = out, ask
        self._refuse_inputs()
        # the same for every transform: none is continued, so another's leavings may go
        self.space = Workspace(out, {"transform": True}, overwrite=overwrite, restart=restart)

    def _refuse_inputs(self) -> None:
        inputs = [self.ask.checkpoint, *self.ask.models.values()]
        out = self.out.resolve()
        for one in inputs:
            if out in {one.folder.resolve(), *(file.resolve().parent for file in one.files)}:
                raise OutputError(
                    f"{self.out}: is the folder of the input {one.path}, or holds its files; "
                    "choose another output folder"
                )

    def __enter__(self) -> Output:
        try:
            self._see_room(self.ask.checkpoint.total_bytes)
        except BaseException:
            self.space.abandon()
            raise
        return self

    def _see_room(self, need: int) -> None:
        free = shutil.disk_usage(self.space.folder).free
        if need > free:
            raise OutputError(
                f"{self.out}: {show_bytes(need)} are needed on this disk and {show_bytes(free)} "
                "are free; make room, or choose another folder"
            )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self.space.abandon()

    def write(self, transform: Transform, changes: Changes) -> Transformed:
        """Write everything and move it into place.

        Raises:
            OutputError: if it cannot be written or moved.
            CheckpointError: if the input changed meanwhile.
            NonFiniteError: if a new value is NaN or infinite.
        """
        source, resized = self.ask.checkpoint, changes.resized
        values = {n: _stored(source.tensors[n], v, resized) for n, v in changes.tensors.items()}
        shapes = {n: tuple(values[n].shape) if n in values else t.shape
                  for n, t in source.tensors.items()}  # fmt: skip
        layouts = plan_shards(
            [(n, t.dtype, shapes[n]) for n, t in source.tensors.items()], DEFAULT_SHARD_BYTES
        )
        self._see_room(sum(layout.size for layout in layouts))
        sums = self._shards(layouts, values)
        warnings = [*changes.warnings, *self._small_files(transform, changes, layouts, sums)]
        names = tuple(layout.filename for layout in layouts)
        return Transformed(
            self.out, (*names, *changes.files), tuple(values), changes.notes, tuple(warnings),
            changes.numbers,
        )  # fmt: skip

    def _shards(self, layouts: list[ShardLayout], values: Mapping[str, Tensor]) -> dict[str, str]:
        """Write the weights; their checksums by file name."""
        source, sums = self.ask.checkpoint, {}
        total, done = sum(layout.size for layout in layouts), 0
        with FileReader(source.stamps) as reader:
            for layout in layouts:
                sums[layout.filename] = _shard(
                    self.space.folder / layout.filename, layout, source, values, reader
                )
                done += layout.size
                self.ask.progress("writing", done, total)
            reader.verify_unchanged()
        return sums

    def _small_files(
        self,
        transform: Transform,
        changes: Changes,
        layouts: list[ShardLayout],
        sums: Mapping[str, str],
    ) -> list[str]:
        source, small = self.ask.checkpoint, self.space.folder / "files"
        try:
            shutil.rmtree(small, ignore_errors=True)
            small.mkdir()
            files = changes.small or _words(source)
            copied = files.write(small) if files else copy_tokenizer(source.folder, small)
            warnings = [*copied.warnings, *_side_files(source.folder, small, changes)]
            for name, data in changes.files.items():
                write_file(small / name, data)
            record = _provenance(transform, self.ask, changes, sums)
            write_file(small / PROVENANCE_FILE, record)
            write_file(small / "README.md", _card(transform, self.ask, changes).encode())
            if len(layouts) > 1:
                write_file(small / "model.safetensors.index.json", index_json(layouts))
            if source.config is not None:
                write_file(small / "config.json", _config(source, changes.config))
            kept = {path.name for path in small.iterdir()}
            move_in(self.space, small, list(sums))
            for old in sorted(self.out.iterdir()):  # of the weights that were here before
                stale = old.name == RECIPE_FILE or _SIDE_FILES.fullmatch(old.name)
                if stale and old.name not in kept:
                    old.unlink()
        except OSError as error:
            raise OutputError(f"{self.out}: cannot be moved there: {error}; run it again") from None
        self.space.remove()
        return warnings


def _stored(ref: TensorRef, value: Tensor, resized: bool = False) -> Tensor:
    """A new value in the stored type."""
    if tuple(value.shape) != ref.shape and not resized:
        raise ValueError(f"{ref.name}: {list(value.shape)} for a tensor of {list(ref.shape)}")
    made = value.detach().cpu().to(getattr(torch, TORCH_NAMES[ref.dtype])).contiguous()
    if made.is_floating_point() and not bool(made.isfinite().all()):
        raise NonFiniteError(
            f"tensor {ref.name} would hold NaN or infinity as {ref.dtype}; store the checkpoint in "
            "a wider type, or give other data"
        )
    return made


def _shard(
    path: Path,
    layout: ShardLayout,
    source: Checkpoint,
    values: Mapping[str, Tensor],
    reader: FileReader,
) -> str:
    """Write one shard and flush it; its checksum."""
    import xxhash

    path.unlink(missing_ok=True)
    digest = xxhash.xxh3_128(layout.header)
    descriptor = create_shard(path, layout)
    try:
        at = len(layout.header)
        for name in layout.offsets:  # in the order of the file
            for part in _parts(source.tensors[name], values.get(name), reader):
                write_at(descriptor, part, at)
                digest.update(part)
                at += part.nbytes
        os.fsync(descriptor)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def _parts(ref: TensorRef, value: Tensor | None, reader: FileReader) -> Iterator[memoryview]:
    if value is None and isinstance(ref, ChangedRef):
        value = _stored(ref, changed_whole(ref, partial(read_whole, reader)))
    if value is not None:
        data: Any = value.flatten().view(torch.uint8).numpy()
        yield memoryview(data)
        return
    for start in range(0, ref.nbytes, _BLOCK):
        buffer = memoryview(bytearray(min(_BLOCK, ref.nbytes - start)))
        reader.read_into(ref, start, buffer)
        yield buffer


def _config(source: Checkpoint, config: dict[str, Any] | None) -> bytes:
    """As it lies there, if it stays; an adapter may have parted the head from the embedding."""
    if source.adapter is None and config is None:
        return read_small(source.folder / "config.json", _MAX_RECORD)
    return (json.dumps(source.config if config is None else config, indent=2) + "\n").encode()


def _words(source: Checkpoint) -> OutputFiles | None:
    """The small files of a model that has its adapter's tokenizer."""
    found = read_tokenizer(source.tokenizer) if source.tokenizer else None
    rows = known_tokens(source)
    return OutputFiles(found, rows or 0, source.folder) if found else None


def _side_files(folder: Path, small: Path, changes: Changes) -> list[str]:
    """Take over what belongs to the weights, if these are as they were; warn if not."""
    found = [path for path in sorted(folder.iterdir()) if _SIDE_FILES.fullmatch(path.name)]
    found = [path for path in found if path.name not in changes.files]
    if changes.tensors:
        return [f"{path.name} belongs to the weights before, and was left out" for path in found]
    for path in found:
        write_file(small / path.name, read_small(path, _MAX_RECORD))
    return []


def _provenance(transform: Transform, ask: Ask, changes: Changes, sums: Mapping[str, str]) -> bytes:
    record = {
        "format": 1,
        "transform": transform.name,
        "settings": vars(ask.settings),
        "versions": versions(),
        "inputs": [
            {"model": name, "files": [_described(path) for path in model.files if path.exists()]}
            for name, model in (("checkpoint", ask.checkpoint), *ask.models.items())
        ],
        "weights": dict(ask.weights),
        "data": {
            label: {"name": Path(data.name).name, "rows": data.rows, "sha256": data.fingerprint()}
            for label, data in ask.data.items()
        },
        "opened": {"dtype": ask.opening.dtype, "device": ask.opening.device.split(":")[0]},
        "reading": vars(ask.reading),
        "changed": sorted(changes.tensors),
        "measured": dict(changes.numbers),
        "notes": list(changes.notes),
        "outputs": dict(sums),
        "before": _before(ask.checkpoint.folder),
    }
    return (json.dumps(record, indent=2, default=str) + "\n").encode()


def _described(path: Path) -> dict[str, Any]:
    return {"name": path.name, "size": path.stat().st_size, "fingerprint": fingerprint(path)}


def _before(folder: Path) -> Any:
    """The provenance of the checkpoint itself, if it has one."""
    try:
        return json.loads(read_small(folder / PROVENANCE_FILE, _MAX_RECORD))
    except (CheckpointError, ValueError, RecursionError):
        return None


def _licence(source: Checkpoint) -> str | None:
    """Of the folder, and of an adapter on top."""
    if source.adapter is None:
        return stated_licence(source.folder)
    parts = [(str(part), stated_licence(part)) for part in (source.folder, source.adapter)]
    return merged_licence(parts)[0] if any(licence for _, licence in parts) else None


def _card(transform: Transform, ask: Ask, changes: Changes) -> str:
    """README.md, with the licence that the checkpoint's own states."""
    licence = _licence(ask.checkpoint)
    front = f"---\nlibrary_name: transformers\nlicense: {licence}\n---\n\n" if licence else ""
    name = ask.checkpoint.folder.resolve().name
    shown = [f"`{x}`: weight {ask.weights[x]:g}" if ask.weights else f"`{x}`" for x in ask.models]
    models = "".join(f"- {text}\n" for text in shown)
    said = "".join(f"- {' '.join(note.split())}\n" for note in changes.notes)
    return (
        f"{front}# {name}, {transform.name}\n\n`{name}` after the mergewise transform "
        f"`{transform.name}`: {transform.summary}.\n\nSource: {transform.source}\n\n{models}"
        f"{said}\n`{PROVENANCE_FILE}` holds settings, data and checksums.\n"
    )
