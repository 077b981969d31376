"""Run methods over tensors: blocks, workers, devices, files."""

from __future__ import annotations

from mergewise.engine._budget import Memory, choose_workers, estimate
from mergewise.engine._device import processors
from mergewise.engine._journal import WORK, check_out, complete_tensors
from mergewise.engine._memory import merge_state_dicts
from mergewise.engine._result import ResultTensors
from mergewise.engine._run import MergeResult, merge
from mergewise.engine._shares import kept_shares

__all__ = [
    "WORK",
    "Memory",
    "MergeResult",
    "ResultTensors",
    "check_out",
    "choose_workers",
    "complete_tensors",
    "estimate",
    "kept_shares",
    "merge",
    "merge_state_dicts",
    "processors",
]
