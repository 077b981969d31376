"""Reading evidence files; nothing in them is trusted."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise._paths import expanded
from mergewise.checkpoint import FileReader, FileStamp, TensorRef, read_header
from mergewise.errors import CheckpointError, EvidenceError
from mergewise.evidence.statistics._file import (
    DTYPES,
    FORMAT,
    VERSION,
    Record,
    StatisticRecord,
    parse_key,
)

if TYPE_CHECKING:
    from torch import Tensor

_PIECE = 1 << 24
"""Bytes read at a time."""
_MAX_METADATA = 64_000_000
_WORD = re.compile(r"[A-Za-z0-9_]{1,100}")


@dataclass(frozen=True)
class Evidence:
    """An evidence file, opened: its header is known, its tensors are read when asked for.

    Attributes:
        path: the file.
        record: what it says about itself.
        entries: where each sum lies, by (statistic, tensor), then name.
    """

    path: Path
    record: Record
    entries: Mapping[tuple[str, str], Mapping[str, TensorRef]] = field(repr=False)
    stamp: FileStamp = field(repr=False)

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of the statistics it holds."""
        return tuple(self.record.statistics)

    @property
    def provenance(self) -> dict[str, Any]:
        """Model, data, settings and versions; JSON values."""
        return {
            "model": self.record.model,
            "parts": self.record.parts,
            "versions": self.record.versions,
            "notes": self.record.notes,
            "uncovered": self.record.uncovered,
            "statistics": {
                name: {"options": known.options, "other": known.other}
                for name, known in self.record.statistics.items()
            },
        }

    @property
    def summary(self) -> dict[str, Any]:
        """What a merge that used the file says of it: model, data and statistics."""
        return {
            "model": self.record.model,
            "data": [part.get("data") for part in self.record.parts],
            "statistics": {name: known.options for name, known in self.record.statistics.items()},
        }

    def tensors(self, statistic: str) -> tuple[str, ...]:
        """The tensors a statistic describes here.

        Raises:
            EvidenceError: if the file does not hold it.
        """
        self._statistic(statistic)
        return tuple(tensor for name, tensor in self.entries if name == statistic)

    def counts(self, statistic: str, tensor: str) -> dict[str, int]:
        """How many tokens or examples a tensor's sums run over; by unit.

        Raises:
            EvidenceError: if the file does not hold it.
        """
        self._refs(statistic, tensor)
        return dict(self._statistic(statistic).counts.get(tensor, {}))

    def sums(self, statistic: str, tensor: str) -> dict[str, Tensor]:
        """The sums themselves, float32, float64 or (masks) uint8, read by range.

        Raises:
            EvidenceError: if the file does not hold them.
            CheckpointError: if the file changed or is damaged.
        """
        with self._reader() as reader:
            return {name: _read(reader, ref) for name, ref in self._refs(statistic, tensor).items()}

    def values(self, statistic: str, tensor: str) -> dict[str, Tensor]:
        """Means and norms: what the statistic makes of its sums.

        Raises:
            EvidenceError: if the file does not hold them, or nobody knows this statistic.
        """
        from mergewise.evidence.statistics import get_statistic

        known = get_statistic(statistic)
        return known.finalise(self.sums(statistic, tensor), self.counts(statistic, tensor))

    def pieces(self, ref: TensorRef) -> Iterator[Tensor]:
        """The elements of one sum, flat, in parts of bounded size."""
        with self._reader() as reader:
            for start in range(0, ref.nbytes, _PIECE):
                yield _range(reader, ref, start, min(_PIECE, ref.nbytes - start))

    def _reader(self) -> FileReader:
        return FileReader({self.path: self.stamp})

    def _statistic(self, name: str) -> StatisticRecord:
        if name not in self.record.statistics:
            have = ", ".join(self.record.statistics) or "none"
            raise EvidenceError(
                f"{self.path}: no statistic {name!r}; it has {have}. "
                f"Collect it: mergewise collect {name} CHECKPOINT --data DATA -o FILE"
            )
        return self.record.statistics[name]

    def _refs(self, statistic: str, tensor: str) -> Mapping[str, TensorRef]:
        self._statistic(statistic)
        if (statistic, tensor) not in self.entries:
            raise EvidenceError(
                f"{self.path}: {statistic} does not describe {tensor!r}; it describes "
                f"{len(self.tensors(statistic))} tensors, which `mergewise evidence show` lists"
            )
        return self.entries[statistic, tensor]


