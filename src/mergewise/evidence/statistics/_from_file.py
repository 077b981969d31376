"""Statistics that are read from a training checkpoint instead of being measured."""

from __future__ import annotations

from pathlib import Path

from mergewise._lazy import torch
from mergewise.checkpoint import open_reference, sha256_file
from mergewise.errors import EvidenceError
from mergewise.evidence.models._live import fingerprint_of
from mergewise.evidence.statistics._base import Statistic
from mergewise.evidence.statistics._evidence import Evidence, load_evidence
from mergewise.evidence.statistics._file import (
    Record,
    StatisticRecord,
    WrittenSum,
    key_of,
    write_evidence,
)
from mergewise.evidence.statistics._record import software, weights_of
from mergewise.evidence.statistics._request import Request
from mergewise.evidence.statistics._sums import MemorySums


def collect_from_file(request: Request, model: Path | str, source: Path, out: Path) -> Evidence:
    """Read a statistic of need ``file`` and write it as evidence.

    Raises:
        EvidenceError: if the file does not fit the checkpoint.
    """
    checkpoint = open_reference(model)
    statistic, sums = request.statistic, MemorySums()
    source = training_file(statistic, source)
    for tensor, name, value, count in statistic.read(checkpoint, source, request.settings):
        sums.add(tensor, name, value)
        sums.count(tensor, count, statistic.unit)
    counts = {tensor: dict(units) for tensor, units in sums.counts.items()}
    record = Record(
        statistics={statistic.name: StatisticRecord(dict(request.options), counts)},
        model={
            "name": Path(model).name,
            "kind": "checkpoint",
            "fingerprint": fingerprint_of(model),
            "class": checkpoint.architecture,
            "dtype": checkpoint.dtype,
            "weights": weights_of(checkpoint),
        },
        parts=[{"data": str(source), "sha256": sha256_file(source), "rows": [0, None]}],
        versions=software(),
        uncovered=sorted(set(checkpoint.tensors) - set(counts)),
    )
    entries = {
        key_of(tensor, statistic.name, name): _entry(sums, tensor, name)
        for tensor, name in sums.held()
    }
    write_evidence(out, record, dict(sorted(entries.items())))
    return load_evidence(out)


def training_file(statistic: Statistic, path: Path) -> Path:
    """The file that a statistic is read from: `path`, or a file of that folder.

    Raises:
        EvidenceError: if there is none.
    """
    if path.is_file():
        return path
    found = [path / name for name in statistic.files if (path / name).is_file()]
    if found:
        return found[0]
    held = f"; in a folder, {', '.join(statistic.files)}" if statistic.files else ""
    raise EvidenceError(
        f"{path}: {statistic.name} is read from a file of a training checkpoint, and there is "
        f"none here{held}; name the file"
    )


def _entry(sums: MemorySums, tensor: str, name: str) -> WrittenSum:
    shape = sums.shape(tensor, name)
    code = "F64" if sums.dtype(shape) == torch.float64 else "F32"
    return WrittenSum(shape, code, lambda: sums.pieces(tensor, name))
