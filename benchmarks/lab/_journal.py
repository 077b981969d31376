"""Scores already made, one JSON line each, so that a run stopped anywhere goes on from there."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mergewise
from mergewise._lazy import torch

if TYPE_CHECKING:
    from benchmarks.lab._family import State
    from mergewise.evidence.evaluators import Evaluator

PACKAGE = Path(mergewise.__file__).parent
_SOURCES = {file: file.read_bytes() for file in PACKAGE.rglob("*.py")}
"""As they are when the lab starts: a file that changes during a run is not the code that runs."""


class Journal:
    """A mapping from what was asked to what came out, kept in a file of JSON lines.

    Attributes:
        resumed: whether an earlier run left anything.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, Any] = {}
        if path.is_file():
            for line in path.read_text("utf-8").splitlines():
                entry = _entry(line)
                if entry is not None:
                    self._known[entry["key"]] = entry["value"]
        self.resumed = bool(self._known)

    def get(self, asked: Any) -> Any:
        """What came out when `asked` (anything that JSON can hold) was done, or None."""
        return self._known.get(_key(asked))

    def put(self, asked: Any, value: Any) -> None:
        """Remember; on disk when this returns."""
        self._known[_key(asked)] = value
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            # a line that a killed run left unfinished must not swallow this one
            file.write("\n" + json.dumps({"key": _key(asked), "value": value}) + "\n")


def _entry(line: str) -> Any:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and entry.keys() == {"key", "value"} else None


def _key(asked: Any) -> str:
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def weights_mark(models: Iterable[State]) -> str:
    """Identifies weights bit by bit: 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for state in models:
        for name in sorted(state):
            tensor = state[name].detach().cpu().contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def task_mark(evaluator: Evaluator) -> tuple[str, dict[str, int]]:
    """Identifies what a task asks: 64 hexadecimal digits, and how many records each split has."""
    task = evaluator.task
    digest = hashlib.sha256(f"{evaluator.name} {evaluator.version} {task.options}".encode())
    if task.head is not None:
        digest.update(task.head.read_bytes())
    counts = {}
    for split in sorted(task.data):
        counts[split] = 0
        for record in task.data[split]:
            counts[split] += 1
            for name in sorted(record):
                digest.update(f"\0{split}\0{name}\0".encode())
                digest.update(_plain(record[name]))
    return digest.hexdigest(), counts


def _plain(value: Any) -> bytes:
    return value.tobytes() if hasattr(value, "tobytes") else repr(value).encode()


@functools.cache
def code_mark(method: str | None) -> str:
    """Identifies the code that decides a score: evaluators, and what runs `method`.

    The file of another method does not count, so that adding one leaves known scores valid.
    """
    files = sources("evidence/_*.py", "evidence/models/*.py", "evidence/evaluators/*.py")
    if method is not None:
        from mergewise.methods import get_method

        files += sources("engine/*.py", "methods/_*.py")
        files.append(Path(inspect.getfile(type(get_method(method)))))
    return digest_of(files)


@functools.cache
def scoring_mark() -> str:
    """Identifies the code that scores given weights: evaluators, and what they read with."""
    names = ("_data.py", "models/_live.py", "_text.py", "evaluators/*.py")
    return digest_of(sources(*(f"evidence/{name}" for name in names)))


def sources(*patterns: str) -> list[Path]:
    """The files of mergewise that fit; each pattern must fit some, or code has moved unseen."""
    found = {pattern: list(PACKAGE.glob(pattern)) for pattern in patterns}
    for pattern, files in found.items():
        if not files:
            raise FileNotFoundError(f"mergewise has no {pattern}")
    return [file for files in found.values() for file in files]


def digest_of(files: Iterable[Path]) -> str:
    """Identifies source files and the version of mergewise: 64 hexadecimal digits."""
    digest = hashlib.sha256(mergewise.__version__.encode())
    for file in sorted(files):
        digest.update(_SOURCES.get(file) or file.read_bytes())
    return digest.hexdigest()
