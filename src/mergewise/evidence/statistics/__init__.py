"""Statistics of a model on data; one file a statistic.

What guides need beside the statistics themselves is imported when first used.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from mergewise._exports import exports
from mergewise._registry import chosen, registered
from mergewise.errors import EvidenceError
from mergewise.evidence.statistics._base import Pass, Statistic, Sums

if TYPE_CHECKING:
    from mergewise.evidence.statistics._collect import Progress as Progress
    from mergewise.evidence.statistics._collect import has_tokenizer as has_tokenizer
    from mergewise.evidence.statistics._collect import role_of as role_of
    from mergewise.evidence.statistics._file import Record as Record
    from mergewise.evidence.statistics._file import StatisticRecord as StatisticRecord
    from mergewise.evidence.statistics._file import WrittenSum as WrittenSum
    from mergewise.evidence.statistics._file import key_of as key_of
    from mergewise.evidence.statistics._file import write_evidence as write_evidence
    from mergewise.evidence.statistics._from_file import training_file as training_file
    from mergewise.evidence.statistics._gradient_base import GradientPass as GradientPass
    from mergewise.evidence.statistics._gradient_base import GradientStatistic as GradientStatistic
    from mergewise.evidence.statistics._gradients import run_examples as run_examples
    from mergewise.evidence.statistics._record import software as software
    from mergewise.evidence.statistics._record import weights_of as weights_of
    from mergewise.evidence.statistics._request import requests as requests
    from mergewise.evidence.statistics._scoped import Scoped as Scoped
    from mergewise.evidence.statistics._sums import MemorySums as MemorySums

__all__ = ["Pass", "Statistic", "Sums", "all_statistics", "get_statistic"]

__getattr__, __dir__ = exports(
    __name__,
    {
        "_collect": "Progress has_tokenizer role_of",
        "_file": "Record StatisticRecord WrittenSum key_of write_evidence",
        "_from_file": "training_file",
        "_gradient_base": "GradientPass GradientStatistic",
        "_gradients": "run_examples",
        "_record": "software weights_of",
        "_request": "requests",
        "_scoped": "Scoped",
        "_sums": "MemorySums",
    },
)


@functools.cache
def all_statistics() -> dict[str, Statistic]:
    """Every registered statistic by name, in alphabetical order.

    Raises:
        MergewiseError: if two statistics claim one name.
    """
    base: type[Statistic] = Statistic  # type: ignore[type-abstract]
    return {n: cls() for n, cls in registered(__name__, base, "statistics").items()}


def get_statistic(name: str) -> Statistic:
    """The statistic called `name`.

    Raises:
        EvidenceError: with the closest names, if there is none.
    """
    return chosen("statistic", name, all_statistics(), "mergewise collect --list", EvidenceError)
