"""Methods that look at weights as matrices: what they are for, and what becomes of the rest.

Papers of singular vectors treat the linear weights of layers and leave out vectors, embeddings
and heads, each in its own way. Here that is a policy of two parameters, which a recipe may
change: `tensors`, which kinds the method is for, and `otherwise`, what all others get.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from mergewise._lazy import torch
from mergewise.methods._base import Access, Inputs, Method
from mergewise.methods._params import Param, Settings
from mergewise.methods._weights import combination

if TYPE_CHECKING:
    from torch import Tensor

KINDS: Mapping[str, frozenset[str]] = {
    "none": frozenset(),
    "linear": frozenset(("matrix", "stack")),
    "matrices": frozenset(("matrix", "stack", "convolution")),
    "all": frozenset(("matrix", "stack", "convolution", "embedding")),
}
_HALF_A_UNIT = 2.0**-24
_REST = ("mean", "sum", "base")
NULL = Param(
    str,
    "skip",
    "directions in which the merged task vector is zero: left at zero, or raised like all others "
    "(code)",
    choices=("skip", "fill"),
    native=True,
)


def matrix_params(tensors: str, otherwise: str, scale: float = 1.0) -> dict[str, Param]:
    """The parameters that methods of matrices share, with a paper's policy as their defaults."""
    return {
        "weight": Param(float, 1.0, "factor on this model's task vector", per_model=True),
        "lambda": Param(float, scale, "factor on the merged task vector"),
        "tensors": Param(
            str, tensors, "what it is for: weights of linear layers, convolutions too (as "
            "matrices with a row for each output channel), or embeddings and heads as well; none, "
            "with a filter, leaves tensors to `otherwise`",
            choices=tuple(KINDS), native=True,
        ),
        "otherwise": otherwise_param(otherwise),
    }  # fmt: skip


def otherwise_param(default: str) -> Param:
    """What tensors get that a method is not for."""
    return Param(
        str,
        default,
        "the merged task vector of all other tensors: the experts' mean, their sum, or nothing "
        "(the base's values)",
        choices=_REST,
        native=True,
    )


class PlacedMethod(Method):
    """Base of methods that are told what they are given.

    The engine sets three values beside the parameters: `kind`, the tensor's (see
    `checkpoint.tensor_kind`), `turned`, whether it is stored [inputs, outputs], and `end`, whether
    it belongs to embeddings or an output head, as their norms and biases do.
    """

    def room(self, shape: Sequence[int], experts: int, p: Settings) -> float:
        """How many numbers of 8 bytes its functions hold at once beside a whole tensor's inputs.

        Half a number stands for one of float32. LAPACK's workspace counts.
        """
        return 2.0 * (experts + 1) * math.prod(shape)

    def elsewhere(self, p: Settings) -> str:
        """What becomes of a tensor that the method is not for, and why; empty if it is."""
        return ""


class MatrixMethod(PlacedMethod):
    """Base of methods that make one matrix from the experts' task vectors, taken as matrices.

    `update` sees [outputs, inputs] always.
    """

    base = "required"
    family = "subspaces"
    weighted: ClassVar[bool] = True
    """Whether `update` is given task vectors multiplied by their weights; else it sees to them."""

    def access(self, p: Settings) -> Access:
        return Access.WHOLE if inside(p) else Access.FLAT

    def elsewhere(self, p: Settings) -> str:
        return "" if inside(p) else told(p)

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        assert x.base is not None
        within = inside(s)
        parts = x.weighted(s.weight) if self.weighted or not within else x.deltas
        merged = self._updated(x.base, parts, s) if within else rest(parts, s.otherwise)
        return x.base + merged * self.factor(s)

    def room(self, shape: Sequence[int], experts: int, p: Settings) -> float:
        count, outputs, inputs = matrix_shape(shape, p)
        elements = math.prod(shape)
        results = elements / 2 if count > 1 else 0.0
        taken = results + self.update_room(outputs, inputs, experts, p)
        return experts * elements / 2 + max(taken, 1.5 * elements)

    def update_room(self, outputs: int, inputs: int, experts: int, p: Settings) -> float:
        """As `room`: what `update` holds beside the task vectors, its result included."""
        size, longer = outputs * inputs, max(outputs, inputs)
        return (experts + 4.0) * size + 5.0 * longer * longer

    def factor(self, s: Settings) -> Any:
        """What the merged task vector is multiplied by."""
        return s.lambda_

    def _updated(self, base: Tensor, parts: Sequence[Tensor], s: Settings) -> Tensor:
        return by_matrix([base, *parts], s, lambda each: self._of(each[0], each[1:], s))

    def _of(self, base: Tensor, matrices: list[Tensor], s: Settings) -> Tensor:
        """One matrix; zero where no expert changed anything, NaN where not all is finite."""
        if not all(bool(matrix.isfinite().all()) for matrix in matrices):
            return torch.full_like(matrices[0], math.nan)  # LAPACK may not come back from NaN
        if not any(bool(matrix.any()) for matrix in matrices):
            return torch.zeros_like(matrices[0])
        weights = s.weight if self.weighted else [1.0] * len(s.weight)
        told = Settings({**vars(s), "rounding": rounding(base, weights)})
        return self.update(matrices, told).to(matrices[0].dtype)

    @abstractmethod
    def update(self, deltas: list[Tensor], s: Settings) -> Tensor:
        """The merged task vector [outputs, inputs] of weighted ones; some are not zero.

        ``s.rounding`` says below what singular values of what it is given are rounding; see
        `rounding`.
        """


