"""Run methods over tensors: blocks, workers, devices, files."""

from __future__ import annotations

from mergewise.engine._budget import Memory, choose_workers, estimate
from mergewise.engine._device import processors
from mergewise.engine._journal import WORK, Workspace, check_out, complete_tensors
from mergewise.engine._memory import merge_state_dicts
from mergewise.engine._publish import PROVENANCE_FILE, RECIPE_FILE, move_in
from mergewise.engine._result import ResultTensors
from mergewise.engine._run import MergeResult, merge
from mergewise.engine._shares import kept_shares

__all__ = [
    "PROVENANCE_FILE",
    "RECIPE_FILE",
    "WORK",
    "Memory",
    "MergeResult",
    "ResultTensors",
    "Workspace",
    "check_out",
    "choose_workers",
    "complete_tensors",
    "estimate",
    "kept_shares",
    "merge",
    "merge_state_dicts",
    "move_in",
    "processors",
]
