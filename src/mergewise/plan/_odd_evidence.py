"""What is odd about evidence, but no reason to refuse it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from mergewise.checkpoint import fingerprint, to_fetch
from mergewise.evidence import Evidence
from mergewise.methods import Need
from mergewise.plan._model import View


@dataclass(frozen=True)
class Given:
    """A model with its evidence files."""

    view: View
    files: tuple[Evidence, ...]


def odd_evidence(method: str, needs: Sequence[Need], given: Sequence[Given]) -> list[str]:
    """Evidence of other weights, counted otherwise, or collected with different options."""
    found = [text for one in given for text in _of_other_weights(one, needs)]
    for need in needs:
        having = [file for one in given for file in one.files if need.statistic in file.statistics]
        unique = list({file.path: file for file in having}.values())
        found += [text for file in unique for text in _counted_otherwise(method, need, file)]
        found += _unlike(need, unique)
    return found


def _of_other_weights(given: Given, needs: Sequence[Need]) -> Iterator[str]:
    used = {need.statistic for need in needs}
    # what was collected in memory tells nothing of files
    files = [file for file in given.files if used & set(file.statistics)]
    told = [file for file in files if "weights" in file.record.model]
    if not told or given.view.checkpoint is None or to_fetch([given.view.checkpoint]):
        return
    present = [fingerprint(path) for path in given.view.checkpoint.files]
    for file in told:
        if file.record.model["weights"] != present:
            yield (
                f"{file.path} was collected on {file.record.model.get('name')}, with other weights "
                f"than {given.view.label} has now; collect it again, unless you mean it"
            )


def _counted_otherwise(method: str, need: Need, file: Evidence) -> Iterator[str]:
    known = file.record.statistics[need.statistic]
    units = {unit for counts in known.counts.values() for unit in counts}
    if units and need.unit not in units:
        options = ", ".join(f"{k}={v}" for k, v in known.options.items() if v is not None)
        yield (
            f"{file.path}: {need.statistic} was added up over {', '.join(sorted(units))} "
            f"({options}), and {method} is defined for sums over {need.unit}; collect it anew, "
            "unless you mean it"
        )


def _unlike(need: Need, files: Sequence[Evidence]) -> Iterator[str]:
    for one, other in pairwise(files):
        a, b = (file.record.statistics[need.statistic].options for file in (one, other))
        keys = [key for key in sorted({*a, *b}) if a.get(key) != b.get(key)]
        if keys:
            told = ", ".join(f"{key}={a.get(key)} and {b.get(key)}" for key in keys)
            yield (
                f"{need.statistic} in {one.path} and {other.path} was collected with different "
                f"options ({told}), so that its sizes may not compare"
            )
