"""Weights of checkpoints that somebody gives: a list, or a file."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mergewise._paths import exists, expanded
from mergewise.checkpoint import read_small
from mergewise.errors import CheckpointError, TrajectoryError
from mergewise.trajectories._find import Saved

_MOST_BYTES = 10_000_000
Given = str | Path | Sequence[float] | Mapping[str, float]


def given_weights(given: Given, saved: Sequence[Saved], normalize: bool) -> list[float]:
    """A weight for each checkpoint; negative ones are fine.

    Args:
        given: numbers in the order of steps; or by a checkpoint's name or step, the others getting
            0; as such, as text (``0.5,0.7,-0.2``), or as a file: JSON, a number in a line, or a
            table ``NAME,NUMBER`` in lines.
        normalize: divide by their sum.

    Raises:
        TrajectoryError: if there is not one for each, one is no number, or their sum is not 1.
    """
    read = _read(given) if isinstance(given, str | Path) else given
    if not isinstance(read, Mapping | Sequence):
        raise TrajectoryError("weights: a list of numbers, or of names with numbers, expected")
    found = _by_name(read, saved) if isinstance(read, Mapping) else [_number(n) for n in read]
    if len(found) != len(saved):
        raise TrajectoryError(
            f"weights: {len(found)} of them, for {len(saved)} checkpoints; give one for each, "
            "choose fewer with --last, --start or --stop, or give names with numbers in a file"
        )
    return _summing(found, normalize)


def _summing(found: list[float], normalize: bool) -> list[float]:
    total = math.fsum(found)
    if abs(total) < 1e-6 * max(1.0, *map(abs, found)):
        raise TrajectoryError(f"weights: their sum is {total:g}; an average needs another one")
    if not normalize and abs(total - 1) > 1e-3:
        raise TrajectoryError(
            f"weights: their sum is {total:g}, not 1; pass --normalize to divide by it"
        )
    return [weight / total for weight in found]


def _by_name(given: Mapping[str, Any], saved: Sequence[Saved]) -> list[float]:
    weights = {str(name): _number(value) for name, value in given.items()}
    places = [{each.name, PurePosixPath(each.name).name, str(each.step)} for each in saved]
    strange = set(weights) - set().union(*places)
    if strange:
        raise TrajectoryError(
            f"weights: there is no checkpoint {sorted(strange)[0]!r}; there are "
            f"{', '.join(each.name for each in saved[:8])}{', ...' * (len(saved) > 8)}"
        )
    return [next((weights[key] for key in names if key in weights), 0.0) for names in places]


def _read(given: str | Path) -> Any:
    path = expanded(given)
    if not exists(path):
        if isinstance(given, str) and not any(c.isalpha() and c not in "eE" for c in given):
            return _lines(given)
        raise TrajectoryError(f"weights: {given}: no such file, and no numbers such as 0.6,0.4")
    try:
        text = read_small(path, _MOST_BYTES).decode()
        return json.loads(text) if path.suffix == ".json" else _lines(text)
    except (CheckpointError, ValueError, RecursionError) as error:
        raise TrajectoryError(f"weights: {path}: {error}") from None


def _lines(text: str) -> Any:
    rows = [row for row in csv.reader(io.StringIO(text)) if any(cell.strip() for cell in row)]
    if len(rows) == 1:
        return [cell for cell in rows[0] if cell.strip()]
    widths = {len(row) for row in rows}
    if widths == {2}:
        return dict(row for row in rows)
    if widths != {1}:
        raise TrajectoryError("weights: a number, or a name and a number, in each line expected")
    return [row[0] for row in rows]


def _number(value: Any) -> float:
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if isinstance(value, bool) or not math.isfinite(found):
        raise TrajectoryError(f"weights: a finite number expected, got {value!r:.40}")
    return found
