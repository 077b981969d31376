"""One example and its loss: what is predicted, which labels are taken, how likely they are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from mergewise._lazy import torch
from mergewise.errors import DataError, EvidenceError

if TYPE_CHECKING:
    from torch import Tensor, nn

Kind = Literal["causal_lm", "classification"]
Loss = Callable[["nn.Module", "Example"], "Tensor"]

IGNORED = -100
MAX_EXPECTED = 32
_ROWS = 64


@dataclass(frozen=True)
class Example:
    """One example, without padding.

    Attributes:
        inputs: keyword arguments of the module, each with a first axis of length one.
        label: the class, or token labels [tokens] of which -100 are not predicted; None if the
            data has none.
        key: identifies the example in its data set, whatever the order or the share it is read
            in; sampled labels depend on it.
    """

    inputs: Mapping[str, Tensor]
    label: Any = None
    key: tuple[int, ...] = ()

    def to(self, device: torch.device) -> Example:
        """The same example on `device`."""
        inputs = {name: value.to(device) for name, value in self.inputs.items()}
        return Example(inputs, self.label, self.key)

    @property
    def tokens(self) -> int:
        """Tokens of its text; 1 for anything else."""
        ids = self.inputs.get("input_ids")
        return 1 if ids is None else int(ids.shape[1])


def examples_of(
    batch: Mapping[str, Any], rows: Sequence[int | tuple[int, ...]] | int = 0
) -> Iterator[Example]:
    """The examples of a batch, each without its padding.

    Args:
        batch: keyword arguments of the module, [examples, ...] each. ``attention_mask`` [examples,
            tokens] tells padding; ``labels`` or ``label`` are taken out as labels.
        rows: the key of every example, or the number of the first.
    """
    values = {name: torch.as_tensor(value) for name, value in batch.items()}
    given = [values.pop(name, None) for name in ("labels", "label")]
    labels = next((label for label in given if label is not None), None)
    mask = values.get("attention_mask")
    for i in range(len(next(iter(values.values())))):
        key = rows[i] if not isinstance(rows, int) else rows + i
        keep = None if mask is None else mask[i].bool()
        yield Example(
            inputs={name: _row(value, i, mask, keep) for name, value in values.items()},
            label=None if labels is None else _label(labels, i, mask, keep),
            key=key if isinstance(key, tuple) else (key,),
        )


def _row(value: Tensor, i: int, mask: Tensor | None, keep: Tensor | None) -> Tensor:
    per_token = mask is not None and value.ndim >= 2 and value.shape[:2] == mask.shape
    return value[i : i + 1, keep] if per_token else value[i : i + 1]


def _label(labels: Tensor, i: int, mask: Tensor | None, keep: Tensor | None) -> Any:
    return _row(labels, i, mask, keep)[0]


@dataclass(frozen=True)
class Predictions:
    """What a model predicts for one example.

    Attributes:
        log_probabilities: float32 or wider [predictions, classes], with a graph.
        labels: the data's labels [predictions]; None if it has none.
    """

    log_probabilities: Tensor
    labels: Tensor | None = None

    def likelihood(self, labels: Tensor, mean: bool) -> Tensor:
        """The log-likelihood of `labels` in nats, over all predictions or for each."""
        rows = self.log_probabilities.gather(1, labels[:, None])
        return rows.mean() if mean else rows.sum()


def kind_of(module: nn.Module) -> Kind | None:
    """What a model predicts, by its class; None for a module that is not of `transformers`."""
    name = type(module).__name__
    if "CausalLM" in name or "LMHeadModel" in name:
        return "causal_lm"
    if name.endswith(("ForSequenceClassification", "ForImageClassification")):
        return "classification"
    if hasattr(module, "config"):
        raise EvidenceError(
            f"no loss is known for {name}: expected a causal language model or a classifier of "
            "sequences or images; pass a loss of your own (Python: `loss=`)"
        )
    return None


def predict(module: nn.Module, example: Example, kind: Kind | None) -> Predictions:
    """Run `module` on one example.

    Raises:
        EvidenceError: if its output is not logits that a loss is known for.
        DataError: if a label does not fit them.
    """
    output = module(**example.inputs)
    logits = getattr(output, "logits", output)
    if not isinstance(logits, torch.Tensor) or logits.shape[0] != 1 or logits.ndim not in (2, 3):
        raise EvidenceError(
            f"{type(module).__name__} does not return logits [1, classes] or [1, tokens, "
            "vocabulary] for one example; pass a loss of your own (Python: `loss=`)"
        )
    language = kind == "causal_lm" or (kind is None and logits.ndim == 3)
    if language != (logits.ndim == 3):
        raise EvidenceError(
            f"{type(module).__name__} returns logits of shape {list(logits.shape)}, which a "
            f"{kind} does not; pass a loss of your own (Python: `loss=`)"
        )
    rows, labels = _next_tokens(logits, example) if language else _one_class(logits, example)
    if logits.dtype in (torch.float16, torch.bfloat16):
        rows = rows.float()
    return Predictions(torch.log_softmax(rows, -1), labels)


def _next_tokens(logits: Tensor, example: Example) -> tuple[Tensor, Tensor]:
    """Logits and labels of the tokens that are predicted from those before them."""
    given = None if example.label is None else torch.as_tensor(example.label)
    # the class of a text is no label of its tokens
    tokens = _token_ids(example) if given is None or given.ndim == 0 else given
    if tokens.shape != logits.shape[1:2]:
        raise DataError(
            f"example {example.key}: {list(tokens.shape)} token labels for "
            f"{logits.shape[1]} tokens; expected one each, -100 where none is predicted"
        )
    labels = tokens[1:].to(logits.device)
    kept = labels != IGNORED
    return logits[0, :-1][kept], labels[kept]


def _token_ids(example: Example) -> Tensor:
    if "input_ids" not in example.inputs:
        raise DataError(
            f"example {example.key} has neither `input_ids` nor token labels; it has "
            f"{', '.join(example.inputs)}"
        )
    return example.inputs["input_ids"][0]


def _one_class(logits: Tensor, example: Example) -> tuple[Tensor, Tensor | None]:
    if example.label is None:
        return logits, None
    label = torch.as_tensor(example.label).reshape(-1).to(logits.device)
    if label.numel() != 1 or label.is_floating_point() or not 0 <= int(label) < logits.shape[1]:
        raise DataError(
            f"example {example.key}: label {label.tolist()} for {logits.shape[1]} classes; "
            f"expected one whole number from 0 to {logits.shape[1] - 1}"
        )
    return logits, label.long()


@dataclass(frozen=True)
class Choice:
    """Which labels a loss is taken at.

    Attributes:
        labels: ``model``, ``argmax``, ``data`` or ``expected``.
        samples: labels drawn for each prediction, for ``model``.
        seed: of the draws.
    """

    labels: str = "data"
    samples: int = 1
    seed: int = field(default=0, compare=False)

    def draws(self, predictions: Predictions, key: tuple[int, ...]) -> list[tuple[float, Tensor]]:
        """Labels [predictions], each with the weight its gradients have.

        Raises:
            DataError: if the data has no label and one is asked for.
            EvidenceError: if the expectation is asked for over too many classes.
        """
        table = predictions.log_probabilities.detach()
        if self.labels == "argmax":
            return [(1.0, table.argmax(-1))]
        if self.labels == "expected":
            return _every_class(table)
        if self.labels == "model":
            drawn = _sampled(table, self.samples, self.seed, key)
            return [(1.0 / self.samples, labels) for labels in drawn]
        if predictions.labels is None:
            raise DataError(
                f"example {key} has no label; expected one, or set the option `labels` to "
                "`model`, which takes labels from the model's own distribution"
            )
        return [(1.0, predictions.labels)]


def _every_class(table: Tensor) -> list[tuple[float, Tensor]]:
    rows, classes = table.shape
    if rows != 1 or classes > MAX_EXPECTED:
        raise EvidenceError(
            f"labels: expected: {rows} predictions among {classes} classes; the expectation is "
            f"taken for one prediction among at most {MAX_EXPECTED}; use `labels: model`"
        )
    whole = torch.arange(classes, device=table.device)
    return [(float(table[0, c].exp()), whole[c : c + 1]) for c in range(classes)]


def _sampled(table: Tensor, samples: int, seed: int, key: tuple[int, ...]) -> list[Tensor]:
    """Draws by the inverse distribution function: the same on every device, up to rounding."""
    digest = hashlib.sha256(repr((seed, *key)).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    levels = torch.rand(len(table), samples, generator=generator, dtype=torch.float64)
    levels = levels.to(table.device)
    # the whole table in float64 may be large, with a vocabulary for every token
    starts = range(0, len(table), _ROWS)
    drawn = torch.cat([_inverse(table[i : i + _ROWS], levels[i : i + _ROWS]) for i in starts])
    return list(drawn.unbind(1))


def _inverse(rows: Tensor, levels: Tensor) -> Tensor:
    steps = rows.double().exp().cumsum(-1)
    # the last step is 1 only up to rounding
    found = torch.searchsorted(steps, levels * steps[:, -1:], right=True)
    return found.clamp_max(rows.shape[1] - 1)
