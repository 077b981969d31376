"""Score models one after the other: known scores from the cache, each checkpoint loaded once."""

from __future__ import annotations

import dataclasses
import gc
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from mergewise._lazy import torch
from mergewise.checkpoint import versions
from mergewise.errors import MergewiseError
from mergewise.evidence._cache import ScoreCache, code_of, key_of, plain
from mergewise.evidence._evaluation import Result
from mergewise.evidence._line_up import LineUp, Model
from mergewise.evidence._ready import Ready
from mergewise.evidence._tasks import TaskEntry
from mergewise.evidence.evaluators import Failure
from mergewise.evidence.models._live import DTYPES, LiveModel, Role, open_model


@dataclass(frozen=True)
class Step:
    """Where an evaluation is: `number` of `total` scores are done.

    Attributes:
        done: what the score in progress has done, of `amount`, in the evaluator's unit.
    """

    number: int
    total: int
    model: str
    task: str
    done: int = 0
    amount: int = 0


Progress = Callable[[Step], None]


@dataclass(frozen=True)
class Opening:
    """How checkpoints are opened.

    Raises:
        MergewiseError: for a dtype there is not.
    """

    device: str = "auto"
    dtype: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise MergewiseError(f"dtype {self.dtype!r}: one of {', '.join(DTYPES)} expected")

    def where(self) -> str:
        """The torch device; torch itself is imported only where there is a choice."""
        from mergewise._device import pick_device

        # importing torch takes longer than reading known scores
        no_choice = self.device == "auto" and versions()["torch"].endswith("+cpu")
        return "cpu" if no_choice or self.device == "cpu" else pick_device(self.device)


class Run:
    """The scores of one evaluation, as they come."""

    def __init__(
        self, split: str, opening: Opening, ready: Ready, cache: ScoreCache | None
    ) -> None:
        self.split = split
        self.opening = opening
        self.device = opening.where()
        self.ready = ready
        self.cache = cache
        self.versions = _versions()
        self.results: dict[tuple[str, str], Result] = {}
        self.known = 0

    def take_known(self, lined: LineUp, jobs: Sequence[tuple[str, TaskEntry]]) -> None:
        """Fill in what the cache holds."""
        for name, entry in jobs:
            key = self._key(name, lined.models[name], entry)
            found = self.cache.get(key) if self.cache and key else None
            if found is not None:
                self.results[name, entry.name] = found
        self.known = len(self.results)

    def score_others(
        self, lined: LineUp, jobs: Sequence[tuple[str, TaskEntry]], progress: Progress
    ) -> None:
        """Score the rest, model by model."""
        for name, model in lined.models.items():
            todo = [e for n, e in jobs if n == name and (n, e.name) not in self.results]
            for role in dict.fromkeys(entry.evaluator.role() for entry in todo):
                same = [entry for entry in todo if entry.evaluator.role() == role]
                self._with_one_load(name, model, role, same, len(jobs), progress)
                _free()
        if self.cache and len(self.results) > self.known:
            self.cache.trim()

    def _with_one_load(
        self,
        name: str,
        model: Model,
        role: Role | None,
        entries: Sequence[TaskEntry],
        total: int,
        progress: Progress,
    ) -> None:
        progress(Step(len(self.results), total, name, entries[0].name))
        try:
            with self._opened(name, model, role) as live:
                for entry in entries:
                    step = Step(len(self.results), total, name, entry.name)
                    self.results[name, entry.name] = self._scored(
                        live, model, entry, step, progress
                    )
        except Exception as error:  # of opening; those of scoring are caught there
            for entry in entries:
                self.results.setdefault((name, entry.name), _failure(error))

    @contextmanager
    def _opened(self, name: str, model: Model, role: Role | None) -> Iterator[LiveModel]:
        if isinstance(model, LiveModel):
            yield model
        elif role is None:
            yield LiveModel(name, None, fingerprint=self.ready.models[name], folder=model)  # type: ignore[arg-type]
        else:
            live = open_model(
                model,
                role,
                device=self.device,
                dtype=self.opening.dtype,
                trust_remote_code=self.opening.trust_remote_code,
            )
            yield dataclasses.replace(live, name=name)

    def _scored(
        self, live: LiveModel, model: Model, entry: TaskEntry, step: Step, progress: Progress
    ) -> Result:
        def tick(done: int, amount: int) -> None:
            progress(dataclasses.replace(step, done=done, amount=amount))

        progress(step)
        entry.evaluator.progress = tick
        begun = time.perf_counter()
        try:
            found = entry.evaluator.score(live, self.split)
            seconds = found.seconds or time.perf_counter() - begun
            result = plain(dataclasses.replace(found, seconds=seconds))
        except Exception as error:  # one task's mishap does not end the others
            return _failure(error)
        key = self._key(step.model, model, entry)
        if self.cache and key:
            self.cache.put(key, result)
        return result

    def _key(self, name: str, model: Model, entry: TaskEntry) -> str | None:
        task = entry.evaluator.task.name
        return key_of(
            {
                "model": self.ready.models[name],
                "kind": entry.kind,
                "version": entry.evaluator.version,
                "code": code_of(type(entry.evaluator)),
                "role": entry.evaluator.role() or "path",
                "options": repr(sorted(entry.options.items())),
                "head": self.ready.heads[task],
                "data": self.ready.data[task],
                "mark": self.ready.marks[task],
                "split": self.split,
                "opened": self._opening_of(model),
                "versions": self.versions,
            }
        )

    def _opening_of(self, model: Model) -> str:
        if isinstance(model, LiveModel):
            parameter = next(model.module.parameters(), None)
            return f"{model.device.type} {None if parameter is None else parameter.dtype} live"
        trust = " with its code" if self.opening.trust_remote_code else ""
        return f"{self.device.split(':')[0]} {self.opening.dtype or 'stored'}{trust}"


def _failure(error: Exception) -> Failure:
    lines = str(error).strip().splitlines()
    trace = "".join(traceback.format_exception(error))
    return Failure(type(error).__name__, lines[0] if lines else type(error).__name__, trace)


def _free() -> None:
    """Give the memory of the last model back before the next is loaded."""
    gc.collect()
    if "torch" not in sys.modules:  # no model was loaded, and importing it takes seconds
        return
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    try:
        used = version("transformers")
    except PackageNotFoundError:
        used = "absent"
    found = versions()
    return {k: found[k] for k in ("mergewise", "torch", "python")} | {"transformers": used}
