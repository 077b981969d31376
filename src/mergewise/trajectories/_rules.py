"""Which checkpoints of a run are averaged, and with which weights."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergewise._settings import checked
from mergewise.errors import GuideError, TrajectoryError
from mergewise.guides import STATE, Moment, metrics_of
from mergewise.guides.mwa import Mwa, logged_weights, unclear
from mergewise.methods import REQUIRED, Param, Settings
from mergewise.trajectories._find import Saved
from mergewise.trajectories._given import Given, given_weights
from mergewise.trajectories._numbers import ema, swad

Pair = tuple[Saved, float]

_START = Param(int, None, "the first step that counts", ge=0)
_WINDOW: Mapping[str, Param] = {
    "start": _START,
    "stop": Param(int, None, "the last step that counts", ge=0),
    "every": Param(int, 1, "only every so many checkpoints, from the first that counts on", ge=1),
    "last": Param(int, None, "only the last so many; `every` then counts from the end", ge=1),
}
_LOG = Param(
    str, None, "a trainer's state, or a table of checkpoints (csv, json, jsonl); default: the "
    "trainer_state.json in each checkpoint, else in the run's folder",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """The checkpoints in question, and where their metrics stand."""

    home: Path
    saved: Sequence[Saved]

    def metrics(self, name: str, log: str | None) -> list[float]:
        """A metric of each checkpoint, as it was logged.

        Raises:
            TrajectoryError: if it was not.
        """
        own = log is None and all((each.home / STATE).is_file() for each in self.saved)
        own = own and len({each.home for each in self.saved}) == len(self.saved)
        shared = self.home / STATE
        if log is None and not own:
            if not shared.is_file():
                raise TrajectoryError(
                    f"{self.home}: no {STATE} in each checkpoint, nor in the folder; name the "
                    f"file that holds {name}: --log FILE"
                )
            log = str(shared)
        moments = [Moment(e.name, e.home, None if own else float(e.step)) for e in self.saved]
        try:
            return metrics_of(moments, name, log, self.home)
        except GuideError as error:
            raise TrajectoryError(str(error)) from None


@dataclass(frozen=True)
class Rule:
    """A way to average the checkpoints of a run.

    Attributes:
        weigh: weights with sum 1 of the checkpoints, and lines that say where they come from;
            without it all count alike.
        own: parameters besides the window's, or instead of them.
    """

    name: str
    summary: str
    source: str
    weigh: Callable[[Run, Settings], tuple[list[float], list[str]]] | None = None
    own: Mapping[str, Param] = field(default_factory=dict)

    @property
    def params(self) -> dict[str, Param]:
        return {**_WINDOW, **self.own}


def weighted(
    home: Path, saved: Sequence[Saved], method: str, given: Mapping[str, Any]
) -> tuple[list[Pair], list[str]]:
    """The checkpoints that are averaged, with weights that sum to 1, and notes.

    Raises:
        TrajectoryError: for an unknown method or setting, and for what cannot be averaged so.
    """
    if method not in RULES:
        raise TrajectoryError(f"no way to average is called {method!r}: {', '.join(RULES)}")
    rule, plain = RULES[method], {k: v for k, v in given.items() if k != "weights"}
    numbers = given.get("weights")
    if "weights" in given and "weights" not in rule.own:
        raise TrajectoryError(f"{method} finds its own weights; give them with --method weights")
    if "weights" in rule.own:
        plain["weights"] = "" if numbers is None else "given"
    settings = Settings(checked(rule, plain, TrajectoryError) | {"given": numbers})
    run = Run(home, _window(saved, settings))
    count = len(run.saved)
    shares, notes = rule.weigh(run, settings) if rule.weigh else ([1 / count] * count, [])
    pairs = [pair for pair in zip(run.saved, shares, strict=True) if pair[1] != 0]
    return pairs, notes


def _window(saved: Sequence[Saved], p: Settings) -> list[Saved]:
    low, high = p.start or 0, saved[-1].step if p.stop is None else p.stop
    found = [each for each in saved if low <= each.step <= high]
    backwards = found[:: -p.every][: p.last]
    found = found[:: p.every] if p.last is None else backwards[::-1]
    if not found:
        raise TrajectoryError(
            f"no checkpoint from step {low} {f'to {high}' if p.stop is not None else 'on'}; there "
            f"are steps {saved[0].step} to {saved[-1].step}"
        )
    return found


def _ema(run: Run, p: Settings) -> tuple[list[float], list[str]]:
    return ema(len(run.saved), p.decay, p.debias, p.warm_up), []


def _mwa(run: Run, p: Settings) -> tuple[list[float], list[str]]:
    if unclear(p):
        raise TrajectoryError(
            f"mwa: is less or more {p.metric} better? Say which: --better less, or --better more"
        )
    found = run.metrics(p.metric, p.log)
    labels = [each.name for each in run.saved]
    try:
        shares = logged_weights(p, labels, found)
    except GuideError as error:
        raise TrajectoryError(str(error)) from None
    pairs = zip(labels, found, strict=True)
    return shares, [f"{label}: {p.metric} {value:.6g}" for label, value in pairs]


def _swad(run: Run, p: Settings) -> tuple[list[float], list[str]]:
    losses = run.metrics(p.metric, p.log)
    first, last = swad(losses, p.converge, p.tolerate, p.ratio)
    count = last - first + 1
    shares = [1 / count if first <= i <= last else 0.0 for i in range(len(losses))]
    notes = [f"{each.name}: {p.metric} {loss:.6g}"
             for each, loss in zip(run.saved, losses, strict=True)]  # fmt: skip
    same = [a for a, b in itertools.pairwise(losses) if a == b]
    if same:
        notes.append(
            f"{p.metric} is {same[0]:.6g} for one checkpoint and the next: was it logged in "
            "between? The last one before a checkpoint counts"
        )
    return shares, notes


def _given(run: Run, p: Settings) -> tuple[list[float], list[str]]:
    if p.given is None:
        raise TrajectoryError("weights: say them, as numbers or as a file: --weights 0.5,0.7,-0.2")
    found: Given = p.given
    return given_weights(found, run.saved, p.normalize), []


_RULES = (
    Rule("uniform", "equal weights", "Model soups, Wortsman et al. 2022, arXiv 2203.05482"),
    Rule(
        "swa", "equal weights from a step on (--start), every so many checkpoints (--every)",
        "SWA, Izmailov et al. 2018, arXiv 1803.05407",
        own={"start": dataclasses.replace(_START, default=REQUIRED)},
    ),
    Rule(
        "lawa", "equal weights of the last checkpoints; six as in the paper",
        "LAWA, Kaddour 2022, arXiv 2209.14981",
        own={"last": dataclasses.replace(_WINDOW["last"], default=6)},
    ),
    Rule(
        "ema", "exponential moving average over the checkpoints", "Mean teachers, Tarvainen and "
        "Valpola 2017, arXiv 1703.01780", _ema,
        {
            "decay": Param(float, REQUIRED, "share of the average that stays, a checkpoint",
                           ge=0, lt=1),
            "debias": Param(bool, False, "begin with zero and divide by 1 - decay^n, instead of "
                            "with the first checkpoint"),
            "warm_up": Param(bool, False, "at update t the decay is at most (1 + t) / (10 + t)"),
        },
    ),
    Rule("mwa", "weights from what was logged, as the guide mwa", Mwa.source, _mwa,
         {**Mwa.params, "log": _LOG}),
    Rule(
        "swad", "equal weights in the valley of the validation loss",
        "SWAD, Cha et al. 2021, arXiv 2102.08604", _swad,
        {
            "metric": Param(str, "eval_loss", "what was logged, less being better"),
            "log": _LOG,
            "converge": Param(int, 3, "it starts at a loss that is the least of so many", ge=1),
            "tolerate": Param(int, 6, "it ends before so many bad ones in a row", ge=1),
            "ratio": Param(float, 0.3, "bad is so much worse than the first ones' mean", ge=0),
        },
    ),
    Rule(
        "weights", "weights that you give, negative ones too", "LCSC, Liu et al. 2024, arXiv "
        "2404.02241", _given,
        {
            "weights": Param(str, REQUIRED, "numbers (0.6,0.7,-0.3), or a file of them"),
            "normalize": Param(bool, False, "divide by their sum"),
        },
    ),
)  # fmt: skip
RULES: Mapping[str, Rule] = {rule.name: rule for rule in _RULES}
