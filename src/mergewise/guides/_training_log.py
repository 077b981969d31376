"""What a training log says of checkpoints: of the trainer of `transformers`, or a table."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergewise._paths import exists, expanded
from mergewise.checkpoint import read_small
from mergewise.errors import CheckpointError, DataError, GuideError
from mergewise.evidence import Data
from mergewise.guides._base import Ask

STATE = "trainer_state.json"
_MOST = 200_000_000
_NAMES = ("model", "checkpoint", "name")
_STEPS = ("step", "global_step")

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Moment:
    """A checkpoint of a run.

    Attributes:
        label: as its recipe, or its log, calls it.
        folder: where its trainer's state lies.
        step: if it is known; else the state's, or that of a folder such as ``checkpoint-500``.
    """

    label: str
    folder: Path
    step: float | None = None

    @property
    def state_file(self) -> Path:
        return self.folder / STATE


def logged(ask: Ask, metric: str, log: str | None) -> list[float]:
    """A metric of every expert; see `metrics_of`."""
    # the state lies beside the weights that were trained: the adapter's, if there is one
    moments = [
        Moment(expert.label, expert.checkpoint.adapter or expert.checkpoint.folder)
        for expert in ask.experts
    ]
    return metrics_of(moments, metric, log, Path(ask.plan.recipe.path).parent)


def metrics_of(
    moments: Sequence[Moment], metric: str, log: str | Path | None, home: Path
) -> list[float]:
    """A metric of every checkpoint.

    Args:
        metric: such as ``loss`` or ``eval_loss``: the last one logged up to the checkpoint's
            step; ``step`` for the step itself.
        log: a trainer's state, or a table (csv, tsv, json, jsonl) with a column for the metric and
            one that names the checkpoint (`model`, `checkpoint` or `name`) or its `step`; by
            default the state that the trainer wrote into each checkpoint's folder.
        home: where a relative `log` may lie, if not in the current folder.

    Raises:
        GuideError: if a checkpoint's step or metric is not to be found, or not a finite number.
    """
    if log is None:
        return [_from_state(moment, metric) for moment in moments]
    file = _found(str(log), home)
    entries = _entries(file)
    return [_from_table(moment, metric, entries, file) for moment in moments]


def _from_state(moment: Moment, metric: str) -> float:
    file = moment.state_file
    if not file.is_file():
        raise GuideError(
            f"{moment.label} has no {STATE}, in which a trainer writes what it logged; name a "
            "table of checkpoints and their metrics: log=FILE"
        )
    state = _state(file)
    step = _number(state.get("global_step"), f"{file}: global_step")
    if metric in _STEPS:
        return step
    return _last(state["log_history"], metric, step, file, moment.label)


def _from_table(moment: Moment, metric: str, entries: Sequence[Entry], file: Path) -> float:
    names = {moment.label, Path(moment.label).name}
    named = [e for e in entries if any(e.get(key) in names for key in _NAMES)]
    if named:
        return _last(named, metric, math.inf, file, moment.label)
    step = _step_of(moment)
    if metric in _STEPS:
        return step
    return _last(entries, metric, step, file, moment.label)


def _step_of(moment: Moment) -> float:
    """As known, of the trainer's state, or of a folder's name such as ``checkpoint-500``."""
    if moment.step is not None:
        return moment.step
    if moment.state_file.is_file():
        return _number(_state(moment.state_file).get("global_step"), str(moment.state_file))
    found = re.search(r"(\d+)$", Path(moment.label).name)
    if found is None:
        raise GuideError(
            f"the log does not name {moment.label}, and its step is not known: its name does not "
            f"end in a number, and it has no {STATE}"
        )
    return float(found[1])


def _last(entries: Sequence[Entry], metric: str, step: float, file: Path, label: str) -> float:
    """The last entry up to a step that has the metric."""
    known = [e for e in entries if e.get(metric) not in (None, "") and _step(e) <= step]
    if not known:
        have = sorted({key for entry in entries for key in entry} - {*_STEPS, *_NAMES, "epoch"})
        raise GuideError(
            f"{file}: no {metric} of {label}{'' if step == math.inf else f' up to step {step:g}'}; "
            f"it has {', '.join(have[:12]) or 'nothing'}"
        )
    last = max(enumerate(known), key=lambda pair: (_step(pair[1]), pair[0]))[1]
    return _number(last[metric], f"{file}: {metric} of {label}")


def _step(entry: Entry) -> float:
    found = next((entry[key] for key in _STEPS if entry.get(key) not in (None, "")), 0)
    return _number(found, "step")


def _number(value: Any, what: str) -> float:
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if isinstance(value, bool) or not math.isfinite(found):
        raise GuideError(f"{what}: a finite number expected, got {value!r:.60}")
    return found


def _state(file: Path) -> dict[str, Any]:
    found = _json(file)
    history = found.get("log_history") if isinstance(found, dict) else None
    if not isinstance(history, list) or not all(isinstance(e, dict) for e in history):
        raise GuideError(f"{file}: no trainer's state: `log_history`, a list, expected")
    return dict(found)


def _entries(file: Path) -> list[Entry]:
    if file.suffix == ".json" and isinstance(_json(file), dict):
        history: list[Entry] = _state(file)["log_history"]
        return history
    try:
        return list(Data(file))
    except DataError as error:
        raise GuideError(f"log: {error}") from None


def _json(file: Path) -> Any:
    try:
        return json.loads(read_small(file, _MOST))
    except CheckpointError as error:
        raise GuideError(f"log: {error}") from None
    except (ValueError, RecursionError) as error:
        raise GuideError(f"{file}: no JSON: {error}") from None


def _found(text: str, home: Path) -> Path:
    """A file from the current folder, else from the recipe's."""
    path = expanded(text)
    return home / path if not exists(path) and exists(home / path) else path
