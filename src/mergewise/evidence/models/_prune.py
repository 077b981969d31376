"""Wanda pruning in place: in every row the weights that matter least on the inputs become zero."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergewise._lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from mergewise.evidence.models._sites import Site

PRUNED_KINDS = ("linear", "conv", "conv1d_transposed", "expert")
"""Routers, embeddings and norms stay as they are."""


def prune(site: Site, squares: Tensor, sparsity: float) -> None:
    """Zero ``int(inputs * sparsity)`` weights of every output: those of least ``|W_oj| sqrt(s_j)``.

    The criterion of Wanda (Sun et al. 2023, arXiv 2306.11695), as LEWIS's reference applies it
    (Chopra et al. 2025, arXiv 2503.03874). Of equal ones the first go. Each group of a grouped
    convolution sees its own inputs.

    Args:
        squares: s, up to a factor: sums of squares of the inputs [inputs].
    """
    weight = weight_of(site)
    rows = weight.T if site.kind == "conv1d_transposed" else weight.flatten(1)
    width = rows.shape[1]
    groups = len(squares) // width
    driven = squares.to(rows.device, torch.float32).sqrt().view(groups, 1, width)
    metric = (rows.float().abs().view(groups, -1, width) * driven).view(rows.shape)
    count = int(width * sparsity)
    if count:
        rows.scatter_(1, _least(metric, count), 0.0)


def _least(metric: Tensor, count: int) -> Tensor:
    """Where the least of every row are [rows, count]; five times as fast as sorting all."""
    found = metric.topk(count, dim=1, largest=False, sorted=False)
    tied = (metric <= found.values.amax(dim=1, keepdim=True)).sum(1) > count
    if bool(tied.any()):
        ordered = metric[tied].sort(dim=1, stable=True).indices
        found.indices[tied] = ordered[:, :count]
    return found.indices


def weight_of(site: Site) -> Tensor:
    """A site's weight in memory; writing to it changes the module."""
    weight = site.module._parameters[site.parameter.rpartition(".")[2]]
    assert weight is not None
    value = weight.detach()
    if site.kind == "expert":
        assert site.expert is not None and site.rows is not None
        return value[site.expert, slice(*site.rows)]
    return value
