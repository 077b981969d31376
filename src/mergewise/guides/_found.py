"""Where evidence that a guide made itself comes from, as its file says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mergewise.evidence import fingerprint_of
from mergewise.evidence.statistics import Record, StatisticRecord, software, weights_of
from mergewise.guides._base import Ask, Expert


def found_record(
    ask: Ask, expert: Expert, statistic: str, options: Mapping[str, Any], names: Iterable[str]
) -> Record:
    """The record of one number an element that was found for an expert on its data.

    Args:
        options: what it was found with.
        names: the tensors that it describes.
    """
    checkpoint, data = expert.checkpoint, ask.data[expert.label]
    counts = {name: {"examples": 1} for name in sorted(names)}
    return Record(
        statistics={statistic: StatisticRecord(dict(options), counts)},
        model={
            "name": checkpoint.path.name,
            "kind": "checkpoint",
            "fingerprint": fingerprint_of(checkpoint.path),
            "class": checkpoint.architecture,
            "dtype": checkpoint.dtype,
            "weights": weights_of(checkpoint),
        },
        parts=[{"data": data.name, "sha256": data.fingerprint(), "rows": list(data.rows)}],
        versions=software(),
        uncovered=sorted(set(checkpoint.tensors) - set(counts)),
    )
