"""Masks over a task vector, trained on labelled examples: which of an expert's changes matter.

Logits S have the shape of the task vector tau; the model runs at theta0 + sigmoid(S) * tau, and S
goes down the gradient of its loss. Rounded, sigmoid(S) is the mask. This is the localisation of
Localize-and-Stitch (He et al. 2024, arXiv 2408.13656) and, up to names, skill grafting (Panigrahi
et al. 2023): its mask b + (1 - 2b) sigmoid(S' - bias), b the largest changes, is sigmoid(S) with
S = (1 - 2b) (S' - bias), and both forms take the same steps.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mergewise._lazy import torch
from mergewise.errors import EvidenceError, NonFiniteError
from mergewise.evidence._mask_loss import batch_loss
from mergewise.evidence._mask_top import at_most, largest_changes
from mergewise.evidence._objective import kind_of
from mergewise.evidence.models._call import Fed
from mergewise.evidence.models._differentiable import check_differentiable, differentiable
from mergewise.evidence.models._live import LiveModel
from mergewise.evidence.models._masked import Masked, Tensors
from mergewise.evidence.models._names import Names
from mergewise.evidence.statistics._collect import Progress

if TYPE_CHECKING:
    from torch import Tensor

Masks = Mapping[str, "Tensor"]
"""Bool, by tensor, of its shape."""


@dataclass(frozen=True)
class MaskSettings:
    """How a mask is trained.

    Attributes:
        density: share of all chosen elements, those of the largest changes, in the mask that
            training starts from.
        bias: the first logits, positive in that mask and negative outside of it.
        noise: up to so much less for each logit, by chance; grafting starts from 1.
        epochs: steps; each goes over all examples. 0 leaves the mask as it starts.
        lr: of plain gradient descent on the mean loss of a prediction, in logits^2 a nat.
        l1: weight of the regulariser; as in the official code it is not multiplied by `lr`, so
            that l1 / lr is its weight beside the loss.
        regularizer: ``l1`` takes the gradient of the sum of sigmoid(S), which the paper states
            and which makes masks smaller; ``polarize`` is what the official code's sign makes of
            it: logits are pushed away from 0, to both sides.
        keep: the mask after the ``last`` epoch, or the rounded mask of all epochs with the
            ``best`` loss on the examples.
        most: the rounded mask keeps at most this share of all elements: the highest logits.
        seed: of the noise.
    """

    density: float = 1e-5
    bias: float = 5.0
    noise: float = 0.0
    epochs: int = 10
    lr: float = 1e7
    l1: float = 1.0
    regularizer: Literal["l1", "polarize"] = "l1"
    keep: Literal["last", "best"] = "last"
    most: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Trained:
    """A trained mask.

    Attributes:
        masks: bool, by tensor.
        losses: mean loss of a prediction, in nats, before each epoch's step, unrounded.
        loss: with the rounded mask.
        kept: the epoch whose mask it is; 0 for the one it started from.
    """

    masks: Masks
    losses: tuple[float, ...]
    loss: float
    kept: int

    @property
    def density(self) -> float:
        """Share of elements in the mask."""
        return density_of(self.masks)


def density_of(masks: Masks) -> float:
    """Share of elements that are in the masks; 0 of none."""
    total = sum(mask.numel() for mask in masks.values())
    return sum(int(mask.sum()) for mask in masks.values()) / total if total else 0.0


def train_mask(
    model: LiveModel,
    names: Names,
    base: Tensors,
    expert: Tensors,
    tensors: Collection[str],
    batches: Iterable[Fed],
    settings: MaskSettings,
    *,
    total: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Trained:
    """Train a mask over an expert's changes; the model is left as it was found.

    Memory holds the model, its gradients and the logits; base and expert are read tensor by
    tensor if they lie in files.

    Args:
        model: the expert, in memory.
        names: of its parameters in the checkpoints.
        base, expert: tensors by the checkpoints' names.
        tensors: which have a mask; the others run as the base's.
        batches: all examples; gone through once an epoch, and once more for `Trained.loss`.
        total: records in all, for progress.

    Raises:
        EvidenceError: if there is no tensor or no example, or models do not fit.
        DataError: if labels are missing or do not fit.
        NonFiniteError: if weights, the loss or a gradient are not finite.
    """
    if not tensors:
        raise EvidenceError("no tensor to train a mask over; see `tensors`")
    check_differentiable(model)
    masked = Masked(model.module, names, base, expert, tensors)
    with differentiable(model.module, masked.parameters), masked.placed():
        return _Training(model, masked, batches, settings, total, progress).run()


class _Training:
    def __init__(
        self, model: LiveModel, masked: Masked, batches: Iterable[Fed], settings: MaskSettings,
        total: int | None, progress: Callable[[Progress], None] | None,
    ) -> None:  # fmt: skip
        self.model, self.masked, self.batches, self.settings = model, masked, batches, settings
        self.kind = kind_of(model.module)
        self.total, self.progress = total, progress
        base, expert = masked.base, masked.expert
        start = largest_changes(base, expert, masked.chosen, settings.density)
        self.logits = {name: self._first(name, mask) for name, mask in start.items()}
        self.best: tuple[float, int, Masks] | None = None
        self._count = 0

    def run(self) -> Trained:
        epochs, losses = self.settings.epochs, []
        for epoch in range(1, epochs + 1):
            self.masked.put(lambda name: torch.sigmoid(self.logits[name]))
            losses.append(self._pass(f"epoch {epoch} of {epochs}", backward=True))
            self._step(self._count)
            if self.settings.keep == "best":
                self._compare(epoch)
        if self.best is None:
            self._compare(epochs)
        assert self.best is not None
        loss, kept, masks = self.best
        return Trained(masks, tuple(losses), loss, kept)

    def _first(self, name: str, mask: Tensor) -> Tensor:
        size = torch.full(mask.shape, self.settings.bias)
        if self.settings.noise:
            mark = hashlib.sha256(f"{self.settings.seed}\0{name}".encode()).digest()
            draw = torch.Generator().manual_seed(int.from_bytes(mark[:8], "little") >> 1)
            size -= self.settings.noise * torch.rand(mask.shape, generator=draw)
        return torch.where(mask, size, -size).to(self.model.device)

    def _compare(self, epoch: int) -> None:
        """Keep the rounded mask if it is the best so far."""
        masks = at_most(self.logits, self.settings.most)
        self.masked.put(lambda name: masks[name].float())
        with torch.no_grad():
            loss = self._pass("rounded", backward=False)
        if self.best is None or loss < self.best[0]:
            self.best = loss, epoch, {name: mask.cpu() for name, mask in masks.items()}

    def _pass(self, stage: str, backward: bool) -> float:
        """The mean loss; its gradients, summed over predictions, lie in ``.grad`` after."""
        for parameter in self.masked.parameters.values():
            parameter.grad = None
        loss, count = 0.0, 0
        for fed in self._told(stage):
            value, predictions = batch_loss(self.model.module, fed, self.kind, self.model.device)
            if backward and predictions:
                torch.autograd.backward(value, inputs=list(self.masked.parameters.values()))
            loss, count = loss + float(value.detach()), count + predictions
        if count == 0:
            raise EvidenceError(
                "no predictions: the data set is empty, or its texts have fewer than two tokens"
            )
        if not math.isfinite(loss):
            raise NonFiniteError(f"{self.model.name}: the loss in {stage} is {loss}")
        self._count = count
        return loss / count

    def _step(self, count: int) -> None:
        for name, slope in self.masked.slopes():
            logits, s = self.logits[name], self.settings
            if not bool(slope.isfinite().all()):
                raise NonFiniteError(f"{self.model.name}: the gradient of {name} is not finite")
            chance = torch.sigmoid(logits)
            steepness = chance * (1 - chance)
            push = -torch.sign(logits) if s.regularizer == "polarize" else 1.0
            logits -= (slope * (s.lr / count) + s.l1 * push) * steepness

    def _told(self, stage: str) -> Iterator[Fed]:
        started, done, tokens = time.monotonic(), 0, 0
        for fed in self.batches:
            yield fed
            done, tokens = done + fed.records, tokens + fed.tokens
            if self.progress is not None:
                seconds = time.monotonic() - started
                self.progress(Progress(done, self.total, tokens, stage, seconds))
