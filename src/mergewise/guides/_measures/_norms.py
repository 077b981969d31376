"""How long task vectors are, tensor by tensor; read in pieces."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mergewise.checkpoint import FileReader, TensorRef
from mergewise.errors import GuideError, NonFiniteError
from mergewise.guides._base import Ask
from mergewise.guides._measures._weights import pieces
from mergewise.plan import TensorPlan


def squared_norms(ask: Ask) -> list[dict[str, float]]:
    """For each expert, the squared norm of its task vector in every tensor that is merged.

    In float64. Where an expert lacks a tensor, it has none of it.

    Raises:
        NonFiniteError: if a weight is NaN or infinite.
        CheckpointError: if a file changed or is damaged.
    """
    merged = {n: t for n, t in ask.stage.tensors.items() if t.fate == "merge" and _based(t)}
    total = sum(ask.foundation.tensors[n].nbytes for n in merged) * 2 * len(ask.experts)
    done, found = 0, []
    for expert in ask.experts:
        own: dict[str, float] = {}
        files = dict(ask.foundation.stamps) | dict(expert.checkpoint.stamps)
        with FileReader(files) as reader:
            for name in merged:
                base, ref = ask.foundation.tensors[name], expert.checkpoint.tensors.get(name)
                if ref is not None:
                    own[name] = _squared(reader, base, ref)
                done += 2 * base.nbytes
                if ask.progress is not None:
                    ask.progress(done, total)
        found.append(own)
    return found


def shares(norms: Mapping[str, float]) -> dict[str, float]:
    """Numbers as shares of their sum; equal shares if all are zero."""
    whole = math.fsum(norms.values())
    return {k: v / whole if whole > 0 else 1 / len(norms) for k, v in norms.items()}


def single_labels(ask: Ask) -> list[str]:
    """The experts' labels.

    Raises:
        GuideError: if one model is named twice, so that its numbers would be too.
    """
    labels = [expert.label for expert in ask.experts]
    for label in labels:
        if labels.count(label) > 1:
            raise GuideError(f"{label} stands in the recipe twice; leave one out")
    return labels


def _based(tensor: TensorPlan) -> bool:
    return tensor.base is not None


def _squared(reader: FileReader, base: TensorRef, ref: TensorRef) -> float:
    found = math.fsum(
        float((mine - other).square().sum())
        for (_, mine), (_, other) in zip(pieces(reader, ref), pieces(reader, base), strict=True)
    )
    if not math.isfinite(found):
        raise NonFiniteError(f"{ref.file}: {ref.name} holds NaN or infinity; fetch it again")
    return found
