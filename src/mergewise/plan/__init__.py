"""What a merge will do, from headers alone."""

from __future__ import annotations

from mergewise.plan._build import build_plan
from mergewise.plan._model import Input, MergePlan, StagePlan, TensorMeta, TensorPlan, View

__all__ = ["Input", "MergePlan", "StagePlan", "TensorMeta", "TensorPlan", "View", "build_plan"]
