"""What a contender's merge is given: which models in which place, and the evidence of each."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.lab._contenders import ADAM, Contender
from benchmarks.lab._evidence import Means, _collected, _kept, evidence_mark, evidence_of
from benchmarks.lab._family import Family, Models, State
from benchmarks.lab._journal import digest_of
from benchmarks.lab._merge import merge
from benchmarks.lab._train import kept_state
from mergewise._lazy import torch
from mergewise.methods import Need, get_method

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Given:
    """Attributes:
    evidence: of every model besides the base, in order; None if the method reads none.
    base_evidence: of the model in the base's place.
    """

    evidence: list[Means] | None = None
    base_evidence: Means | None = None


@functools.cache
def given_mark() -> str:
    """Identifies the code that collects what `evidence_of` does not: 64 hexadecimal digits."""
    return digest_of([Path(__file__)])


def marks(contender: Contender) -> dict[str, Any]:
    """What the journal must know of it besides parameters; nothing for most, as it always was."""
    found: dict[str, Any] = {}
    if contender.first:
        found["first"] = True
    if contender.after:
        found["after"] = contender.after
    if not _plain(contender):
        found["given"] = given_mark()
    return found


def notes(family: Family, steps: Sequence[int]) -> list[str]:
    """What a reader must know of methods that are told or given more than the others."""
    found = []
    if steps and len(set(steps)) == 1:
        found.append("all experts took as many steps, so fednova is the average times its lambda")
    if family.calibrating:
        found.append(
            "gradient_matching's Fisher information of the base is measured on the experts' data, "
            "an equal part of the examples of each, with each task's own head"
        )
    if family.optimised:
        found.append(
            "ota's second moments of Adam are from training each expert once more, which has to "
            "give the same weights bit by bit"
        )
    return found


def given_of(family: Family, seed: int, models: Models, contender: Contender) -> Given:
    """Everything that is measured of the models, collected where it does not lie there yet."""
    if _plain(contender):
        return Given(evidence_of(family, seed, models, contender))
    experts: list[dict[str, Mapping[str, Tensor]]] = [{} for _ in models.experts]
    base: dict[str, Mapping[str, Tensor]] = {}
    for need in get_method(contender.method).needs_at_defaults():
        if need.of == "base":
            base[need.statistic] = _of_base(family, seed, models, contender, need)
            continue
        for name, means in zip(models.experts, experts, strict=True):
            means[need.statistic] = (
                _moments(family, seed, name)
                if need.statistic == ADAM
                else _kept(family, seed, models, name, need, contender.examples)
            )
    return Given(experts if any(experts) else None, base or None)


def merged(
    models: Models, contender: Contender, scale: float | None, given: Given, **how: Any
) -> Any:
    """The contender's merge of all experts; `how` goes to the engine."""
    experts = list(models.experts.values())
    base = models.base if contender.base else None
    if contender.first:
        base, *experts = experts
    if contender.after:
        weight = {"weight": 1.0 / len(experts)}
        experts = [merge(experts, contender.after, parameters=weight, **how)]
    return merge(
        experts,
        contender.method,
        evidence=given.evidence,
        base_evidence=given.base_evidence,
        base=base,
        parameters=contender.at(scale),
        **how,
    )


def _plain(contender: Contender) -> bool:
    """Whether all it reads is of the experts, measured on examples."""
    needs = get_method(contender.method).needs_at_defaults()
    return all(need.of == "experts" and need.statistic != ADAM for need in needs)


def _of_base(
    family: Family, seed: int, models: Models, contender: Contender, need: Need
) -> dict[str, Tensor]:
    if contender.first:
        return _kept(family, seed, models, next(iter(models.experts)), need, contender.examples)
    return base_means(family, seed, models.base, need, contender.examples)


def base_means(
    family: Family, seed: int, base: State, need: Need, examples: int
) -> dict[str, Tensor]:
    """The base's statistic on the data of all experts, each with an equal part of `examples`.

    Outputs are those of each task's own head, as with the experts.
    """
    tasks = [task.owner for task in family.tasks(seed) if task.owner is not None]
    owners = list(dict.fromkeys(tasks))
    what = (need.statistic, need.sum, need.unit)

    def make() -> dict[str, Tensor]:
        parts = []
        for owner in owners:
            one = family.calibration(seed, owner, base, max(1, examples // len(owners)))
            assert one is not None, "contenders() asks first"
            parts.append(_collected(one, need, seed))
        return {name: torch.stack([p[name] for p in parts]).mean(dim=0) for name in parts[0]}

    return _lying(family, seed, f"base.{need.statistic}.{examples}", [what, examples, owners], make)


def _moments(family: Family, seed: int, expert: str) -> dict[str, Tensor]:
    return _lying(family, seed, f"{expert}.{ADAM}", [expert], lambda: family.moments(seed, expert))


def _lying(
    family: Family, seed: int, name: str, asked: Any, make: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Kept beside the models."""
    all_asked = [family.fingerprint(seed), evidence_mark(), given_mark(), asked]
    mark = hashlib.sha256(json.dumps(all_asked, sort_keys=True).encode()).hexdigest()
    return kept_state(family.home(seed) / "evidence" / f"{name}.safetensors", mark, make)
