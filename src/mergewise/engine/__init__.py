"""Run methods over tensors: blocks, workers, devices, files."""

from __future__ import annotations

from mergewise.engine._memory import merge_state_dicts
from mergewise.engine._run import MergeResult, merge

__all__ = ["MergeResult", "merge", "merge_state_dicts"]
