"""LoRA-LEGO: the rank-one units of several LoRAs, clustered; one unit for each cluster.

Merging LoRAs like Playing LEGO (Zhao et al. 2024, arXiv 2409.16167). A unit is a row of A with the
column of B that belongs to it. All adapters' units are clustered by k-means, and the merged LoRA of
rank k holds the centroids.

The paper then scales twice. Here a centroid gets the mean norm of its cluster's units, which
averaging has shrunk (`parameter`), and the change is multiplied by ``sqrt(r / k)``, r the mean rank
of the adapters, against the spread that more ranks add (`output`). The authors' code is not public,
and of the paper the abstract and its reviews alone could be read, which say this in words. Another
paper's code (wonyoung01/nsc_merging 412098b) has the same two factors, but takes the largest
element for the norm, and clusters units whose parts from A and from B have length 1 each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from mergewise._lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

Reweight = Literal["both", "parameter", "output", "none"]
REWEIGHT = ("both", "parameter", "output", "none")
_STARTS, _STEPS = 10, 100


def merged_units(
    pairs: Sequence[tuple[Tensor, Tensor]], rank: int, reweight: Reweight, seed: int
) -> tuple[Tensor, Tensor]:
    """B ``[outputs, k]`` and A ``[k, inputs]`` of the clustered units.

    Neither the adapters' order nor that of their ranks matters, and equal units fall together.
    With as many clusters as units, and no reweighting, B @ A is the adapters' sum.

    Args:
        pairs: each adapter's B ``[outputs, r]`` and A ``[r, inputs]``, scales in B.
        rank: k, at most; fewer if there are fewer units.
    """
    units = torch.cat([torch.cat([a, b.mT], 1) for b, a in pairs]).double()
    units = units[units.norm(dim=1) > 0]
    kind, inputs = pairs[0][1].dtype, pairs[0][1].shape[1]
    count = min(rank, len(units))
    if not count:
        return pairs[0][0][:, :0], pairs[0][1][:0]
    units = units[_order(units)]
    found = units if count == len(units) else _centroids(units, count, reweight, seed)
    if reweight in ("both", "output"):
        mean = sum(len(a) for _, a in pairs) / len(pairs)
        found = torch.cat([found[:, :inputs], found[:, inputs:] * (mean / count) ** 0.5], 1)
    return found[:, inputs:].mT.to(kind).contiguous(), found[:, :inputs].to(kind).contiguous()


def _order(units: Tensor) -> Tensor:
    """By norm: an order that does not depend on how the units were given."""
    order: Tensor = units.norm(dim=1).argsort(descending=True, stable=True)
    return order


def _centroids(units: Tensor, count: int, reweight: Reweight, seed: int) -> Tensor:
    labels = clustered(units, count, seed)
    one = torch.nn.functional.one_hot(labels, count).to(units.dtype)
    sizes = one.sum(0).clamp(min=1)[:, None]
    means = (one.mT @ units) / sizes
    if reweight in ("both", "parameter"):
        wanted = (one.mT @ units.norm(dim=1, keepdim=True)) / sizes
        shrunk = means.norm(dim=1, keepdim=True)
        means = torch.where(shrunk > 0, means * wanted / shrunk.clamp(min=1e-300), means)
    return means[one.any(0)]


def clustered(units: Tensor, count: int, seed: int) -> Tensor:
    """Labels of k-means: the best of ten runs from k-means++ starts, all drawn from `seed`."""
    draw = torch.Generator().manual_seed(seed)
    gram = units @ units.mT  # everything k-means asks of the units, however long they are
    runs = [_run(gram, count, draw) for _ in range(_STARTS)]
    return min(runs, key=lambda run: run[0])[1]


def _run(gram: Tensor, count: int, draw: torch.Generator) -> tuple[float, Tensor]:
    """The summed squared distances and the labels of one run."""
    apart = _far(gram, _starts(gram, count, draw))
    labels = apart.argmin(1)
    for _ in range(_STEPS):
        apart = _far(gram, _shares(labels, apart, count))
        after = apart.argmin(1)
        if torch.equal(after, labels):
            break
        labels = after
    return float(apart.gather(1, labels[:, None]).sum()), labels


def _far(gram: Tensor, shares: Tensor) -> Tensor:
    """Squared distances [units, clusters] to points given as mixtures [units, clusters]."""
    cross = gram @ shares
    own = (shares * cross).sum(0)
    return (gram.diagonal()[:, None] - 2 * cross + own).clamp(min=0)


def _shares(labels: Tensor, apart: Tensor, count: int) -> Tensor:
    """Each cluster's mean as a mixture of units; an empty one moves to the farthest unit."""
    one = torch.nn.functional.one_hot(labels, count).to(apart.dtype)
    left = apart.gather(1, labels[:, None])[:, 0].clone()
    for empty in (one.sum(0) == 0).nonzero().flatten().tolist():
        farthest = int(left.argmax())
        one[farthest, empty] = 1.0
        left[farthest] = -1.0
    return one / one.sum(0)


def _starts(gram: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """k-means++ (Arthur and Vassilvitskii 2007): far units are likelier to be the next start."""
    size = len(gram)
    chosen = [int(torch.randint(size, (1,), generator=draw))]
    squares = gram.diagonal()
    nearest = torch.full((size,), torch.inf, dtype=gram.dtype)
    while len(chosen) < count:
        last = chosen[-1]
        # rounding of squares must not tell equal units apart
        apart = squares - 2 * gram[:, last] + squares[last]
        apart = torch.where(apart > 1e-12 * (squares + squares[last]), apart, torch.zeros(()))
        nearest = torch.minimum(nearest, apart.to(gram.dtype))
        odds = nearest if bool((nearest > 0).any()) else torch.ones_like(nearest)
        chosen.append(int(torch.multinomial(odds / odds.sum(), 1, generator=draw)))
    return torch.nn.functional.one_hot(torch.tensor(chosen), size).mT.to(gram.dtype)
