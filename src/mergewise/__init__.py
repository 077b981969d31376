"""mergewise: merge trained neural networks, guided by evidence.

    merge               run a recipe: checkpoints in, a checkpoint folder out
    plan                what a recipe would do, from headers alone
    load_recipe         read and check a recipe
    merge_state_dicts   merge models that are already in memory
    average             average the checkpoints of one training run
    evaluate            scores of models on the tasks of a file
    collect             statistics of a model on data, into a file
    write_recipe        let a guide write the numbers of a recipe, from evidence
    allow               open pickle files, or quantised weights, while a `with` lasts

Everything is imported when first used, so that ``import mergewise`` costs nothing.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mergewise.checkpoint import allow
    from mergewise.engine import merge_state_dicts
    from mergewise.evidence import collect, evaluate
    from mergewise.guides import merge, write_recipe
    from mergewise.plan import build_plan as plan
    from mergewise.recipe import load_recipe
    from mergewise.trajectories import average

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "allow",
    "average",
    "collect",
    "evaluate",
    "load_recipe",
    "merge",
    "merge_state_dicts",
    "plan",
    "write_recipe",
]

logging.getLogger(__name__).addHandler(logging.NullHandler())

_HOMES = {
    "allow": ("mergewise.checkpoint", "allow"),
    "average": ("mergewise.trajectories", "average"),
    "merge": ("mergewise.guides", "merge"),
    "merge_state_dicts": ("mergewise.engine", "merge_state_dicts"),
    "plan": ("mergewise.plan", "build_plan"),
    "load_recipe": ("mergewise.recipe", "load_recipe"),
    "evaluate": ("mergewise.evidence", "evaluate"),
    "collect": ("mergewise.evidence", "collect"),
    "write_recipe": ("mergewise.guides", "write_recipe"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mergewise' has no attribute {name!r}")
    import importlib

    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
