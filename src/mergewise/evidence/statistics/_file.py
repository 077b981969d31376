"""The evidence file: safetensors, with counts and provenance as JSON in its metadata.

    {tensor}::{statistic}.{sum}   one sum
    __metadata__                  format, version, and `evidence`: a `Record` as JSON

Only sums and counts are kept, so files of several workers add up.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergewise.checkpoint import cannot_write, create_shard, plan_shards, write_at
from mergewise.errors import EvidenceError, OutputError

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "mergewise-evidence"
VERSION = "1"
DTYPES = {"F32": "float32", "F64": "float64", "U8": "uint8"}

Counts = dict[str, dict[str, int]]
Piece = Callable[[], Iterator["Tensor"]]


@dataclass
class StatisticRecord:
    """One statistic of a file.

    Attributes:
        options: as collected, complete.
        counts: by tensor, then unit (``tokens``, ``examples``).
        other: the second model, for statistics that compare two.
    """

    options: dict[str, Any] = field(default_factory=dict)
    counts: Counts = field(default_factory=dict)
    other: dict[str, Any] | None = None


@dataclass
class Record:
    """What a file says about itself.

    Attributes:
        statistics: by name.
        model: name, kind (``checkpoint`` or ``memory``), fingerprint, dtype, class; of a
            checkpoint also `weights`, quick marks of its files.
        parts: one for each run that was added: data, share, examples, tokens, batches, device.
        versions: of the software.
        turned: tensors stored as [inputs, outputs], as GPT-2's Conv1D stores them.
        uncovered: tensors of the checkpoint that no statistic of the file describes.
        notes: what a reader must know.
    """

    statistics: dict[str, StatisticRecord] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    parts: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    turned: list[str] = field(default_factory=list)
    uncovered: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class WrittenSum:
    """One sum to be written.

    Attributes:
        dtype: safetensors code, ``F32`` or ``F64``; ``U8`` for masks.
        pieces: yields its elements in order, flat, in parts of bounded size.
    """

    shape: tuple[int, ...]
    dtype: str
    pieces: Piece


def key_of(tensor: str, statistic: str, name: str) -> str:
    """The name of a sum in the file."""
    return f"{tensor}::{statistic}.{name}"


def parse_key(key: str) -> tuple[str, str, str] | None:
    """Tensor, statistic and sum; None if `key` names none."""
    tensor, mark, rest = key.rpartition("::")
    statistic, dot, name = rest.partition(".")
    return (tensor, statistic, name) if tensor and mark and statistic and dot and name else None


def check_out(out: Path, overwrite: bool) -> None:
    """See that a file can be written, before any work.

    Raises:
        OutputError: if it exists, or its folder does not.
    """
    if not out.name or out.is_dir():
        raise OutputError(f"{out}: a folder; the output is a file, such as {out / 'stats.evd'}")
    if out.exists() and not overwrite:
        raise OutputError(f"{out}: exists already; choose another name, or pass --overwrite")
    if not out.absolute().parent.is_dir():
        raise OutputError(f"{out.parent}: no such folder; create it first")
    if not os.access(out.absolute().parent, os.W_OK):
        raise OutputError(f"{out.parent}: not writable; choose another place")


def write_evidence(out: Path, record: Record, entries: Mapping[str, WrittenSum]) -> None:
    """Write an evidence file: under a temporary name, then renamed.

    Args:
        entries: by key.

    Raises:
        OutputError: if it cannot be written; nothing is then left.
    """
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "evidence": json.dumps(asdict(record), sort_keys=True, ensure_ascii=False),
    }
    specs = [(key, entry.dtype, entry.shape) for key, entry in entries.items()]
    layout = plan_shards(specs, 1 << 62, metadata)[0]
    temporary = out.with_name(f".{out.name}.{os.getpid()}.partial")
    temporary.unlink(missing_ok=True)
    descriptor = create_shard(temporary, layout)
    try:
        for key, entry in entries.items():
            _write(descriptor, layout.offsets[key], layout.sizes[key], key, entry)
        os.fsync(descriptor)
        temporary.replace(out)
    except OSError as error:
        raise cannot_write(out, error) from None
    finally:
        os.close(descriptor)
        temporary.unlink(missing_ok=True)


def _write(descriptor: int, offset: int, size: int, key: str, entry: WrittenSum) -> None:
    end = offset + size
    for piece in entry.pieces():
        data = piece.contiguous().numpy().data.cast("B") if piece.numel() else b""
        write_at(descriptor, data, offset)
        offset += len(data)
    if offset != end:
        raise EvidenceError(f"{key}: {end - offset} bytes too few were summed; run again")
