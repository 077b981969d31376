"""Second moments of Adam, read from a training checkpoint: curvature that training left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.checkpoint import Checkpoint
from mergewise.errors import EvidenceError, NonFiniteError
from mergewise.evidence.models._names import Names
from mergewise.evidence.statistics._adam_names import named_by_file, named_by_order, skeleton
from mergewise.evidence.statistics._adam_state import MOMENT, OptimizerState, Slot, read_state
from mergewise.evidence.statistics._base import Statistic
from mergewise.methods import Param, Settings

if TYPE_CHECKING:
    from torch import Tensor

Entry = tuple[str, Slot, Callable[["Tensor"], dict[str, "Tensor"]]]


def of_factors(checkpoint: Checkpoint) -> str:
    """Why an adapter's optimizer tells nothing of the tensors it changes."""
    return (
        f"{checkpoint.path}: an adapter's optimizer has second moments of its factors A and B, not "
        "of the weights that they change; collect fisher instead, which is measured on data"
    )


class Adam(Statistic):
    """The optimizer's running mean of squared batch gradients."""

    name = "adam"
    summary = "Adam's second moments, from a training checkpoint's optimizer file"
    sums = {
        "second_moment": "running mean of squared gradients, shape of the tensor",
        "step": "updates the optimizer had made, a number",
    }
    need = "file"
    unit = "optimizers"
    files = ("optimizer.safetensors", "optimizer.pt", "optimizer.bin")
    data = "none"
    source = (
        "Kingma & Ba 2015, arXiv 1412.6980; as a curvature for merging: OTA Merging 2025, arXiv "
        "2509.11167"
    )
    params = {
        "allow_pickle": Param(
            bool, False, "read a pickle (.pt, .bin), restricted to tensors; only if you trust it"
        ),
        "correct": Param(bool, True, "divide by 1 - beta2^step, Adam's correction of early steps"),
        "beta2": Param(
            float, None, "the optimizer's second beta, if the file is silent", ge=0, lt=1
        ),
        "step": Param(int, None, "updates made, if the file is silent", ge=1),
    }

    def read(
        self, checkpoint: Checkpoint, path: Path, options: Settings
    ) -> Iterator[tuple[str, str, Tensor, int]]:
        """Sums from an optimizer file: (tensor, sum, value, how much to count).

        Values are float32, one tensor at a time. Everything that can be is checked before the
        first. Parameters without a second moment, since they never had a gradient, are left out.

        Args:
            checkpoint: the weights that belong to the optimizer; names the tensors.
            path: ``optimizer.pt`` of the `transformers` Trainer or any ``state_dict()`` of an
                Adam of torch, if pickles are allowed; or ``.safetensors`` with keys
                ``exp_avg_sq.NAME``, ``NAME.exp_avg_sq`` or ``state.NUMBER.exp_avg_sq``, and
                ``step`` and ``beta2`` in its metadata.

        Raises:
            EvidenceError: if the file is refused, is not Adam's, or does not fit the checkpoint.
            NonFiniteError: if a second moment is not finite.
        """
        if checkpoint.adapter is not None:
            raise EvidenceError(of_factors(checkpoint))
        state = read_state(path, options.allow_pickle)
        entries = [entry for entry in _entries(state, checkpoint) if entry[1].shape is not None]
        scales = [_scale(name, slot, options, state.path) for name, slot, _ in entries]
        for (name, slot, split), (scale, step) in zip(entries, scales, strict=True):
            for tensor, value in split(_checked(name, slot, state.path)).items():
                yield tensor, "second_moment", value / scale, 1
                if step is not None:
                    yield tensor, "step", torch.tensor(step), 0

    def finalise(self, sums: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
        """Means over the optimizers that were added up, usually one."""
        total = max(1, sum(counts.values()))
        return {name: value / total for name, value in sums.items()}

    @classmethod
    def describe(cls) -> str:
        """The formula, in plain text."""
        return (
            "v = beta2 v + (1 - beta2) g^2 after every update, g the gradient of a batch's mean "
            "loss, clipped if training clipped; with `correct` divided by 1 - beta2^step. An "
            "average over the last 1/(1 - beta2) batches or so: smaller than the Fisher by about "
            "the batch size where single gradients cancel."
        )


def _entries(state: OptimizerState, checkpoint: Checkpoint) -> list[Entry]:
    """Every slot with its parameter's name and the way to the checkpoint's tensors."""
    stored = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    if all(slot.name in stored for slot in state.slots):
        names = named_by_file(state, stored) or []
        return [
            (name, slot, partial(_alone, name))
            for name, slot in zip(names, state.slots, strict=True)
        ]
    module = skeleton(checkpoint)
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    names = named_by_file(state, shapes) or named_by_order(state, module)
    known = Names(module, stored)
    return [
        (name, slot, partial(known.split, name))
        for name, slot in zip(names, state.slots, strict=True)
    ]


def _alone(name: str, value: Tensor) -> dict[str, Tensor]:
    return {name: value}


def _scale(name: str, slot: Slot, options: Settings, path: Path) -> tuple[float, float | None]:
    """What to divide by, and the number of updates."""
    step = options.step if slot.step is None else slot.step
    beta2 = options.beta2 if slot.beta2 is None else slot.beta2
    if not options.correct:
        return 1.0, step
    for what, value in (("step", step), ("beta2", beta2)):
        if value is None:
            raise EvidenceError(
                f"{path}: it does not tell `{what}`, which Adam's correction of {name} needs; "
                f"set the option adam.{what}, or adam.correct=false"
            )
    if not (step >= 1 and 0 <= beta2 < 1):
        raise EvidenceError(
            f"{path}: {name}: step {step:g} and beta2 {beta2:g}; expected step >= 1 and "
            "0 <= beta2 < 1"
        )
    return 1.0 - beta2**step, step


def _checked(name: str, slot: Slot, path: Path) -> Tensor:
    value = slot.load().float()
    if not torch.isfinite(value).all():
        raise NonFiniteError(f"{path}: the second moment of {name} is not finite")
    if (value < 0).any():
        raise EvidenceError(
            f"{path}: the second moment of {name} has negative values; is it {MOMENT} of Adam?"
        )
    return value
