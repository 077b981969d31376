"""What a merge will do, from headers alone."""

from __future__ import annotations

from mergewise.plan._build import build_plan
from mergewise.plan._explain import (
    Alike,
    alike_tensors,
    closest_tensors,
    collapse,
    find_tensors,
    only_some_have,
    role_of,
    tensor_dict,
)
from mergewise.plan._model import Input, MergePlan, StagePlan, TensorMeta, TensorPlan, View

__all__ = [
    "Alike",
    "Input",
    "MergePlan",
    "StagePlan",
    "TensorMeta",
    "TensorPlan",
    "View",
    "alike_tensors",
    "build_plan",
    "closest_tensors",
    "collapse",
    "find_tensors",
    "only_some_have",
    "role_of",
    "tensor_dict",
]
