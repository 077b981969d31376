"""Collect statistics of a model on data: one pass over the data, one file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergewise._paths import expanded
from mergewise.checkpoint import Checkpoint, open_reference, open_runnable
from mergewise.errors import DataError, EvidenceError
from mergewise.evidence._inputs import Feeder, Reading, as_data, survey
from mergewise.evidence._vocabulary import see_tokens
from mergewise.evidence.models._call import Fed
from mergewise.evidence.models._live import LiveModel, Role, open_model
from mergewise.evidence.models._sites import Sites, sites_of
from mergewise.evidence.statistics._base import Pass
from mergewise.evidence.statistics._budget import forward_bytes, gradient_bytes, make_sums
from mergewise.evidence.statistics._evidence import Evidence, load_evidence
from mergewise.evidence.statistics._file import check_out, write_evidence
from mergewise.evidence.statistics._forward import Forward, Job, job
from mergewise.evidence.statistics._pruned import PrunedWalk, in_layers, sparsity_of
from mergewise.evidence.statistics._record import Made, entries_of, record_of
from mergewise.evidence.statistics._request import Request, requests
from mergewise.evidence.statistics._scoped import Scoped

if TYPE_CHECKING:
    from mergewise.evidence._data import Data
    from mergewise.evidence._objective import Example, Loss
    from mergewise.evidence.statistics._sums import StoredSums

Source = Any


@dataclass(frozen=True)
class Progress:
    """How far a collection is.

    Attributes:
        done: records of the data.
        total: all records; None if nobody knows.
        tokens: real tokens (examples, where there are no tokens).
        stage: ``forward`` or ``gradients``.
        seconds: since this stage began.
    """

    done: int
    total: int | None
    tokens: int
    stage: str
    seconds: float


@dataclass(frozen=True)
class Setup:
    """Everything but the model that a run needs, checked.

    Attributes:
        keep: the model is the caller's, and has its weights afterwards.
    """

    asked: Sequence[Request]
    out: Path
    reading: Reading
    data: Data
    total: int | None
    seed: int
    loss: Loss | None
    float64: bool
    memory: int | None
    progress: Callable[[Progress], None] | None
    share: tuple[int, int]
    keep: bool


def collect(
    statistics: str | Iterable[str],
    model: Path | str | LiveModel,
    data: Source,
    out: Path | str,
    *,
    other: Path | str | LiveModel | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    batch_size: int = 8,
    max_length: int | None = None,
    limit: int | None = None,
    rows: tuple[int, int | None] | None = None,
    share: tuple[int, int] = (0, 1),
    template: str | None = None,
    split: str = "train",
    prepare: Mapping[str, Any] | None = None,
    role: Role | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    offload: bool = False,
    memory: int | None = None,
    float64: bool = False,
    seed: int = 0,
    loss: Loss | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Evidence:
    """Collect statistics of a model on data, and write them to an evidence file.

    Every statistic is a sum over real tokens (or examples), so neither the batch size nor padding
    changes it beyond rounding, and the files of several workers, each with a `share`, add up with
    `merge_evidence`.

    Args:
        statistics: names, in a list or separated by commas.
        model: a checkpoint, ``BASE+ADAPTER``, or a model in memory.
        data: a path, `Data`, or an iterable of records, of texts, or of dicts of tensors. These
            dicts are batches, passed to the module as keyword arguments; ``attention_mask`` tells
            padding, ``labels`` are kept back. For statistics read from a file: its path.
        out: the evidence file.
        other: the second model, for statistics that compare two.
        options: by statistic, then name.
        max_length: longer texts are cut into several; see `Reading`.
        limit: at most so many records (batches, for dicts of tensors).
        rows: which records: the first, and the one after the last.
        share: (k, n): every n-th record from the k-th on, from 0.
        split: of an ``.npz`` file or a set of `datasets`.
        prepare: how images are prepared: the options of image classification tasks.
        role: what the checkpoint is loaded as; by default as its config says.
        offload: leave the weights on disk, and read each module's when it runs.
        memory: bytes that the sums may take before matrices are kept in a temporary file.
        float64: add matrices in float64 too.
        seed: of labels drawn from the model.
        loss: of one example, for gradients of a module that is no known model.
        progress: called after every batch.

    Raises:
        EvidenceError: for an unknown statistic or option, or one that does not fit the model.
        DataError: if the data is empty, cannot be read, or lacks a text.
        CheckpointError: if the checkpoint cannot be loaded.
        OutputError: if the file cannot be written.
        NonFiniteError: if activations or gradients are NaN or infinite.
    """
    asked = requests(statistics, options)
    path = expanded(out)
    check_out(path, overwrite)
    _check(asked, other, offload)
    if asked[0].statistic.need == "file":
        return _from_file(asked, model, data, path)
    checkpoint = None if isinstance(model, LiveModel) else open_runnable(model)
    role = role or role_of(model if checkpoint is None else checkpoint)
    reading = Reading(batch_size, max_length, template, dict(prepare or {}))
    found = as_data(data, limit, share, split, rows)
    total = survey(found, role, reading, has_tokenizer(model, checkpoint))
    if checkpoint is not None:
        see_tokens(str(model), checkpoint, found, role, template, trust_remote_code)
    keep = isinstance(model, LiveModel)
    setup = Setup(
        asked, path, reading, found, total, seed, loss, float64, memory, progress, share, keep
    )

    def live(given: Path | str | LiveModel) -> LiveModel:
        if isinstance(given, LiveModel):
            return given
        return open_model(
            given,
            role,
            device=device,
            dtype=dtype,
            offload=offload,
            trust_remote_code=trust_remote_code,
        )

    if other is not None and not isinstance(other, LiveModel):
        open_runnable(other)
    return _run(setup, live(model), None if other is None else live(other), role)


def role_of(model: Any) -> Role:
    """What a checkpoint is loaded as, or a model in memory is: as its architecture says."""
    live = isinstance(model, LiveModel)
    name = type(model.module).__name__ if live else (model.architecture or "")
    if live and not hasattr(model.module, "config"):
        return "body"
    if name.endswith("ForSequenceClassification"):
        return "text_classifier"
    if name.endswith("ForImageClassification"):
        return "image_classifier"
    if not name or name.endswith(("ForCausalLM", "LMHeadModel")):
        return "causal_lm"
    return "body"


def _check(asked: Sequence[Request], other: Any, offload: bool) -> None:
    needs = {request.statistic.need for request in asked}
    names = ", ".join(request.statistic.name for request in asked)
    if "file" in needs and len(asked) > 1:
        raise EvidenceError(f"{names}: one that is read from a file must be collected alone")
    if offload and "gradients" in needs:
        raise EvidenceError(
            f"{names}: gradients need the whole model in memory; leave out --offload, or collect "
            "forward statistics only"
        )
    if sparsity_of(asked) is not None and offload:
        raise EvidenceError(
            f"{names}: layers are pruned in memory; leave out --offload, or `pruned`"
        )
    two = [request.statistic.name for request in asked if request.statistic.two_models]
    if two and other is None:
        raise EvidenceError(f"{two[0]} compares two models; name the second: --with CHECKPOINT")
    if other is not None and not two:
        raise EvidenceError(f"{names}: no second model is used; leave out --with")


def has_tokenizer(model: Path | str | LiveModel, checkpoint: Checkpoint | None) -> bool:
    if isinstance(model, LiveModel):
        return model.tokenizer is not None
    assert checkpoint is not None
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt")
    return any((checkpoint.tokenizer_folder / name).is_file() for name in names)


def _stored(model: LiveModel) -> tuple[str, ...]:
    return () if model.reference is None else tuple(open_reference(model.reference).tensors)


def _run(setup: Setup, model: LiveModel, other: LiveModel | None, role: Role) -> Evidence:
    sites = sites_of(model.module, _stored(model))
    others = None if other is None else (other, sites_of(other.module, _stored(other)))
    config = getattr(model.module, "config", None)
    sums, runs = _prepare(setup, model, sites, config)
    started = time.monotonic()
    try:
        feeder = Feeder(setup.data, model, setup.reading, role == "text_classifier")
        jobs = [one for one in runs if one.statistic.need == "forward"]
        made = Made(model, other, sites, runs, feeder, str(_dtype(model)))
        sparsity = sparsity_of(setup.asked)
        if jobs and sparsity is not None:
            _pruned(setup, made, jobs, sparsity)
        elif jobs:
            _forward(setup, made, Forward(model, jobs, others), feeder)
        slow = [one for one in runs if one.statistic.need == "gradients"]
        if slow:
            _gradients(setup, made, slow, feeder)
        made.seconds = time.monotonic() - started
        if not made.tokens:
            raise DataError(
                f"{setup.data.name}: no tokens: its {made.records or 'many'} records are empty, or "
                "padding alone; nothing was written"
            )
        record = record_of(setup.asked, made, setup.data, setup.share, setup.seed)
        write_evidence(setup.out, record, entries_of(runs))
    finally:
        sums.close()
    return load_evidence(setup.out)


def _prepare(
    setup: Setup, model: LiveModel, sites: Sites, config: Any
) -> tuple[StoredSums, list[Job]]:
    """Where everything is added, and what adds."""
    jobs, sizes = [], []
    for request in setup.asked:
        run = Pass(request.settings, model.module, Scoped(None, request.statistic.name), config)
        walked = request.options.get("pruned") is not None
        one = job(request.statistic, run, in_layers(sites) if walked else sites)
        if request.statistic.need == "gradients":
            sizes.append(gradient_bytes(one, sites, setup.float64))
        else:
            if not one.sites:
                raise EvidenceError(
                    f"{request.statistic.name}: {model.name} has no tensor that it describes; "
                    f"{request.statistic.summary}"
                )
            sizes.append(forward_bytes(one, setup.float64))
        jobs.append(one)
    sums = make_sums(sizes, setup.memory, setup.out.absolute().parent, setup.float64, model.device)
    for one in jobs:
        one.run.sums.store = sums  # type: ignore[attr-defined]
    return sums, jobs


def _forward(setup: Setup, made: Made, forward: Forward, feeder: Feeder) -> None:
    models = [made.model, *([made.other] if made.other else [])]
    with _evaluating(models), forward.hooked():
        for fed in _told(setup, made, "forward", feeder):
            forward.batch(fed.inputs, fed.mask)
    made.unplaced, made.odd = sorted(forward.unplaced), sorted(forward.odd)


def _pruned(setup: Setup, made: Made, jobs: Sequence[Job], sparsity: float) -> None:
    """Layer by layer; records are told once for every layer."""
    batches = list(made.feeder)
    at, started = 0, 0.0

    def told(layer: int, layers: int, fed: Fed) -> None:
        nonlocal at, started
        if layer != at:
            at, started = layer, time.monotonic()
            made.records = made.sequences = made.tokens = 0
        made.records += fed.records
        made.sequences += len(fed.keys)
        made.tokens += fed.tokens
        if setup.progress is not None:
            stage, seconds = f"layer {layer} of {layers}", time.monotonic() - started
            setup.progress(Progress(made.records, setup.total, made.tokens, stage, seconds))

    walk = PrunedWalk(made.model, made.sites, jobs, sparsity, setup.keep, told)
    if batches:
        with _evaluating([made.model]):
            walk.run(batches)
    made.unplaced, made.odd = sorted(walk.unplaced), sorted(walk.odd)


@contextmanager
def _evaluating(models: Sequence[LiveModel]) -> Iterator[None]:
    """With every module in evaluation mode."""
    training = [child for m in models for child in m.module.modules() if child.training]
    try:
        for model in models:
            model.module.eval()
        yield
    finally:
        for child in training:
            child.training = True


def _gradients(setup: Setup, made: Made, runs: Sequence[Job], feeder: Feeder) -> None:
    from mergewise.evidence._objective import examples_of
    from mergewise.evidence.statistics._gradients import run_examples

    def examples() -> Iterator[Example]:
        for fed in _told(setup, made, "gradients", feeder):
            labels = {} if fed.labels is None else {"labels": fed.labels}
            yield from examples_of({**fed.inputs, **labels}, fed.keys)

    run_examples(
        made.model,
        examples(),
        [(one.statistic, one.run) for one in runs],
        sites=made.sites,
        loss=setup.loss,
        seed=setup.seed,
    )


def _told(setup: Setup, made: Made, stage: str, feeder: Feeder) -> Iterator[Fed]:
    """Batches, with progress told after each."""
    made.records = made.sequences = made.tokens = 0
    started = time.monotonic()
    for fed in feeder:
        yield fed
        made.records += fed.records
        made.sequences += len(fed.keys)
        made.tokens += fed.tokens
        if setup.progress is not None:
            seconds = time.monotonic() - started
            setup.progress(Progress(made.records, setup.total, made.tokens, stage, seconds))


def _dtype(model: LiveModel) -> str:
    kinds = (p.dtype for p in model.module.parameters() if p.is_floating_point())
    return str(next(kinds, "none")).removeprefix("torch.")


def _from_file(asked: Sequence[Request], model: Any, data: Any, out: Path) -> Evidence:
    from mergewise.evidence.statistics._from_file import collect_from_file

    if isinstance(model, LiveModel) or not isinstance(data, str | Path):
        raise EvidenceError(
            f"{asked[0].statistic.name} is read from a file that belongs to a checkpoint; give "
            "the checkpoint's path as the model, and the file's path as the data"
        )
    return collect_from_file(asked[0], model, expanded(data), out)
