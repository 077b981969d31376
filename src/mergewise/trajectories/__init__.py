"""Averages over the checkpoints of one training run.

    average         average a run's checkpoints into one checkpoint (or one adapter)
    average_recipe  the explicit recipe of that
    find            the checkpoints of a folder, by step
    RULES           the ways to average

An average is a recipe like any other and is run by the same engine: checkpoints are read block by
block, so memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergewise.trajectories._find import Saved, find
from mergewise.trajectories._recipe import Average, average_recipe, told_of_the_run
from mergewise.trajectories._rules import RULES, Rule

if TYPE_CHECKING:
    from mergewise.engine import MergeResult

__all__ = [
    "RULES",
    "Average",
    "Rule",
    "Saved",
    "average",
    "average_recipe",
    "find",
    "told_of_the_run",
]


def average(
    folder: Path | str,
    out: Path | str,
    method: str = "uniform",
    *,
    options: Mapping[str, Any] | None = None,
    **given: Any,
) -> MergeResult:
    """Average the checkpoints of one training run.

    Args:
        folder, method, given: as `average_recipe` takes them.
        out: the output folder.
        options: of `mergewise.engine.merge`, such as ``{"workers": 2}``.

    Raises:
        TrajectoryError: if the checkpoints are not found, are damaged or of different kinds, or
            cannot be averaged so.
        MergewiseError: as the engine's merge raises.
    """
    from mergewise.guides import merge

    made = average_recipe(folder, method, **given)
    with told_of_the_run(folder):
        return merge(made.recipe, out, **dict(options or {}))