def load_evidence(path: Path | str) -> Evidence:
    """Open an evidence file; only its header is read.

    Raises:
        EvidenceError: if it is no evidence file, or is damaged.
        CheckpointError: if it is absent or no safetensors file.
    """
    path = expanded(path)
    header = read_header(path)
    record = _record(header.metadata, path)
    entries: dict[tuple[str, str], dict[str, TensorRef]] = {}
    for key, info in header.tensors.items():
        found = parse_key(key)
        if found is None or found[1] not in record.statistics:
            raise _bad(path, f"a tensor is called {key[:200]!r}, which names no statistic of it")
        if info.dtype not in DTYPES:
            raise _bad(path, f"{key[:200]!r} is {info.dtype}; sums are F32, F64 or U8")
        tensor, statistic, name = found
        ref = TensorRef(key, info.dtype, info.shape, info.start, info.end, path)
        entries.setdefault((statistic, tensor), {})[name] = ref
    return Evidence(path, record, entries, header.stamp)


def _bad(path: Path, what: str) -> EvidenceError:
    return EvidenceError(f"{path}: {what}; the file is damaged, collect it again")


def _record(metadata: Mapping[str, str], path: Path) -> Record:
    if metadata.get("format") != FORMAT:
        raise EvidenceError(
            f"{path}: not an evidence file; expected one that `mergewise collect` wrote"
        )
    if metadata.get("version") != VERSION:
        raise EvidenceError(
            f"{path}: evidence format {metadata.get('version')!r}, and this version of mergewise "
            f"reads {VERSION}; collect it again, or use the version that wrote it"
        )
    value = _object(metadata.get("evidence", ""), path)
    try:
        return _checked(value)
    except _WrongError as error:
        raise _bad(path, f"its metadata: {error}") from None


def _object(text: str, path: Path) -> dict[str, Any]:
    if len(text) > _MAX_METADATA:
        raise _bad(path, f"{len(text):,} characters of metadata")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _bad(path, f"its metadata is not JSON: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise _bad(path, f"its metadata is {type(value).__name__}, expected an object")
    return value


class _WrongError(ValueError):
    pass


def _checked(value: Mapping[str, Any]) -> Record:
    lists = {name: _of(value, name, list) for name in ("parts", "turned", "uncovered", "notes")}
    for name, kind in (("parts", dict), ("turned", str), ("uncovered", str), ("notes", str)):
        for item in lists[name]:
            _expect(isinstance(item, kind), f"{name} must hold {kind.__name__}")
    versions = _of(value, "versions", dict)
    _expect(all(isinstance(v, str) for v in versions.values()), "versions must be texts")
    statistics = {}
    for name, item in _of(value, "statistics", dict).items():
        _expect(bool(_WORD.fullmatch(name)), f"{name[:100]!r} is no name of a statistic")
        _expect(isinstance(item, dict), f"{name} must be an object")
        statistics[name] = _statistic(name, item)
    return Record(statistics, _of(value, "model", dict), versions=versions, **lists)


def _statistic(name: str, item: Mapping[str, Any]) -> StatisticRecord:
    other = item.get("other")
    _expect(other is None or isinstance(other, dict), f"{name}: other must be an object")
    counts = _of(item, "counts", dict)
    for tensor, units in counts.items():
        good = isinstance(units, dict) and all(_is_count(v) for v in units.values())
        _expect(good, f"{name}: counts of {tensor[:100]!r} must be whole numbers from 0 on")
    return StatisticRecord(_of(item, "options", dict), counts, other)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _of(value: Mapping[str, Any], name: str, kind: type) -> Any:
    found = value.get(name)
    _expect(isinstance(found, kind), f"{name}: {kind.__name__} expected")
    return found


def _expect(fine: bool, what: str) -> None:
    if not fine:
        raise _WrongError(what)


def _read(reader: FileReader, ref: TensorRef) -> Tensor:
    return _range(reader, ref, 0, ref.nbytes).reshape(ref.shape)


def _range(reader: FileReader, ref: TensorRef, start: int, count: int) -> Tensor:
    kind = getattr(torch, DTYPES[ref.dtype])
    if count == 0:
        return torch.zeros(0, dtype=kind)
    buffer = bytearray(count)
    reader.read_into(ref, start, memoryview(buffer))
    found = torch.frombuffer(buffer, dtype=kind)
    if not math.isfinite(float(found.sum())) and not bool(found.isfinite().all()):
        raise CheckpointError(f"{ref.file}: {ref.name} holds NaN or infinity; collect it again")
    return found
