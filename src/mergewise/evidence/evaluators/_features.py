"""From batches to logits: call a model, take features from what it returns, apply a head."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.errors import TaskError
from mergewise.evidence.evaluators._heads import Head
from mergewise.evidence.evaluators._surgery import Surgery
from mergewise.evidence.models._live import LiveModel

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Batch:
    """Examples that go through the model together.

    Attributes:
        rows: which examples of the split they are.
        inputs: arguments by the names that models of `transformers` use; other modules get them
            by position, in this order.
        mask: [examples, tokens], 1 for a token and 0 for padding; None without padding.
    """

    rows: Sequence[int]
    inputs: Mapping[str, Tensor]
    mask: Tensor | None = None


def run(
    model: LiveModel,
    batches: Iterable[Batch],
    head: Head | None,
    pool: str,
    total: int,
    progress: Callable[[int, int], None],
    surgery: Surgery | None = None,
) -> Tensor:
    """Logits of all examples in the data's order, float32 [total, classes], on the CPU.

    Args:
        surgery: corrects features before the head sees them.

    Raises:
        TaskError: if the model gives no features or logits of the right form, or NaN.
    """
    if head is None:
        return _all(model, batches, _own_logits, total, progress)

    def logits(model: LiveModel, output: Any, batch: Batch) -> Tensor:
        found = _features(model, output, pool, batch)
        return head.logits(found if surgery is None else surgery.correct(found))

    return _all(model, batches, logits, total, progress, pool)


def features(
    model: LiveModel,
    batches: Iterable[Batch],
    pool: str,
    total: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Features of all examples in the data's order, float32 [total, width], on the CPU.

    Raises:
        TaskError: if the model gives none, or NaN.
    """

    def found(model: LiveModel, output: Any, batch: Batch) -> Tensor:
        return _features(model, output, pool, batch)

    return _all(model, batches, found, total, progress, pool)


def _all(
    model: LiveModel,
    batches: Iterable[Batch],
    made_of: Callable[[LiveModel, Any, Batch], Tensor],
    total: int,
    progress: Callable[[int, int], None],
    pool: str | None = None,
) -> Tensor:
    """What is made of the outputs of a whole classifier or, where there is a `pool`, a body."""
    if pool == "pooler":
        _check_pooler(model)
    found: Tensor | None = None
    done = 0
    with _evaluating(model.module), torch.inference_mode():
        for batch in batches:
            output = _output(model, batch, body=pool is not None)
            made = made_of(model, output, batch).float().cpu()
            if found is None:
                found = torch.empty(total, made.shape[1])
            found[list(batch.rows)] = made
            done += len(batch.rows)
            progress(done, total)
    if found is None:
        raise TaskError(f"{model.name}: no example went through the model")
    if bad := int((~found.isfinite().all(dim=1)).sum()):
        raise TaskError(
            f"{model.name} gives NaN or infinity for {bad} of {total} examples; "
            "try dtype float32, and look for NaN in its weights"
        )
    return found


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """No dropout, even if a caller's module was just trained."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def is_transformer(module: nn.Module) -> bool:
    """Whether a module is a model of `transformers`, called by argument names."""
    return hasattr(module, "config") and hasattr(module, "main_input_name")


def _output(model: LiveModel, batch: Batch, body: bool) -> Any:
    module = model.module
    inputs = {name: value.to(model.device) for name, value in batch.inputs.items()}
    if not is_transformer(module):
        return module(*inputs.values())
    # a head of the task's own replaces the one a whole classifier brings
    called: Any = module.base_model if body else module
    return called(**inputs)


def _own_logits(model: LiveModel, output: Any, batch: Batch) -> Tensor:
    examples = len(batch.rows)
    logits = getattr(output, "logits", output)
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2 or len(logits) != examples:
        raise TaskError(
            f"{model.name} is no classifier: {type(model.module).__name__} returns no logits "
            "[examples, classes]; give the task its `head`, or a checkpoint with one"
        )
    return logits


def _features(model: LiveModel, output: Any, pool: str, batch: Batch) -> Tensor:
    """[examples, width] from a tensor, or from what a body of `transformers` returns."""
    if pool == "pooler" and not isinstance(output, torch.Tensor):
        found = getattr(output, "pooler_output", None)
        if found is None:
            raise _no_features(model, "it has no pooler; choose `pool: mean` or `pool: cls`")
        return found.flatten(1)
    hidden = getattr(output, "last_hidden_state", output)
    if not isinstance(hidden, torch.Tensor) or len(hidden) != len(batch.rows):
        raise _no_features(model, f"it returns {type(output).__name__}")
    if hidden.dim() == 2:
        return hidden
    if hidden.dim() == 4:
        # a convolutional body has positions instead of tokens, and no first one of its own
        return hidden.float().mean(dim=(2, 3))
    if hidden.dim() != 3:
        raise _no_features(model, f"they have the shape {list(hidden.shape)}")
    return hidden[:, 0] if pool == "cls" else _mean(hidden.float(), batch.mask)


def _mean(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over real tokens, as sentence encoders take it."""
    if mask is None or mask.shape != hidden.shape[:2]:
        return hidden.mean(dim=1)
    weight = mask.to(hidden)[..., None]
    return (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


def _no_features(model: LiveModel, why: str) -> TaskError:
    return TaskError(
        f"{model.name}: {type(model.module).__name__} gives no features [examples, width]: {why}"
    )


def _check_pooler(model: LiveModel) -> None:
    """A pooler that is not in the checkpoint was made up at random when it was loaded."""
    from mergewise.checkpoint import open_checkpoint

    if model.folder is None:
        return
    if not any("pooler" in name for name in open_checkpoint(model.folder).tensors):
        raise _no_features(model, "the checkpoint has no pooler; choose `pool: mean` or `cls`")
