"""What a run writes beside its sums: which model, which data, how."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.checkpoint import Checkpoint, fetched, fingerprint, open_reference, versions
from mergewise.errors import NonFiniteError
from mergewise.evidence._data import Data
from mergewise.evidence._inputs import Feeder
from mergewise.evidence.models._live import LiveModel
from mergewise.evidence.models._sites import Sites
from mergewise.evidence.statistics._file import Record, StatisticRecord, WrittenSum, key_of
from mergewise.evidence.statistics._forward import Job
from mergewise.evidence.statistics._request import Request
from mergewise.evidence.statistics._scoped import Scoped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from mergewise.evidence.statistics._sums import StoredSums

_SOME = 5


@dataclass
class Made:
    """What a run has seen."""

    model: LiveModel
    other: LiveModel | None
    sites: Sites
    jobs: Sequence[Job]
    feeder: Feeder
    dtype: str
    records: int = 0
    sequences: int = 0
    tokens: int = 0
    seconds: float = 0.0
    unplaced: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)


def record_of(
    asked: Sequence[Request], made: Made, data: Data, share: tuple[int, int], seed: int
) -> Record:
    """The record of a finished run."""
    statistics = {
        request.statistic.name: StatisticRecord(
            dict(request.options),
            _scoped(one).counts,
            _model(made.other, made.dtype) if made.other and one.statistic.two_models else None,
        )
        for request, one in zip(asked, made.jobs, strict=True)
    }
    return Record(
        statistics=statistics,
        model=_model(made.model, made.dtype),
        parts=[_part(made, data, share, seed)],
        versions=software(),
        turned=sorted({s.tensor for s in made.sites if s.kind == "conv1d_transposed"}),
        uncovered=_uncovered(made),
        notes=_notes(made),
    )


def entries_of(jobs: Sequence[Job]) -> dict[str, WrittenSum]:
    """Everything that was added, by key of the file, in the order of tensors."""
    found = {}
    for one in jobs:
        scoped = _scoped(one)
        for tensor, name in scoped.held():
            store, full = scoped._store(), scoped._name(name)
            shape = store.shape(tensor, full)
            code = "F64" if store.dtype(shape) == torch.float64 else "F32"
            key = key_of(tensor, one.statistic.name, name)
            found[key] = WrittenSum(shape, code, _pieces(store, tensor, full))
    return dict(sorted(found.items()))


def software() -> dict[str, str]:
    """Versions of what decides the numbers."""
    found = versions()
    with contextlib.suppress(PackageNotFoundError):
        found["transformers"] = version("transformers")
    return found


def state_fingerprint(model: LiveModel) -> str | None:
    """The checkpoint's mark, or SHA-256 of the weights in memory."""
    if model.fingerprint is not None:
        return model.fingerprint
    digest = hashlib.sha256()
    for name, value in sorted(model.module.state_dict().items()):
        if value.is_meta:
            return None
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        plain = value.detach().cpu().contiguous().flatten()
        if plain.numel():
            digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weights_of(checkpoint: Checkpoint) -> list[str]:
    """Quick marks of a checkpoint's files, by which a plan sees whether they are the same."""
    return [fingerprint(path) for path in fetched(checkpoint).files]


def _scoped(one: Job) -> Scoped:
    assert isinstance(one.run.sums, Scoped)
    return one.run.sums


def _pieces(store: StoredSums, tensor: str, name: str) -> Any:
    def pieces() -> Iterator[Tensor]:
        for piece in store.pieces(tensor, name):
            if not bool(piece.isfinite().all()):
                raise NonFiniteError(
                    f"{name} of {tensor} became NaN or infinite; the activations or gradients "
                    "are too large: try --dtype float32"
                )
            yield piece

    return pieces


def _model(model: LiveModel, dtype: str) -> dict[str, Any]:
    place = model.reference
    return {
        "name": model.name,
        "kind": "memory" if model.folder is None else "checkpoint",
        "fingerprint": state_fingerprint(model),
        "class": type(model.module).__name__,
        "dtype": dtype,
        **({} if place is None else {"weights": weights_of(open_reference(place))}),
    }


def _part(made: Made, data: Data, share: tuple[int, int], seed: int) -> dict[str, Any]:
    whole = replace(data, rows=(0, None), share=(0, 1))
    reading = made.feeder.reading
    return {
        "data": data.name,
        "sha256": whole.fingerprint(),
        "content": made.feeder.digest,
        "split": data.split,
        "rows": list(data.rows),
        "share": list(share),
        "records": made.records,
        "sequences": made.sequences,
        "tokens": made.tokens,
        "batch_size": reading.batch_size,
        "max_length": made.feeder.max_length,
        "template": reading.template,
        "prepare": dict(reading.prepare),
        "seed": seed,
        "device": made.model.device.type,
        "seconds": round(made.seconds, 3),
    }


def _uncovered(made: Made) -> list[str]:
    described = {tensor for one in made.jobs for tensor, _ in _scoped(one).held()}
    known = set(made.sites.uncovered) | {site.tensor for site in made.sites}
    known |= {part.tensor for parts in made.sites.names.parts.values() for part in parts}
    biases = {f"{name.removesuffix('weight')}bias" for name in described}
    return sorted(known - described - biases)


def _notes(made: Made) -> list[str]:
    notes = list(made.feeder.notes)
    if made.unplaced:
        notes.append(
            f"padding counted at {_some(made.unplaced)}: their outputs have no axis of positions"
        )
    if made.odd:
        notes.append(
            f"left out: {_some(made.odd)}, whose modules give another number of channels than "
            "their weights have"
        )
    for one in made.jobs:
        seen = {tensor for tensor, _ in _scoped(one).held()}
        missed = sorted(set(one.sites) - seen - set(made.odd))
        if missed and one.statistic.need == "forward":
            notes.append(
                f"{one.statistic.name}: no token reached {_some(missed)}, which are left out"
            )
    return notes


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SOME} more" if len(names) > _SOME else ""
    return ", ".join(names[:_SOME]) + more
