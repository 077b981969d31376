"""Add up the evidence of several workers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise._paths import expanded
from mergewise.errors import EvidenceError
from mergewise.evidence.statistics._evidence import Evidence, load_evidence
from mergewise.evidence.statistics._file import (
    Counts,
    Record,
    StatisticRecord,
    WrittenSum,
    check_out,
    key_of,
    write_evidence,
)

if TYPE_CHECKING:
    from torch import Tensor

    from mergewise.checkpoint import TensorRef


def merge_evidence(
    paths: Sequence[Path | str], out: Path | str, *, overwrite: bool = False
) -> Evidence:
    """Add sums and counts of evidence files, tensor by tensor, into a new file.

    The files must describe one model with the same statistics and options, on different data or
    different shares of the same data.

    Raises:
        EvidenceError: naming the two files and what differs or overlaps.
        CheckpointError: if a file is absent or damaged.
        OutputError: if `out` exists or cannot be written.
    """
    target = expanded(out)
    check_out(target, overwrite)
    if len(paths) < 2:
        raise EvidenceError(f"{len(paths)} evidence file: two or more are merged")
    files = [load_evidence(path) for path in paths]
    for other in files[1:]:
        _check_same(files[0], other)
    for one, other in combinations(files, 2):
        _check_apart(one, other)
    write_evidence(target, _record(files), _entries(files))
    return load_evidence(target)


def _check_same(one: Evidence, other: Evidence) -> None:
    pair = f"{one.path} and {other.path} do not add up:"
    for name in ("fingerprint", "class", "dtype"):
        a, b = one.record.model.get(name), other.record.model.get(name)
        if a != b:
            what = f"{one.record.model.get('name')} and {other.record.model.get('name')}"
            raise EvidenceError(f"{pair} models {what} differ in {name} ({_short(a)}, {_short(b)})")
    if set(one.statistics) != set(other.statistics):
        raise EvidenceError(
            f"{pair} statistics {', '.join(one.statistics)} and {', '.join(other.statistics)}"
        )
    for name, known in one.record.statistics.items():
        match = other.record.statistics[name]
        for option in sorted({*known.options, *match.options}):
            a, b = known.options.get(option), match.options.get(option)
            if a != b:
                raise EvidenceError(f"{pair} {name}.{option} is {a!r} and {b!r}")
        if _mark(known.other) != _mark(match.other):
            raise EvidenceError(f"{pair} {name} was collected with different second models")


def _mark(other: Mapping[str, Any] | None) -> Any:
    return None if other is None else other.get("fingerprint")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 16 else f"{text[:12]}…"


def _check_apart(one: Evidence, other: Evidence) -> None:
    for a in one.record.parts:
        for b in other.record.parts:
            if _overlap(a, b):
                raise EvidenceError(
                    f"{one.path} and {other.path} hold the same data: {a.get('data')} "
                    f"({_words(a)} and {_words(b)}), which would count twice; collect different "
                    "shares (--share 1/4, 2/4, …) or rows"
                )


def _words(part: Mapping[str, Any]) -> str:
    share, rows = part.get("share") or [], part.get("rows") or []
    text = f"share {share[0] + 1} of {share[1]}" if _pair(share) else "all of it"
    whole = not _pair(rows) or (rows[0] == 0 and rows[1] is None)
    return text if whole else f"{text} of rows {rows[0]} to {rows[1] or 'the end'}"


def _pair(value: Any) -> bool:
    """Whether it is [number, number or None], as rows and shares are."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], int)
        and isinstance(value[1], int | None)
    )


def _overlap(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two parts have a record in common, as far as one can tell."""
    if a.get("content") is not None and a.get("content") == b.get("content"):
        return True
    same = a.get("sha256") is not None and a.get("sha256") == b.get("sha256")
    if not same or a.get("split") != b.get("split"):
        return False
    if not _rows_meet(a.get("rows"), b.get("rows")):
        return False
    if a.get("rows") != b.get("rows"):
        return True
    return _shares_meet(a.get("share"), b.get("share"))


def _rows_meet(a: Any, b: Any) -> bool:
    if not (_pair(a) and _pair(b)):
        return True
    (first, last), (start, stop) = ((r[0], math.inf if r[1] is None else r[1]) for r in (a, b))
    return bool(first < stop and start < last)


def _shares_meet(a: Any, b: Any) -> bool:
    if not (_pair(a) and _pair(b)) or not all(n is not None and n > 0 for n in (a[1], b[1])):
        return True
    return bool((a[0] - b[0]) % math.gcd(a[1], b[1]) == 0)


def _record(files: Sequence[Evidence]) -> Record:
    first = files[0].record
    statistics = {
        name: StatisticRecord(known.options, _counts(files, name), known.other)
        for name, known in first.statistics.items()
    }
    missing = [set(file.record.uncovered) for file in files]
    return Record(
        statistics=statistics,
        model=first.model,
        parts=[part for file in files for part in file.record.parts],
        versions=first.versions,
        turned=first.turned,
        uncovered=sorted(set.intersection(*missing)),
        notes=list(dict.fromkeys(note for file in files for note in file.record.notes)),
    )


def _counts(files: Sequence[Evidence], statistic: str) -> Counts:
    total: Counts = {}
    for file in files:
        for tensor, units in file.record.statistics[statistic].counts.items():
            held = total.setdefault(tensor, {})
            for unit, amount in units.items():
                held[unit] = held.get(unit, 0) + amount
    return total


def _entries(files: Sequence[Evidence]) -> dict[str, WrittenSum]:
    found: dict[str, list[tuple[Evidence, TensorRef]]] = {}
    for file in files:
        for (statistic, tensor), sums in file.entries.items():
            for name, ref in sums.items():
                found.setdefault(key_of(tensor, statistic, name), []).append((file, ref))
    return {key: _entry(key, held) for key, held in sorted(found.items())}


def _entry(key: str, held: Sequence[tuple[Evidence, TensorRef]]) -> WrittenSum:
    file, ref = held[0]
    for other, match in held[1:]:
        if (match.shape, match.dtype) != (ref.shape, ref.dtype):
            raise EvidenceError(
                f"{file.path} and {other.path} do not add up: {key} is {ref.dtype} "
                f"{list(ref.shape)} and {match.dtype} {list(match.shape)}"
            )

    def pieces() -> Iterator[Tensor]:
        streams = [one.pieces(place) for one, place in held]
        for parts in zip(*streams, strict=True):
            yield torch.stack(parts).sum(dim=0, dtype=parts[0].dtype)

    return WrittenSum(ref.shape, ref.dtype, pieces)
