"""Training for all families: AdamW with warm-up and cosine, and models kept once they are made."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.lab._progress import Progress
from mergewise._lazy import torch

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor, nn

MARK = "lab_fingerprint"


@dataclass(frozen=True)
class Schedule:
    """How a model is trained.

    Attributes:
        steps: updates.
        rate: the highest learning rate; reached after `warm_up`, then down a cosine to `floor`.
        warm_up: share of the steps.
        floor: share of `rate` at the end.
        clip: largest norm of the gradient; 0 for no limit.
    """

    steps: int
    rate: float
    warm_up: float = 0.05
    floor: float = 0.1
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0

    def at(self, step: int) -> float:
        """Share of `rate` at a step, counted from 0."""
        warm = max(1, round(self.warm_up * self.steps))
        if step < warm:
            return (step + 1) / warm
        done = (step - warm) / max(1, self.steps - warm)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))


def train(
    module: nn.Module,
    batches: Iterable[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    schedule: Schedule,
    *,
    label: str,
    console: Console,
    bfloat16: bool = False,
    finished: Callable[[torch.optim.AdamW], None] | None = None,
) -> float:
    """Train the parameters of `module` that require gradients, in place; leaves it in eval mode.

    Args:
        batches: at least ``schedule.steps`` of them, in the order they are used.
        loss: the mean loss of a batch, a scalar.
        label: what the progress line calls it.
        bfloat16: compute in bfloat16 where that is safe (autocast); weights stay float32.
        finished: called with the optimizer after the last step.

    Returns:
        The mean loss of the last tenth of the steps.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    device = trained[0].device.type
    optimizer = torch.optim.AdamW(
        trained, lr=schedule.rate, betas=schedule.betas, weight_decay=schedule.weight_decay
    )
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.at)
    last: list[float] = []
    module.train()
    with Progress(console, label, schedule.steps) as progress:
        for step, batch in zip(range(schedule.steps), batches, strict=False):
            with torch.autocast(device, torch.bfloat16) if bfloat16 else contextlib.nullcontext():
                value = loss(module, batch)
            optimizer.zero_grad()
            torch.autograd.backward(value)
            if schedule.clip:
                torch.nn.utils.clip_grad_norm_(trained, schedule.clip)
            optimizer.step()
            rates.step()
            if step >= 0.9 * schedule.steps:
                last.append(value.item())
            progress.step()
    module.eval()
    if finished is not None:
        finished(optimizer)
    return sum(last) / max(1, len(last))


def second_moments(module: nn.Module, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """Adam's running mean of squared gradients, corrected for its start, by parameter."""
    beta2 = optimizer.param_groups[0]["betas"][1]
    found = {}
    for name, parameter in module.named_parameters():
        state = optimizer.state.get(parameter)
        if state:
            found[name] = state["exp_avg_sq"] / (1.0 - beta2 ** float(state["step"]))
    return found


def shuffled(count: int, size: int, seed: int) -> Iterator[Tensor]:
    """Endless batches of `size` row numbers below `count`; every row once before any twice."""
    chance = torch.Generator().manual_seed(seed)
    rest = torch.empty(0, dtype=torch.int64)
    while True:
        while len(rest) < size:
            rest = torch.cat([rest, torch.randperm(count, generator=chance)])
        yield rest[:size]
        rest = rest[size:]


def kept_state(
    path: Path, fingerprint: str, make: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """The tensors of the safetensors file `path`, made and written first where they must be.

    A file with another fingerprint is made anew.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    if path.is_file():
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get(MARK) == fingerprint:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    state = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in make().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    save_file(state, partial, metadata={MARK: fingerprint})
    partial.replace(path)
    return state


def kept_folder(path: Path, fingerprint: str, make: Callable[[Path], None]) -> Path:
    """The folder `path`, made first where it must be; `make` fills the folder it is given.

    A folder with another fingerprint is made anew.
    """
    mark = path / f"{MARK}.txt"
    if mark.is_file() and mark.read_text("utf-8") == fingerprint:
        return path
    partial = path.with_name(f".{path.name}.partial")
    for old in (partial, path):
        if old.exists():
            shutil.rmtree(old)
    partial.mkdir(parents=True)
    make(partial)
    (partial / mark.name).write_text(fingerprint, "utf-8")
    partial.replace(path)
    return path
