"""RCP-Merging's votes: of which elements a domain model's examples want the change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

from mergewise._lazy import torch
from mergewise.errors import EvidenceError
from mergewise.evidence import Example, examples_of
from mergewise.evidence.models import sites_of
from mergewise.evidence.statistics import (
    GradientPass,
    GradientStatistic,
    MemorySums,
    Pass,
    Scoped,
    run_examples,
)
from mergewise.methods import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from mergewise.evidence import LiveModel
    from mergewise.evidence.models import Fed


class _Votes(GradientStatistic):
    """Adds +1 or -1 an example for every element."""

    name = "votes"
    summary = ""
    sums: ClassVar[Mapping[str, str]] = {}

    def __init__(self, penalties: Mapping[str, Tensor]) -> None:
        self._penalties = penalties
        self.total: dict[str, Tensor] = {}

    def wants_tensor(self, name: str, options: Settings) -> bool:
        return name in self._penalties

    def gradients(self, run: Pass, gradients: Mapping[str, Tensor]) -> None:
        assert isinstance(run, GradientPass)
        for name, gradient in gradients.items():
            penalty = self._penalties[name].to(gradient.device)
            against = gradient.float() * run.weights[name].float() + penalty > 0
            vote = 1 - 2 * against.to(torch.int32)
            self.total[name] = self.total.get(name, torch.zeros_like(vote)) + vote

    @classmethod
    def describe(cls) -> str:
        return ""


def voted(
    model: LiveModel,
    stored: Iterable[str],
    batches: Iterable[Fed],
    penalties: Mapping[str, Tensor],
    done: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """For every element, whether more examples are for its change than against it.

    Example s is for it where g_s * w + penalty <= 0, g_s the gradient of its mean loss.

    Args:
        stored: names of the checkpoint's tensors.
        penalties: by tensor, float32 of its shape; tensors without one do not vote.
        done: called with the number of examples that have voted.

    Returns:
        Bool, by tensor.

    Raises:
        EvidenceError, DataError, NonFiniteError: see `run_examples`.
    """
    votes = _Votes(penalties)
    options = Settings({"labels": "data", "reduction": "mean", "samples": 1})
    run = GradientPass(options, model.module, Scoped(MemorySums(), votes.name))
    count = 0

    def told(example: Example) -> None:
        nonlocal count
        count += 1
        if done is not None:
            done(count)

    def examples() -> Iterable[Example]:
        for fed in batches:
            labels = {} if fed.labels is None else {"labels": fed.labels}
            yield from examples_of({**fed.inputs, **labels}, fed.keys)

    sites = sites_of(model.module, tuple(stored))
    run_examples(model, examples(), [(votes, run)], sites=sites, done=told)
    if absent := set(penalties) - set(votes.total):
        raise EvidenceError(
            f"{model.name}: no example has a gradient for {', '.join(sorted(absent)[:3])}"
        )
    return {name: total > 0 for name, total in votes.total.items()}
