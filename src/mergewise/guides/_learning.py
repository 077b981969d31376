"""Weights of an average of models, learned by the gradient of its loss.

Of d loss / d w_i only differences between models count, since weights are a softmax; so the
gradient by the merged tensors is multiplied with what each model differs by from the merge. That
needs two models' memory, however many there are, and is what automatic differentiation through
the average gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.checkpoint import Checkpoint
from mergewise.errors import EvidenceError, NonFiniteError
from mergewise.evidence import LiveModel

if TYPE_CHECKING:
    from torch import Tensor

Groups = Mapping[str, str]
"""By tensor: the tensors that share their weights with it have the same group."""
Batches = Callable[[int], Iterable[Any]]
"""By epoch, from 1; 0 for a pass without learning."""

_KEPT = 2 << 30
"""Bytes of models in float32 that are kept in memory instead of being read for every step."""


@dataclass(frozen=True)
class Learned:
    """What was learned.

    Attributes:
        weights: by tensor, one for each model; their sum is 1.
        before, after: mean loss with equal weights and with these, in nats, of the outputs as
            they are.
        beta: factor of the outputs that was learned along; the recipe does not have it.
        epochs: mean loss in each epoch, while weights changed.
    """

    weights: Mapping[str, Sequence[float]]
    before: float
    after: float
    beta: float
    epochs: tuple[float, ...]


class Average:
    """A module that holds the weighted average of models.

    Args:
        model: in memory; its weights are replaced.
        checkpoints: the models.
        groups: of the tensors that are learned. Others are the mean of the models.
    """

    def __init__(self, model: LiveModel, checkpoints: Sequence[Checkpoint], groups: Groups) -> None:
        from mergewise.evidence.models import Names, StoredTensors

        names = Names(model.module, tuple(checkpoints[0].tensors))
        self._places: dict[str, tuple[Tensor, Any]] = {}
        held = {**dict(model.module.named_parameters()), **dict(model.module.named_buffers())}
        for name, value in held.items():
            for part in names.of(name):
                self._places[part.tensor] = value, part
        learned = {n for n, p in self._places.items() if isinstance(p[0], torch.nn.Parameter)}
        self.rest = [name for name in groups if name in self._places and name not in learned]
        self.groups = {name: group for name, group in groups.items() if name in learned}
        if not self.groups:
            raise EvidenceError(f"{model.name}: no tensor of the recipe is a parameter of it")
        self.order = list(dict.fromkeys(self.groups.values()))
        places = [self._places[name][0] for name in self.groups]
        self.parameters = list({id(value): value for value in places}.values())
        self.count = len(checkpoints)
        size = sum(math.prod(checkpoints[0].tensors[n].shape) for n in self.groups) * 4
        sources = [StoredTensors(checkpoint) for checkpoint in checkpoints]
        kept = size * self.count <= _KEPT
        self._sources: list[Mapping[str, Tensor]] = [
            {n: s[n] for n in (*self.groups, *self.rest)} if kept else s for s in sources
        ]

    def put(self, weights: Tensor) -> None:
        """Set the module; `weights` [groups, models], rows in the order of `order`."""
        rows = {group: weights[i].tolist() for i, group in enumerate(self.order)}
        even = [1 / self.count] * self.count
        with torch.no_grad():
            for name in (*self.groups, *self.rest):
                place = self._place(name)
                total = torch.zeros_like(place)
                row = rows[self.groups[name]] if name in self.groups else even
                for weight, source in zip(row, self._sources, strict=True):
                    total.add_(source[name].to(place), alpha=weight)
                place.copy_(total)

    def slopes(self) -> Tensor:
        """d loss / d weights [groups, models] up to a number for each row, from ``.grad``."""
        found = torch.zeros(len(self.order), self.count)
        rows = {group: i for i, group in enumerate(self.order)}
        for name, group in self.groups.items():
            value, part = self._places[name]
            if value.grad is None:
                continue
            gradient, merged = part.of(value.grad), self._place(name)
            for i, source in enumerate(self._sources):
                change = source[name].to(gradient) - merged
                found[rows[group], i] += float((gradient * change).sum())
        return found

    def _place(self, name: str) -> Tensor:
        value, part = self._places[name]
        if not value.is_contiguous():
            value.data = value.data.contiguous()
        found: Tensor = part.of(value.data)
        return found


def learn(
    model: LiveModel,
    average: Average,
    batches: Batches,
    *,
    lr: float,
    epochs: int,
    beta: bool,
    tell: Callable[[str], None],
) -> Learned:
    """Learn the weights.

    Args:
        batches: gives all examples, in an order of each epoch's own.
        beta: whether a factor of the outputs is learned too.

    Raises:
        EvidenceError: if there is nothing to predict.
        NonFiniteError: if a loss or a gradient is not finite.
    """
    from mergewise.evidence.models import check_differentiable, differentiable

    check_differentiable(model)
    ids = {id(parameter) for parameter in average.parameters}
    wanted = {name for name, p in model.module.named_parameters() if id(p) in ids}
    with differentiable(model.module, wanted):
        return _Learning(model, average, batches, lr, epochs, beta, tell).run()


class _Learning:
    def __init__(
        self, model: LiveModel, average: Average, batches: Batches, lr: float, epochs: int,
        beta: bool, tell: Callable[[str], None],
    ) -> None:  # fmt: skip
        from mergewise.evidence import kind_of

        self.model, self.average, self.batches, self.tell = model, average, batches, tell
        self.kind, self.epochs = kind_of(model.module), epochs
        shape = len(average.order), average.count
        self.logits = torch.zeros(shape, requires_grad=True)
        self.beta = torch.ones((), device=model.device, requires_grad=beta)
        learned = [self.logits, *([self.beta] if beta else [])]
        self.optimizer = torch.optim.AdamW(learned, lr=lr, weight_decay=0.0)

    def run(self) -> Learned:
        self.tell("loss of the mean of the models")
        before, losses = self._loss(), []
        for epoch in range(1, self.epochs + 1):
            self.tell(f"learning weights, epoch {epoch} of {self.epochs}")
            losses.append(self._epoch(epoch))
        self.tell("loss with the weights learned")
        after = self._loss()
        rows = dict(zip(self.average.order, self._weights().tolist(), strict=True))
        weights = {name: rows[group] for name, group in self.average.groups.items()}
        return Learned(weights, before, after, float(self.beta.detach()), tuple(losses))

    def _weights(self) -> Tensor:
        return torch.softmax(self.logits.detach().double(), 1)

    def _loss(self) -> float:
        """The mean loss of the outputs as they are."""
        self.average.put(self._weights())
        with torch.no_grad():
            found = [self._batch(fed) for fed in self.batches(0)]
        return self._mean([(float(loss), count) for loss, count in found])

    def _epoch(self, epoch: int) -> float:
        found = []
        for fed in self.batches(epoch):
            self.average.put(self._weights())
            with self._scaled():
                loss, count = self._batch(fed)
            if count:
                self._step(loss / count)
            found.append((float(loss.detach()), count))
        return self._mean(found)

    def _step(self, loss: Tensor) -> None:
        for parameter in self.average.parameters:
            parameter.grad = None
        self.optimizer.zero_grad()
        scale = [self.beta] if self.beta.requires_grad else []
        torch.autograd.backward(loss, inputs=[*self.average.parameters, *scale])
        slopes = self.average.slopes()
        if not bool(slopes.isfinite().all()):
            raise NonFiniteError(f"{self.model.name}: a gradient is not finite")
        torch.autograd.backward(torch.softmax(self.logits, 1), slopes)
        self.optimizer.step()

    def _batch(self, fed: Any) -> tuple[Tensor, int]:
        from mergewise.evidence import batch_loss

        return batch_loss(self.model.module, fed, self.kind, self.model.device)

    @contextmanager
    def _scaled(self) -> Iterator[None]:
        """With outputs times beta."""

        def scale(module: Any, inputs: Any, output: Any) -> Any:
            if isinstance(output, torch.Tensor):
                return output * self.beta
            output.logits = output.logits * self.beta
            return output

        handle = self.model.module.register_forward_hook(scale)
        try:
            yield
        finally:
            handle.remove()

    def _mean(self, found: Sequence[tuple[float, int]]) -> float:
        total, count = sum(loss for loss, _ in found), sum(n for _, n in found)
        if not count:
            raise EvidenceError(
                "nothing to predict: the data is empty, or its texts have fewer than two tokens"
            )
        if not math.isfinite(total):
            raise NonFiniteError(f"{self.model.name}: the loss is {total}")
        return total / count
