"""Rotate one model's weights towards another's (orthogonal Procrustes)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.methods._base import Access, Inputs
from mergewise.methods._matrix import PlacedMethod, by_matrix, matrix_shape
from mergewise.methods._params import Param, Settings

if TYPE_CHECKING:
    from torch import Tensor

_ROUNDING = 1e-12


def _turned_wholly(a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """``lerp(a, b Q^T, alpha) Q`` for the orthogonal Q with ``a Q`` nearest to `b`.

    By QR only as large a matrix is decomposed as the smaller side: what Q does to directions
    that neither `a` nor `b` knows does not matter. Changes `a`.
    """
    basis = None
    if a.shape[0] < a.shape[1]:
        a = torch.linalg.qr(a.mT, mode="r").R.mT
        basis, b = torch.linalg.qr(b.mT)
        b = b.mT
    u, _, vh = torch.linalg.svd(a.mT @ b)
    q = u @ vh
    if alpha:
        a.lerp_(b @ q.mT, alpha)
    out = a @ q
    return out if basis is None else out @ basis.mT


def _rotation(a: Tensor, b: Tensor) -> Tensor:
    """The rotation that takes `a` nearest to `b`, reflections excluded.

    Directions of which the two say nothing are turned as little as can be.
    """
    u, s, vh = torch.linalg.svd(a.mT @ b)
    known = int((s > _ROUNDING * s[0]).sum())
    x, _, y = torch.linalg.svd(u[:, known:].mT @ vh[known:].mT)
    q = u[:, :known] @ vh[:known] + u[:, known:] @ x @ y @ vh[known:]
    if torch.linalg.slogdet(q).sign > 0:
        return q
    free = known < len(q)
    left = u[:, known:] @ x[:, -1:] if free else u[:, -1:]
    right = y[-1:] @ vh[known:] if free else vh[-1:]
    return q - 2 * left @ right


def power(q: Tensor, t: float) -> Tensor:
    """A rotation by `t` times its angles, within half a turn; ``power(q, 1)`` is q.

    ``cos(t A) + K sin(t A) / sin(A)`` with the angles A from the symmetric part of q and its
    antisymmetric part K, which commute. Half turns have no plane of their own: eigenvectors are
    paired as they come.
    """
    turning = (q - q.mT) / 2
    cosine, e = torch.linalg.eigh((q + q.mT) / 2)
    sine = (turning @ e).norm(dim=0)
    angle = torch.atan2(sine, cosine)
    half = (sine < 1e-8) & (cosine < 0)
    plain = sine < 1e-8
    ratio = torch.where(plain, t, torch.sin(t * angle) / torch.where(plain, 1.0, sine))
    ratio = torch.where(half, 0.0, ratio)
    out = (e * torch.cos(t * angle)) @ e.mT + turning @ (e * ratio) @ e.mT
    planes = e[:, half]
    pairs = planes.shape[1] // 2
    flat = planes[:, :pairs] @ planes[:, pairs : 2 * pairs].mT
    return out + math.sin(math.pi * t) * (flat.mT - flat)


def _turned_partly(a: Tensor, b: Tensor, alignment: float, alpha: float) -> Tensor:
    rows, columns = a.shape
    basis = None
    if 2 * rows < columns:
        basis = torch.linalg.qr(torch.cat([a, b]).mT).Q
        a, b = a @ basis, b @ basis
    q = _rotation(a, b)
    out = torch.lerp(a, b @ q.mT, alpha) @ power(q, alignment)
    return out if basis is None else out @ basis.mT


def rotated(base: Tensor, expert: Tensor, s: Settings) -> Tensor:
    """One matrix, [rows, columns], turned among its columns. Changes its arguments."""
    centre = float(s.center)
    means = [m.mean(0, keepdim=True) * centre for m in (base, expert)]
    a, b = base.sub_(means[0]), expert.sub_(means[1])
    if s.alignment == 1:
        out = _turned_wholly(a, b, s.alpha)
    else:
        out = _turned_partly(a, b, s.alignment, s.alpha)
    return out.add_(torch.lerp(means[0], means[1], s.alignment))


def _is_kernel(shape: Sequence[int], p: Settings) -> bool:
    return p.kind == "convolution" and len(shape) == 4 and math.prod(shape[2:]) > 1


def _turning_room(rows: int, columns: int, alignment: float) -> float:
    """How many numbers of float64 `rotated` holds at once."""
    size, side = rows * columns, min(rows, columns)
    if alignment == 1:
        if rows < columns:
            return max(3.0 * size + 10.0 * side**2, 4.2 * size + 5.0 * side**2)
        return max(2.0 * size + 8.0 * side**2, 3.5 * size + side**2)
    if 2 * rows < columns:
        return max(4.1 * size + 36.0 * rows**2, 5.8 * size + 16.0 * rows**2)
    return max(3.0 * size + 7.0 * columns**2, 4.0 * size + 2.0 * columns**2)


class Rotate(PlacedMethod):
    """Turns the base's rows as one body, by the rotation that brings them nearest to the expert's.

    `alignment` 0 and `alpha` 0 give the base, 1 and 1 the expert. `alignment` between turns part
    of the way, along the shortest path and without reflections; `alpha` mixes in what no rotation
    can give. A matrix is seen as [outputs, inputs], a convolution's kernels as [channels, kernel],
    as sd-mecha does. Vectors are interpolated by alpha.

    At `alignment` 1 the largest decomposition is of the smaller side. Between, it is of the
    inputs, or of twice the outputs if that is less: slow for large matrices, and exact.
    """

    name = "rotate"
    summary = "turns one model's weights towards another's, by orthogonal Procrustes"
    advice = (
        "To turn one model's weights towards another's before or instead of mixing them, as "
        "the diffusion community does. No account is taken of the layers around a weight, so "
        "nothing says that the network computes the same."
    )
    family = "arithmetic"
    experts = (1, 1)
    formula = "lerp(A, B Q^T, alpha) Q^alignment + mean, Q = argmin |A Q - B|, A and B centred"
    source = "sd-mecha (ljleb), rotate; orthogonal Procrustes (Schoenemann 1966)"
    variant = (
        "sd-mecha 1.1.5; for wide matrices and alignment between 0 and 1 it follows a geodesic of "
        "the Stiefel manifold, here all inputs are turned, those unknown as little as can be"
    )
    symmetric = False
    params = {
        "alignment": Param(
            float, 1.0, "how far to turn: 0 not at all, 1 to the nearest", ge=0, le=1, native=True
        ),
        "alpha": Param(float, 0.0, "share of the expert's turned-back weights", native=True),
        "center": Param(bool, True, "turn rows about their mean", native=True),
    }
    example = """
