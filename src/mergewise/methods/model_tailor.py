"""Model Tailor: a few of an expert's changes, adjusted to do what all of them did."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.errors import MergewiseError
from mergewise.methods._base import Inputs, Method, Need
from mergewise.methods._params import Param, Settings
from mergewise.methods._quadratic import shrunk
from mergewise.methods._select import kept_count
from mergewise.methods._weights import combination

if TYPE_CHECKING:
    from torch import Tensor


class ModelTailor(Method):
    """Of each row of a weight, the few changes that matter most, made up for those left out.

    What matters is the size of a change and what the layer's outputs lose without it, if all
    others were free to make up for it (as in Optimal Brain Surgeon). The kept changes are then
    the least-squares fit, on the calibration inputs, to the outputs of all changes. Rows are
    solved one by one. Tensors that are not described (biases, norms, embeddings) keep the base's
    values, or get the whole task vector with `others: expert`.
    """

    name = "model_tailor"
    summary = "keeps the most telling tenth of each expert's changes, and makes up for the rest"
    advice = (
        "To keep an old ability when one expert is added to a base, by keeping few of its changes "
        "and making up for the rest. Not for several experts, whose changes are added up: in the "
        "lab five to eight did no better than the base. What is made up for can bring forgetting "
        "back; see its guide's measurements."
    )
    formula = (
        "b + sum_i w_i e_i; e_i = argmin |X_i (e - d_i)^T|^2 over e zero outside m_i, m_i = top of "
        "each row by s |d| / mean |d| + (1 - s) q / mean q, q = d^2 / [(X_i^T X_i)^-1]_jj"
    )
    source = "Model Tailor (Zhu et al. 2024, arXiv 2402.12048)"
    variant = (
        "idea. The authors' code (didizhu-zju/Model-Tailor e24dafe) differs: it scores by z-scores "
        "in blocks of 128 columns, takes the tuned weight's sensitivity instead of the change's, "
        "and adds SparseGPT's correction with the sign turned; ranking by rows and the exact fit "
        "are ours"
    )
    params = {
        "weight": Param(float, 1.0, "factor on this model's changes", per_model=True, native=True),
        "density": Param(
            float, 0.1, "share of each row's changes to keep", per_model=True, ge=0, le=1,
            native=True,
        ),
        "salience": Param(
            float, 0.5, "share of the changes' size in their score; the rest is sensitivity", ge=0,
            le=1, native=True,
        ),
        "compensate": Param(bool, True, "make up for what is left out", native=True),
        "ridge": Param(
            float, 0.01, "added to the Gram matrices' diagonal, as a share of its mean", gt=0,
            native=True,
        ),
        "others": Param(
            str, "base", "what tensors without evidence get", choices=("base", "expert"),
            native=True,
        ),
    }  # fmt: skip
    example = """
merge_method: model_tailor
base_model: base
models:
  - model: expert_a
    evidence: expert_a.gram.safetensors
"""
    solving = 6

    def needs(self, p: Settings) -> tuple[Need, ...]:
        others = "the base's values" if p.others == "base" else "the task vectors' weighted sum"
        return (Need("input_gram", "gram", "tokens", "matrix", otherwise=others),)

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        assert x.base is not None
        if not x.evidence:
            whole = combination(x.deltas, s.weight)
            return x.base + (whole if s.others == "expert" else torch.zeros_like(whole))
        parts = [
            tailored(delta, gram, density, s.salience, s.ridge, s.compensate)
            for delta, gram, density in zip(x.deltas, x.evidence[0], s.density, strict=True)
        ]
        return x.base + combination(parts, s.weight)


def tailored(
    delta: Tensor, gram: Tensor, density: float, salience: float, ridge: float, compensate: bool
) -> Tensor:
    """The part of a task vector that is kept, in its type.

    Args:
        delta: [out, in].
        gram: mean of x x^T over tokens, [in, in].
        density: share of each row to keep.
        salience: share of |delta| in the score.
        ridge: added to the diagonal, as a share of its mean.

    Raises:
        MergewiseError: if the Gram matrix is not positive definite.
    """
    count = kept_count(density, delta.shape[1])
    if count == 0 or count == delta.shape[1]:
        return delta if count else torch.zeros_like(delta)
    metric = shrunk(gram, slice(0, len(gram)), 1.0)
    level = float(metric.diagonal().mean())
    metric.diagonal().add_(ridge * level if level > 0 else 1.0)
    wide = delta.double()
    kept = _chosen(wide, _factor(metric, ridge), count, salience)
    out = torch.where(kept, wide, torch.zeros_like(wide))
    if compensate:
        _make_up(out, (wide - out) @ metric, kept, metric)
    return out.to(delta.dtype)


def _chosen(delta: Tensor, factor: Tensor, count: int, salience: float) -> Tensor:
    """Mask of the `count` highest scores of each row; of equal ones the first."""
    size = delta.abs()
    loss = delta.square() / torch.cholesky_inverse(factor).diagonal()
    score = salience * _relative(size) + (1 - salience) * _relative(loss)
    places = score.argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(delta, dtype=torch.bool).scatter_(1, places, value=True)


def _relative(values: Tensor) -> Tensor:
    """Over the row's mean; a row of zeros stays one."""
    mean = values.mean(1, keepdim=True)
    return values / torch.where(mean > 0, mean, torch.ones_like(mean))


def _make_up(out: Tensor, pull: Tensor, kept: Tensor, metric: Tensor) -> None:
    """Add to the kept elements what brings the outputs back; changes `out`.

    Row by row, so that a row does not depend on which others are in the block.
    """
    for row, mask, lost in zip(out, kept, pull, strict=True):
        [places] = torch.nonzero(mask, as_tuple=True)
        part = torch.linalg.cholesky(metric[places[:, None], places])
        row[places] += torch.cholesky_solve(lost[places, None], part)[:, 0]


def _factor(metric: Tensor, ridge: float) -> Tensor:
    factor, failed = torch.linalg.cholesky_ex(metric)
    if int(failed):
        raise MergewiseError(
            "the Gram matrix of the inputs is not positive definite; raise `ridge` (now "
            f"{ridge:g}), or calibrate on more data"
        )
    return factor
