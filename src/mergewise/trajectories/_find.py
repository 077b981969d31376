"""The checkpoints of one training run, in the order of their steps."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mergewise._paths import expanded
from mergewise.checkpoint import is_adapter
from mergewise.errors import TrajectoryError

MOST = 10_000
_KEYWORDS = ("step", "iter(?:ation)?", "checkpoint|ckpt", "epoch")
_SHARD = re.compile(r"\d+-of-\d+")
_WEIGHTS = re.compile(r".*\.(safetensors|bin|pth?|ckpt|gguf)(\.index\.json)?", re.ASCII)
_ENDINGS = ((".safetensors",), (".bin", ".pt", ".pth", ".ckpt"))


@dataclass(frozen=True)
class Saved:
    """A checkpoint of a run.

    Attributes:
        name: its path within the run's folder.
        path: the folder or file.
    """

    name: str
    path: Path
    step: int

    @property
    def home(self) -> Path:
        """The folder in which a trainer would have left its state."""
        return self.path if self.path.is_dir() else self.path.parent


def find(folder: Path | str, match: str | None = None) -> list[Saved]:
    """The checkpoints that a folder holds, by step.

    Without `match`: folders such as ``checkpoint-500``, as trainers leave them; else other folders
    with weights and a number in the name; else safetensors files with a number in the name; else
    PyTorch files. The step is the number after ``step``, ``iter``, ``checkpoint`` or ``epoch``
    (looked for in this order), else the last number.

    Args:
        match: a glob, from the folder on, such as ``step_*.safetensors``.

    Raises:
        TrajectoryError: if there are none, too many, or two of one step.
    """
    home = expanded(folder)
    if not home.is_dir():
        what = "this is a file" if home.exists() else "no such folder"
        raise TrajectoryError(f"{home}: {what}; a folder with the checkpoints of one run expected")
    try:
        names = _matching(home, match) if match else _usual(home)
    except OSError as error:
        raise TrajectoryError(f"{home}: cannot be listed: {error}") from None
    if not names:
        raise TrajectoryError(f"{home}: {_nothing(home, match)}")
    if len(names) > MOST:
        raise TrajectoryError(f"{home}: {len(names):,} checkpoints; at most {MOST:,} are averaged")
    return _ordered(home, names)


def step_of(name: str) -> int | None:
    """The step in a name, of its last part that has a number: see `find`."""
    for part in reversed(PurePosixPath(name).parts):
        stem = re.sub(r"\.(safetensors|bin|pth?|ckpt|gguf)$", "", part)
        for keyword in _KEYWORDS:
            if found := re.search(rf"(?:{keyword})s?[-_=.]?(\d{{1,18}})", stem, re.IGNORECASE):
                return int(found[1])
        if numbers := re.findall(r"\d{1,18}", stem):
            return int(numbers[-1])
    return None


def _usual(home: Path) -> list[str]:
    numbered = [each for each in home.iterdir() if step_of(each.name) is not None]
    folders = [each for each in numbered if each.is_dir()]
    trainers = [f.name for f in folders if re.fullmatch(r"checkpoint-\d+", f.name)]
    if trainers:
        return trainers
    if filled := [f.name for f in folders if _has_weights(f)]:
        return filled
    files = [f.name for f in numbered if f.is_file() and not _SHARD.search(f.name)]
    for endings in _ENDINGS:
        if found := [name for name in files if name.endswith(endings)]:
            return found
    return []


def _has_weights(folder: Path) -> bool:
    return any(_WEIGHTS.fullmatch(file.name) for file in folder.iterdir())


def _matching(home: Path, match: str) -> list[str]:
    if match.startswith(("/", "~")) or ".." in PurePosixPath(match).parts:
        raise TrajectoryError(f"{match!r}: a pattern from {home} on expected, without '..'")
    try:
        found = sorted(home.glob(match))
    except (ValueError, NotImplementedError) as error:
        raise TrajectoryError(f"{match!r}: no pattern: {error}") from None
    return [each.relative_to(home).as_posix() for each in found if each != home]


def _nothing(home: Path, match: str | None) -> str:
    if match:
        return f"nothing matches {match!r}"
    if any((home / name).is_file() for name in ("config.json", "adapter_config.json")):
        return "this is one checkpoint; the folder that holds all of the run is expected"
    return (
        "no checkpoints found: folders such as checkpoint-500, or files such as "
        "step_500.safetensors, expected. Say which with --match GLOB"
    )


def _ordered(home: Path, names: list[str]) -> list[Saved]:
    steps: dict[int, str] = {}
    for name in sorted(names):
        step = step_of(name)
        if step is None:
            raise TrajectoryError(f"{home / name}: no number in the name, so its step is not known")
        if step in steps:
            raise TrajectoryError(
                f"{home}: {steps[step]} and {name} are both of step {step}; choose with --match"
            )
        steps[step] = name
    return [Saved(name, home / name, step) for step, name in sorted(steps.items())]


def all_adapters(saved: list[Saved]) -> bool:
    """Whether they are adapters.

    Raises:
        TrajectoryError: if only some are.
    """
    kinds = {is_adapter(each.path): each for each in saved}
    if len(kinds) > 1:
        raise TrajectoryError(
            f"{kinds[True].path} is an adapter, {kinds[False].path} is not; choose with --match"
        )
    return True in kinds