def by_matrix(
    tensors: Sequence[Tensor], s: Settings, merge: Callable[[list[Tensor]], Tensor]
) -> Tensor:
    """What `merge` makes of tensors seen as matrices (`as_matrices`), in their own shape."""
    stack = [as_matrices(tensor, s) for tensor in tensors]
    if not stack[0].numel():
        return torch.zeros_like(tensors[0])
    each = [merge(list(matrices)) for matrices in zip(*stack, strict=True)]
    return as_stored(torch.stack(each), tensors[0].shape, s)


def rounding(base: Tensor, weights: Sequence[float]) -> float:
    """How large singular values can be that weighted task vectors, or their sum, have by rounding.

    An expert's weights, those of an adapter's too, are rounded to float32, each on its own, and
    the base is subtracted. A matrix of such errors stretches nothing more than its longest row and
    its longest column together. Changes of low rank are zero in all other directions but for that.
    """
    if not base.numel():
        return 0.0
    longest = sum(float(base.norm(dim=dim).max()) for dim in (0, 1))
    return _HALF_A_UNIT * longest * math.sqrt(sum(weight * weight for weight in weights))


def inside(p: Settings) -> bool:
    """Whether a tensor is of a kind that the method is for."""
    return p.kind in KINDS[p.tensors]


def told(p: Settings) -> str:
    """That a tensor is left to `otherwise`, for the plan."""
    how = {"mean": "the mean of task vectors", "sum": "the sum of task vectors"}
    return f"{p.kind}, not among `tensors: {p.tensors}`: {how.get(p.otherwise, 'as the base')}"


def as_matrices(tensor: Tensor, s: Settings) -> Tensor:
    """A tensor as [count, outputs, inputs], whatever its kind and however it is stored."""
    count, outputs, inputs = matrix_shape(tensor.shape, s)
    if s.turned:
        return tensor.reshape(count, inputs, outputs).mT
    return tensor.reshape(count, outputs, inputs)


def matrix_shape(shape: Sequence[int], p: Settings) -> tuple[int, int, int]:
    """Count, outputs and inputs of a tensor's matrices."""
    whole = tuple(shape) or (1,)
    count, rows = whole[:2] if p.kind == "stack" else (1, whole[0])
    columns = math.prod(whole[1 + (p.kind == "stack") :])
    return (count, columns, rows) if p.turned else (count, rows, columns)


def as_stored(matrices: Tensor, shape: Sequence[int], s: Settings) -> Tensor:
    """The inverse of `as_matrices`."""
    return (matrices.mT if s.turned else matrices).reshape(tuple(shape))


def rest(parts: Sequence[Tensor], how: str) -> Tensor:
    """The merged task vector of a tensor left to `otherwise`."""
    factor = {"mean": 1.0 / len(parts), "sum": 1.0, "base": 0.0}[how]
    return combination(parts, [factor] * len(parts))


def placed(
    method: Method, values: Mapping[str, Any], kind: str, turned: bool = False, end: bool = False
) -> dict[str, Any]:
    """A tensor's parameters, with what a `PlacedMethod` is told of the tensor."""
    if not isinstance(method, PlacedMethod):
        return dict(values)
    return {**values, "kind": kind, "turned": turned, "end": end}
