"""What a recipe leaves unsaid, for the provenance: defaults, and what was not merged, and why."""

from __future__ import annotations

from collections import Counter
from typing import Any

from mergewise.methods import get_method
from mergewise.plan import MergePlan, StagePlan


def stage_records(plan: MergePlan) -> list[dict[str, Any]]:
    """For each stage its method, the defaults it used, and how many tensors went another way.

    Defaults may change from one version to the next; a recipe that names them does not.
    """
    return [_record(stage) for stage in plan.stages]


def _record(stage: StagePlan) -> dict[str, Any]:
    method = get_method(stage.stage.method)
    merged = [tensor for tensor in stage.tensors.values() if tensor.fate == "merge"]
    unsaid = {name for tensor in merged for name, where in tensor.origins.items() if _unsaid(where)}
    otherwise = Counter(tensor.reason for tensor in stage.tensors.values() if tensor.reason)
    return {
        "merge_method": method.name,
        "defaults": {name: p.default for name, p in method.params.items() if name in unsaid},
        "otherwise": dict(sorted(otherwise.items())),
    }


def _unsaid(where: Any) -> bool:
    places = where if isinstance(where, list | tuple) else [where]
    return any(str(place).startswith("default of ") for place in places)
