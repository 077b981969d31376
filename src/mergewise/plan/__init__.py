"""What a merge will do, from headers alone.

The package can be called: ``mergewise.plan(recipe)`` is `build_plan`. Importing a package makes it
an attribute of its parent, so from then on that name means the package and not a function.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from mergewise.plan._batch_norm import is_statistic, sibling
from mergewise.plan._build import build_plan
from mergewise.plan._evidence import (
    Statistic,
    check_shape,
    find_statistics,
    is_turned,
    left_out,
    suited,
)
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
from mergewise.plan._prefix import prefix_between
from mergewise.recipe import Recipe

__all__ = [
    "Alike",
    "Input",
    "MergePlan",
    "StagePlan",
    "Statistic",
    "TensorMeta",
    "TensorPlan",
    "View",
    "alike_tensors",
    "build_plan",
    "check_shape",
    "closest_tensors",
    "collapse",
    "find_statistics",
    "find_tensors",
    "is_statistic",
    "is_turned",
    "left_out",
    "only_some_have",
    "prefix_between",
    "role_of",
    "sibling",
    "suited",
    "tensor_dict",
]


class _Callable(ModuleType):
    def __call__(self, recipe: Recipe | str | Path | Mapping[str, object]) -> MergePlan:
        return build_plan(recipe)


sys.modules[__name__].__class__ = _Callable
