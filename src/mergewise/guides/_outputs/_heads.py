"""Attention heads: which rows and columns of a block's tensors are whose, found by trying it out.

Names and layouts differ (separate or joined projections, joined by head or one behind the other,
stored either way round), so a layout is supposed, one head's rows are changed, and where only that
head's part of what enters the output projection changes with them, the layout is right. Heads that
share keys and values are one group; a group is what has a weight of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mergewise.evidence.models import Site

Weights = Mapping[str, "Tensor"]
Inner = Callable[[Weights], "Tensor"]
"""What enters the output projection, [tokens, channels], with some weights of the block."""

_ATTENTION = re.compile(r"att", re.I)
_COUNTS = (
    "num_key_value_heads", "num_kv_heads", "n_kv_heads", "kv_heads", "num_attention_heads",
    "num_heads", "n_heads", "n_head", "encoder_attention_heads", "decoder_attention_heads",
)  # fmt: skip
_SPILLED = 1e-4
"""Of the change within a group; more outside of it is no rounding."""


@dataclass(frozen=True, eq=False)
class Heads:
    """A block's groups of heads.

    Attributes:
        count: of groups, at least 2.
        out: the module that joins them, by its name in the block.
        places: by parameter of the block: an axis, and the group of every index along it.
    """

    count: int
    out: str
    places: Mapping[str, tuple[int, Tensor]]


def attends(path: str, module: nn.Module) -> bool:
    """Whether a block is an attention, by its name or its class's."""
    return bool(_ATTENTION.search(path.rpartition(".")[2] + type(module).__name__))


def output_of(
    module: nn.Module, sites: Mapping[str, Site], run: Callable[[], Any]
) -> tuple[str, Site] | None:
    """The last matrix that a block uses, with its name in the block; None if it uses one or none.

    Args:
        sites: of the matrices in the block, by their modules' names in it.
        run: runs the block.
    """
    called: list[str] = []
    handles = [
        module.get_submodule(name).register_forward_pre_hook(
            lambda _m, _a, name=name: called.append(name)
        )
        for name in sites
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    if len(set(called)) < 2:
        return None
    return called[-1], sites[called[-1]]


def inner(module: nn.Module, out: str, weights: Weights, args: Any, kwargs: Any) -> Tensor:
    """What enters the output projection of a block that runs with these weights."""
    held: list[Tensor] = []

    def keep(_module: nn.Module, given: tuple[Tensor, ...]) -> None:
        held.append(given[0].detach())

    handle = module.get_submodule(out).register_forward_pre_hook(keep)
    try:
        torch.func.functional_call(module, dict(weights), args, kwargs)
    finally:
        handle.remove()
    return held[-1]


def find_heads(
    module: nn.Module, sites: Mapping[str, Site], out: str, weights: Weights, run: Inner
) -> Heads | None:
    """The groups of a block, as many as there are; None if it has fewer than two.

    Args:
        sites: of the matrices in the block, by their modules' names in it.
        out: the output projection, one of them.
        weights: of the block, by parameter.
    """
    plain = run(weights)
    found: list[tuple[int, Heads]] = []
    for count in _counts(module, plain.shape[-1]):
        places = dict(_placed(sites, out, count, weights, run, plain))
        size = sum(weights[name].numel() for name in places)
        if places:
            found.append((size, Heads(count, out, places | _out_place(sites[out], out, count))))
    # the finest of those that divide most of the block
    size, best = max(found, key=lambda one: (one[0], one[1].count), default=(0, None))
    return best if best is not None and best.count > 1 else None


def _counts(module: nn.Module, width: int) -> list[int]:
    """Numbers of heads that the block or its config speaks of."""
    said: set[Any] = set()
    for child in module.modules():
        owners = [child, getattr(child, "config", None)]
        said |= {getattr(owner, name, None) for owner in owners for name in _COUNTS}
    return sorted(n for n in said if type(n) is int and n >= 1 and width % n == 0)


def _placed(
    sites: Mapping[str, Site], out: str, count: int, weights: Weights, run: Inner, plain: Tensor
) -> Iterator[tuple[str, tuple[int, Tensor]]]:
    for name, site in sites.items():
        weight = f"{name}.weight"
        if name == out or weight not in weights:
            continue
        axis = int(site.kind == "conv1d_transposed")
        for groups in _layouts(weights[weight].shape[axis], plain.shape[-1], count):
            if _alone(weight, axis, groups, count, weights, run, plain):
                yield weight, (axis, groups)
                if f"{name}.bias" in weights:
                    yield f"{name}.bias", (0, groups)
                break


def _layouts(rows: int, width: int, count: int) -> Iterator[Tensor]:
    """By group, one behind the other; or queries, keys and values, each of them by group."""
    if rows % count == 0:
        yield torch.arange(rows) // (rows // count)
    shared, odd = divmod(rows - width, 2)
    if shared > 0 and not odd and shared % count == 0:
        parts = (width, shared, shared)
        yield torch.cat([torch.arange(part) // (part // count) for part in parts])


def _alone(
    name: str,
    axis: int,
    groups: Tensor,
    count: int,
    weights: Weights,
    run: Inner,
    plain: Tensor,
) -> bool:
    """Whether the rows of a group change that group's channels alone: of the first, of the last."""
    weight = weights[name]
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).to(weight)
    noise *= float(weight.square().mean().sqrt()) or 1.0
    for group in {0, count - 1}:
        chosen = (groups == group).to(weight.device)
        chosen = chosen[:, None] if axis == 0 else chosen[None, :]
        other = torch.where(chosen, weight + noise, weight)
        change = (run({**weights, name: other}) - plain).abs()
        by_group = change.reshape(-1, count, plain.shape[-1] // count).amax(dim=(0, 2))
        within = float(by_group[group])
        by_group[group] = 0
        if float(by_group.max()) > _SPILLED * within:
            return False
    return True


def _out_place(site: Site, out: str, count: int) -> dict[str, tuple[int, Tensor]]:
    turned = site.kind == "conv1d_transposed"
    width = site.channels[0]
    return {f"{out}.weight": (0 if turned else 1, torch.arange(width) // (width // count))}