merge_method: rotate
base_model: base
models:
  - model: expert_a
parameters: {alignment: 1.0, alpha: 0.0}
"""

    def access(self, p: Settings) -> Access:
        return Access.FLAT if p.kind == "vector" else Access.WHOLE

    def elsewhere(self, p: Settings) -> str:
        return "" if p.kind != "vector" else "vector, not turned: interpolated by `alpha`"

    def room(self, shape: Sequence[int], experts: int, p: Settings) -> float:
        count, rows, columns = matrix_shape(shape, p)
        if _is_kernel(shape, p):
            columns = math.prod(shape[2:])
            rows = math.prod(shape) // columns
        elements = math.prod(shape)
        # the task vector, and the results of more than one
        held = elements * (0.5 if count == 1 else 1.0)
        return held + max(_turning_room(rows, columns, p.alignment), elements / 2)

    def combine(self, x: Inputs, s: Settings) -> Tensor:
        assert x.base is not None
        [delta] = x.deltas
        if s.kind == "vector" or delta.dim() < 2:
            return x.base + delta * s.alpha
        if s.alignment == 0 and s.alpha == 0:
            return x.base.clone()
        pair = [x.base, x.experts[0]]
        if _is_kernel(delta.shape, s):
            pair = [m.reshape(-1, delta[0, 0].numel()) for m in pair]

        def one(matrices: list[Tensor]) -> Tensor:
            a, b = (m.to(torch.float64, copy=True) for m in matrices)
            if not bool(a.isfinite().all() and b.isfinite().all()):
                return torch.full_like(matrices[0], math.nan)
            return rotated(a, b, s).to(delta.dtype)

        return by_matrix(pair, s, one).reshape(delta.shape)
