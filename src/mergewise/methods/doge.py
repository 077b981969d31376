"""DOGE-TA: one correction for all task vectors, descended outside of the subspace they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.methods._base import Inputs
from mergewise.methods._descent import MOST_STEPS, adam, sgd
from mergewise.methods._matrix import MatrixMethod, inside, matrix_params
from mergewise.methods._params import Param, Settings
from mergewise.methods._spectrum import svd
from mergewise.methods._weights import combination

if TYPE_CHECKING:
    from torch import Tensor


class Doge(MatrixMethod):
    """Every task vector counts with the same length, `lambda`, however large it is.

    The loss asks of each row of each task vector that its product with what is merged be its
    square. Its gradient is projected off the outputs that the task vectors share. `subspace`
    divides the smaller side; it is no rank.
    """

    name = "doge"
    summary = "task vectors of one length with a common correction, sparsified"
    advice = (
        "For several experts, when a search for a common correction of each matrix is "
        "affordable. It has more settings than most, and whether they carry over to other "
        "models is open."
    )
    formula = (
        "l_i = lambda / |d_i|; a by Adam on sum_i |rowsum(d_i * (d_i - sum_k l_k (d_k + a)))|^2, "
        "gradient off the top min(m, n) // subspace left singular vectors that the d_i share; "
        "b + sum_i w_i l_i mask_i (d_i + a)"
    )
    source = "DOGE, adaptive projective gradient descent (Wei et al. 2025, arXiv 2501.01230)"
    variant = (
        "FusionBench's doge_ta, by an author: masks from the task vectors without the correction; "
        "the number kept is exact (theirs keeps one more)"
    )
    params = matrix_params("linear", "base", 0.07) | {
        "lambda": Param(float, 0.07, "length given to each task vector, tensor by tensor"),
        "density": Param(
            float, 0.3, "share of this task vector's elements to keep", per_model=True, ge=0, le=1,
            native=True,
        ),
        "granularity": Param(
            str, "model", "largest over the whole model, or of each tensor",
            choices=("model", "tensor"), native=True,
        ),
        "subspace": Param(
            int, 6, "the shared subspace has the smaller side divided by this", ge=1, native=True
        ),
        "optimizer": Param(
            str, "adam", "Adam, or plain gradient descent, which stays off the subspace exactly",
            choices=("adam", "sgd"), native=True,
        ),
        "iterations": Param(int, 400, "steps", ge=0, le=MOST_STEPS, native=True),
        "learning_rate": Param(float, 1e-4, "of the steps", gt=0, native=True),
    }  # fmt: skip
    example = """
merge_method: doge
base_model: base
models:
  - model: expert_a
  - model: expert_b
"""

    def scores(self, x: Inputs, s: Settings) -> list[Tensor]:
        return [delta.abs() for delta in x.deltas] if inside(s) else []

    def ranks(self, p: Settings, n: int, nonzero: Sequence[int]) -> list[list[int]]:
        return [[round(density * n)] for density in p.density] if inside(p) else []

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        assert x.base is not None
        if not inside(s):
            return super().combine(x, s)
        kept = [x.at_least(delta.abs(), s.thresholds[i][0], i) for i, delta in enumerate(x.deltas)]
        return x.base + self._updated(x.base, [*x.deltas, *kept], s)

    def factor(self, s: Settings) -> float:
        return 1.0  # lambda is a length here

    def update_room(self, outputs: int, inputs: int, experts: int, p: Settings) -> float:
        size = outputs * inputs
        return experts * size * 0.75 + 5.0 * size

    def update(self, deltas: list[Tensor], s: Settings) -> Tensor:
        vectors, masks = deltas[: len(s.weight)], deltas[len(s.weight) :]
        sizes = [float(vector.double().norm()) for vector in vectors]
        if not any(sizes):
            return torch.zeros_like(vectors[0])
        lengths = [s.lambda_ / size if size else 0.0 for size in sizes]
        slope = _Slope(vectors, lengths, _shared(vectors, s.subspace))
        descend = adam if s.optimizer == "adam" else sgd
        correction = descend(slope, torch.zeros_like(vectors[0]), s.iterations, s.learning_rate)
        pairs = zip(vectors, masks, strict=True)
        parts = ((vector + correction) * mask for vector, mask in pairs)
        return combination(parts, [w * own for w, own in zip(s.weight, lengths, strict=True)])


def _shared(vectors: list[Tensor], subspace: int) -> Tensor:
    """Orthonormal columns: outputs that the task vectors' top directions have in common."""
    side = min(vectors[0].shape)
    tops = torch.cat([svd(vector, side // len(vectors)).u for vector in vectors], 1)
    shared = svd(tops, side // subspace).u if tops.numel() else tops
    return shared.to(vectors[0].dtype)


class _Slope:
    """The loss's gradient at a correction, projected."""

    def __init__(self, vectors: list[Tensor], lengths: list[float], shared: Tensor) -> None:
        self._shared = shared
        self._rows = torch.stack(vectors, 1)
        self._all = sum(lengths)
        merged = combination(vectors, lengths)
        self._least = torch.stack([(v * (v - merged)).sum(1) for v in vectors], 1)[..., None]

    def __call__(self, correction: Tensor) -> Tensor:
        lacking = self._least - self._all * (self._rows @ correction[..., None])
        slope = (self._rows.mT @ lacking)[..., 0] * (-2 * self._all)
        return slope - self._shared @ (self._shared.mT @ slope)
