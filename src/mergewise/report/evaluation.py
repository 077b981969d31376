"""Reports of an evaluation: measures, tables for the screen, a figure.

All take an `Evaluation`: scores by model and task, the primary metric of each task, the base, the
experts and the held-out tasks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mergewise.report._evaluation_figure import figure
from mergewise.report._evaluation_table import table
from mergewise.report._flips import comparisons
from mergewise.report._measures import Measures

if TYPE_CHECKING:
    from mergewise.evidence import Evaluation

__all__ = ["figure", "measures", "table"]


def measures(evaluation: Evaluation, resamples: int = 0, seed: int = 0) -> dict[str, Any]:
    """Every model's scores, compared with the base and the experts, as JSON values.

    Under ``models``, for each model:

    * ``means``: of the primary metric over the tasks that are not held out, one for each metric;
      ``mean``: that one if all tasks share a metric, else None. ``held_out``: likewise over the
      held-out tasks. ``worst``: task and value.
    * ``normalised``: score over the expert's (the expert's over the score where less is better)
      by task, with mean, median and worst, over tasks with an expert.
    * ``nai``: normalised accuracy improvement, (score − base) / (expert − base), likewise.
    * ``forgetting``: mean over all tasks of what was lost against the base, none where nothing
      was; ``below_base``: how many of the tasks are below it.
    * ``negative_flips``, ``positive_flips``: share of examples that ``base`` or the task's
      ``expert`` got right and the model wrong, and the reverse.
    * ``agreement``: by expert, share of equal predictions, over all tasks and its ``own``.
    * ``failed``: tasks without a score. ``intervals``, if asked for.

    A mean is None where a part of it is missing, since it could not be compared with the means
    of other models; ``notes`` say what was refused and why.

    Args:
        resamples: draws for 95 % bootstrap intervals over examples, 1000 being usual; 0 for none.
        seed: of the draws.
    """
    made = Measures(evaluation, resamples, seed)
    models = {model: {**made.of(model), **comparisons(made, model)} for model in evaluation.scores}
    return {"models": models, "notes": made.notes}
