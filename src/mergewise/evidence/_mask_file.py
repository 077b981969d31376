"""Train a mask for an expert and keep it as evidence; how much masks have in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise._paths import expanded
from mergewise.checkpoint import Checkpoint, open_reference
from mergewise.evidence._inputs import Feeder, Reading, as_data, survey
from mergewise.evidence._mask_training import MaskSettings, Trained, train_mask
from mergewise.evidence.models._live import LiveModel, open_model
from mergewise.evidence.models._masked import StoredTensors
from mergewise.evidence.models._sites import sites_of
from mergewise.evidence.statistics._collect import Progress, has_tokenizer, role_of
from mergewise.evidence.statistics._evidence import Evidence, load_evidence
from mergewise.evidence.statistics._file import (
    StatisticRecord,
    WrittenSum,
    check_out,
    key_of,
    write_evidence,
)
from mergewise.evidence.statistics._record import Made, record_of

if TYPE_CHECKING:
    from torch import Tensor

_PIECE = 1 << 24


def collect_mask(
    expert: Path | str,
    base: Path | str | Checkpoint,
    data: Any,
    out: Path | str,
    tensors: Collection[str],
    settings: MaskSettings,
    *,
    batch_size: int = 8,
    max_length: int | None = None,
    limit: int | None = None,
    template: str | None = None,
    split: str = "train",
    prepare: Mapping[str, Any] | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> tuple[Evidence, Trained]:
    """Train a mask for an expert's changes on its data, and write it to an evidence file.

    Args:
        expert, base: checkpoints with the same names of tensors.
        data: as `mergewise.evidence.collect` takes it; with classes for classifiers.
        out: the evidence file.
        tensors: which have a mask.
        settings: of the training.

    Raises:
        EvidenceError, DataError, NonFiniteError: see `train_mask`.
        CheckpointError: if a checkpoint cannot be loaded.
        OutputError: if the file cannot be written; nothing is then left.
    """
    path = expanded(out)
    check_out(path, overwrite)
    checkpoint = open_reference(expert)
    foundation = base if isinstance(base, Checkpoint) else open_reference(base)
    role = role_of(checkpoint)
    reading = Reading(batch_size, max_length, template, dict(prepare or {}))
    found = as_data(data, limit, (0, 1), split)
    total = survey(found, role, reading, has_tokenizer(expert, checkpoint))
    live = open_model(expert, role, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    sites = sites_of(live.module, tuple(checkpoint.tensors))
    feeder = Feeder(found, live, reading, role == "text_classifier")
    told = _Counted(progress)
    started = time.monotonic()
    trained = train_mask(
        live, sites.names, StoredTensors(foundation), StoredTensors(checkpoint), tensors, feeder,
        settings, total=total, progress=told,
    )  # fmt: skip
    made = Made(live, None, sites, [], feeder, _dtype(live), told.records, told.records,
                told.tokens, time.monotonic() - started)  # fmt: skip
    record = record_of([], made, found, (0, 1), settings.seed)
    counts = {name: {"examples": 1} for name in sorted(trained.masks)}
    record.statistics["mask"] = StatisticRecord(asdict(settings), counts)
    record.parts[0] |= _outcome(trained)
    record.uncovered = sorted(set(record.uncovered) - set(trained.masks))
    write_evidence(path, record, entries_of_masks(trained.masks))
    return load_evidence(path), trained


def entries_of_masks(masks: Mapping[str, Tensor]) -> dict[str, WrittenSum]:
    """Masks for `write_evidence`, one byte an element."""
    return {
        key_of(name, "mask", "mask"): WrittenSum(tuple(mask.shape), "U8", partial(_pieces, mask))
        for name, mask in sorted(masks.items())
    }


def _pieces(mask: Tensor) -> Iterator[Tensor]:
    flat = mask.flatten().to(torch.uint8)
    yield from (flat[start : start + _PIECE] for start in range(0, len(flat), _PIECE))


def overlaps(files: Sequence[Evidence]) -> list[list[float]]:
    """Jaccard index of every two files' masks: elements in both, of those in any.

    Tensors that one of two files lacks count as not in its mask. Two empty masks have 0.
    """
    table = [[1.0] * len(files) for _ in files]
    for i, j in combinations(range(len(files)), 2):
        table[i][j] = table[j][i] = _jaccard(files[i], files[j])
    return table


def _jaccard(one: Evidence, other: Evidence) -> float:
    both = either = 0
    names = [set(file.tensors("mask")) for file in (one, other)]
    for name in sorted(names[0] | names[1]):
        held = [
            file.sums("mask", name)["mask"].bool()
            for file, known in zip((one, other), names, strict=True)
            if name in known
        ]
        either += int((held[0] | held[-1]).sum())
        both += int((held[0] & held[-1]).sum()) if len(held) == 2 else 0
    return both / either if either else 0.0


class _Counted:
    """Passes progress on, and remembers how much one pass saw."""

    def __init__(self, progress: Callable[[Progress], None] | None) -> None:
        self._progress = progress
        self.records = self.tokens = 0

    def __call__(self, at: Progress) -> None:
        self.records, self.tokens = at.done, at.tokens
        if self._progress is not None:
            self._progress(at)


def _outcome(trained: Trained) -> dict[str, Any]:
    """What the training came to; losses are means over predictions, in nats."""
    first = trained.losses[0] if trained.losses else trained.loss
    return {"kept_epoch": trained.kept, "first_loss": first, "loss": trained.loss}


def _dtype(model: LiveModel) -> str:
    kinds = (p.dtype for p in model.module.parameters() if p.is_floating_point())
    return str(next(kinds, "none")).removeprefix("torch.")
