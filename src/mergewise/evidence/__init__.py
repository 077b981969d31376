"""Evidence about models: data, statistics, evaluators.

    collect         statistics of a model on data, into a file
    load_evidence   open such a file
    merge_evidence  add up the files of several workers
    evaluate        scores of several models on the tasks of a file
    load_tasks      read and check a tasks file
    score           one model on one split of one task

What else stands here is for guides and transforms: data as models read it, masks, merged Grams.
Everything is imported when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergewise._exports import exports

if TYPE_CHECKING:
    from mergewise.evidence._data import Data as Data
    from mergewise.evidence._evaluate import evaluate as evaluate
    from mergewise.evidence._evaluate import score as score
    from mergewise.evidence._evaluation import Evaluation as Evaluation
    from mergewise.evidence._inputs import Feeder as Feeder
    from mergewise.evidence._inputs import Reading as Reading
    from mergewise.evidence._inputs import as_data as as_data
    from mergewise.evidence._inputs import survey as survey
    from mergewise.evidence._mask_file import collect_mask as collect_mask
    from mergewise.evidence._mask_file import entries_of_masks as entries_of_masks
    from mergewise.evidence._mask_file import overlaps as overlaps
    from mergewise.evidence._mask_loss import batch_loss as batch_loss
    from mergewise.evidence._mask_training import MaskSettings as MaskSettings
    from mergewise.evidence._merged_grams import MergedGrams as MergedGrams
    from mergewise.evidence._merged_grams import gram_request as gram_request
    from mergewise.evidence._objective import Example as Example
    from mergewise.evidence._objective import examples_of as examples_of
    from mergewise.evidence._objective import kind_of as kind_of
    from mergewise.evidence._run import Step as Step
    from mergewise.evidence._tasks import TaskEntry as TaskEntry
    from mergewise.evidence._tasks import Tasks as Tasks
    from mergewise.evidence._tasks import load_tasks as load_tasks
    from mergewise.evidence._vocabulary import known_tokens as known_tokens
    from mergewise.evidence._vocabulary import see_tokens as see_tokens
    from mergewise.evidence.evaluators._base import Evaluator as Evaluator
    from mergewise.evidence.evaluators._base import Failure as Failure
    from mergewise.evidence.evaluators._base import Metric as Metric
    from mergewise.evidence.evaluators._base import Score as Score
    from mergewise.evidence.evaluators._base import Task as Task
    from mergewise.evidence.models._live import LiveModel as LiveModel
    from mergewise.evidence.models._live import fingerprint_of as fingerprint_of
    from mergewise.evidence.models._live import open_model as open_model
    from mergewise.evidence.statistics._collect import collect as collect
    from mergewise.evidence.statistics._evidence import Evidence as Evidence
    from mergewise.evidence.statistics._evidence import load_evidence as load_evidence
    from mergewise.evidence.statistics._merge import merge_evidence as merge_evidence

__getattr__, __dir__ = exports(
    __name__,
    {
        "_data": "Data",
        "_evaluate": "evaluate score",
        "_evaluation": "Evaluation",
        "_inputs": "Feeder Reading as_data survey",
        "_mask_file": "collect_mask entries_of_masks overlaps",
        "_mask_loss": "batch_loss",
        "_mask_training": "MaskSettings",
        "_merged_grams": "MergedGrams gram_request",
        "_objective": "Example examples_of kind_of",
        "_run": "Step",
        "_tasks": "TaskEntry Tasks load_tasks",
        "_vocabulary": "known_tokens see_tokens",
        "evaluators._base": "Evaluator Failure Metric Score Task",
        "models._live": "LiveModel fingerprint_of open_model",
        "statistics._collect": "collect",
        "statistics._evidence": "Evidence load_evidence",
        "statistics._merge": "merge_evidence",
    },
)
