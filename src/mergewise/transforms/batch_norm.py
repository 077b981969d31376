"""Running statistics of batch norms, measured anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.checkpoint import Checkpoint
from mergewise.errors import TransformError
from mergewise.methods import Param, Settings
from mergewise.transforms._base import Ask, Changes, Progress, Transform
from mergewise.transforms._edit import Editor
from mergewise.transforms._measure import Moments, Point, Watch, along, measure
from mergewise.transforms._trace import trace

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mergewise.evidence import LiveModel
    from mergewise.evidence.models import Fed

PASSES = Param(
    str, "each", "each: a pass over the data for every layer, which sees the layers before as "
    "they will be; one: a single pass, each batch normalised by its own statistics",
    choices=("each", "one"),
)  # fmt: skip


class BatchNorm(Transform):
    """Re-estimation of batch norms."""

    name = "batch_norm"
    summary = "running means and variances of batch norms, measured anew on data"
    data = "unlabelled"
    source = (
        "Ioffe & Szegedy 2015, arXiv 1502.03167; after averaging: Izmailov et al. 2018, "
        "arXiv 1803.05407"
    )
    variant = (
        "means and variances are pooled over all rows, so that (with passes: each) the batch size "
        "does not matter; PyTorch's momentum=None averages the variances of batches"
    )
    params = {"passes": PASSES}

    def problem(self, settings: Settings, checkpoint: Checkpoint) -> str | None:
        """A checkpoint without running statistics has no batch norm."""
        if any(name.endswith("running_mean") for name in checkpoint.tensors):
            return None
        return "no batch norm to re-estimate: it has no tensor `…running_mean`"

    def run(self, ask: Ask) -> Changes:
        model = ask.open(ask.checkpoint)
        batches = ask.batches(model)
        editor = Editor(model, ask.checkpoint)
        done, left = reestimate(model, batches, editor, ask.settings.passes, ask.progress)
        rows = sum(len(fed.keys) for fed in batches)
        notes = [f"{len(done)} batch norms measured anew on {rows} examples"]
        warnings = [f"{path} takes no part in a forward pass, and stays as it was" for path in left]
        return Changes(
            editor.tensors(), notes=tuple(notes), warnings=tuple(warnings),
            numbers={"layers": list(done), "examples": rows},
        )  # fmt: skip

    @classmethod
    def describe(cls) -> str:
        return (
            "For every batch norm, in the order of the forward pass, over all rows x of its input "
            "(examples and positions):\n"
            "running_mean = mean(x), running_var = n / (n - 1) var(x), "
            "num_batches_tracked = batches.\n"
            "Scale and shift stay as they are."
        )


def batch_norms(module: nn.Module) -> dict[str, nn.Module]:
    """Batch norms with running statistics, by path."""
    kind = torch.nn.modules.batchnorm._BatchNorm
    return {
        path: child
        for path, child in module.named_modules()
        if isinstance(child, kind) and child.running_mean is not None
    }


def reestimate(
    model: LiveModel,
    batches: list[Fed],
    editor: Editor,
    passes: str = "each",
    progress: Progress = lambda stage, done, total: None,
) -> tuple[list[str], list[str]]:
    """Measure all batch norms of a model anew; paths of those changed, and of those not reached.

    Raises:
        TransformError: if there is none, or none that data reach.
    """
    watched = batch_norms(model.module)
    found = trace(model, batches[0], watched)
    points = [Point(path, watched[path], 1, "inputs", n) for path, n in found.calls.items()]
    points = [point for point in points if editor.can(f"{point.path}.running_mean")]
    if not points:
        raise TransformError(f"{model.name}: no batch norm with running statistics in use")
    if passes == "one":
        seen = Watch(model, points, change=_normalised).run(batches, _ticker(progress, "measuring"))
        for point in points:
            _set(editor, point, seen[point.path], len(batches))
    for number, point in enumerate(points if passes == "each" else ()):
        seen = measure(model, [point], batches, partial=True)
        _set(editor, point, seen[point.path], len(batches))
        progress("measuring layer by layer", number + 1, len(points))
    done = [point.path for point in points]
    return done, [path for path in watched if path not in done]


def _ticker(progress: Progress, stage: str) -> Any:
    return lambda done, total: progress(stage, done, total)


def _normalised(point: Point, own: Moments, value: Tensor) -> Tensor:
    """The output as in training: by the statistics of the batch."""
    module: Any = point.module
    scale = (own.variance + module.eps).rsqrt()
    made = (value - along(own.mean, 1, value)) * along(scale, 1, value)
    if module.weight is None:
        return made
    return made * along(module.weight, 1, value) + along(module.bias, 1, value)


def _set(editor: Editor, point: Point, seen: Moments, batches: int) -> None:
    unbiased = seen.variance * (seen.rows / max(1, seen.rows - 1))
    editor.set(f"{point.path}.running_mean", seen.mean)
    editor.set(f"{point.path}.running_var", unbiased)
    counter = f"{point.path}.num_batches_tracked"
    if editor.can(counter):
        editor.set(counter, torch.tensor(batches))
