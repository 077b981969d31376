"""The tasks file: which tasks there are, with which data, options and reference models."""

from __future__ import annotations

from mergewise.evidence._tasks._load import load_tasks
from mergewise.evidence._tasks._model import TaskEntry, Tasks

__all__ = ["TaskEntry", "Tasks", "load_tasks"]
