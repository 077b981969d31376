"""Scores of earlier runs, by everything that decides them."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mergewise.errors import MergewiseError
from mergewise.evidence.evaluators import Score

FORMAT = 1
MAX_BYTES = 500_000_000
KEPT_BYTES = 1 << 30
"""What all kept scores may take together; those read longest ago go first."""
_LOG = logging.getLogger(__name__)


def key_of(parts: Mapping[str, Any]) -> str | None:
    """64 hexadecimal digits for what decides a score; None if a part of it is unknown (None)."""
    if _unknown(parts):
        return None
    text = json.dumps({"format": FORMAT, **parts}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _unknown(parts: Mapping[str, Any]) -> bool:
    return any(
        value is None or (isinstance(value, Mapping) and name == "data" and _unknown(value))
        for name, value in parts.items()
    )


@functools.cache
def code_of(evaluator: type) -> str:
    """SHA-256 of the code that decides a score: the evaluator's modules, and `evidence`."""
    here = Path(__file__).parent
    files = {file for file in here.rglob("*.py") if here / "statistics" not in file.parents}
    for cls in evaluator.__mro__:  # a plugin lies elsewhere
        file = getattr(sys.modules.get(cls.__module__), "__file__", None)
        files |= {Path(file)} if file else set()
    digest = hashlib.sha256()
    for file in sorted(files):
        with suppress(OSError):
            digest.update(f"{file.name}\0".encode() + file.read_bytes())
    return digest.hexdigest()


class ScoreCache:
    """One JSON file a score, in a folder; a broken file is one that is not there."""

    def __init__(self, folder: Path | None = None) -> None:
        from mergewise.constants import cache_dir

        self.folder = folder or cache_dir() / "scores"
        self._refused = False

    def get(self, key: str) -> Score | None:
        """The score kept under `key`."""
        from mergewise.checkpoint import read_small

        try:
            found = _score(json.loads(read_small(self._file(key), MAX_BYTES)))
            with suppress(OSError):
                os.utime(self._file(key))
            return found
        except (MergewiseError, ValueError, TypeError, KeyError, RecursionError):
            return None

    def put(self, key: str, score: Score) -> None:
        """Keep a score; where that is not possible the run goes on without."""
        from mergewise.checkpoint import make_folder, write_file

        document = {
            "metrics": dict(score.metrics),
            "outcomes": dict(score.outcomes),
            "examples": score.examples,
            "seconds": score.seconds,
            "notes": list(score.notes),
        }
        try:
            make_folder(self._file(key).parent)
            write_file(self._file(key), json.dumps(document).encode())
        except (MergewiseError, ValueError, TypeError) as error:
            if not self._refused:
                _LOG.warning("scores are not kept for the next run: %s", error)
            self._refused = True

    def trim(self, most: int = KEPT_BYTES) -> None:
        """Delete the scores read longest ago until at most `most` bytes are left."""
        with suppress(OSError):
            states = [(file, file.stat()) for file in self.folder.glob("??/*.json")]
            left = sum(state.st_size for _, state in states)
            for file, state in sorted(states, key=lambda each: each[1].st_mtime_ns):
                if left <= most:
                    break
                file.unlink(missing_ok=True)
                left -= state.st_size

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"


def _score(document: Any) -> Score:
    """A score from its file; raises ValueError, TypeError or KeyError for anything else."""
    metrics, outcomes = document["metrics"], document["outcomes"]
    if not all(isinstance(column, list) for column in outcomes.values()):
        raise ValueError("outcomes are lists")
    return Score(
        {str(name): float(value) for name, value in metrics.items()},
        outcomes,
        int(document["examples"]),
        float(document["seconds"]),
        tuple(str(note) for note in document["notes"]),
    )


def plain(score: Score) -> Score:
    """The same of Python's own numbers, lists and texts, as it comes back from a file."""
    return Score(
        {name: float(value) for name, value in score.metrics.items()},
        {name: [_plain(value) for value in column] for name, column in score.outcomes.items()},
        int(score.examples),
        float(score.seconds),
        tuple(score.notes),
    )


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value)
