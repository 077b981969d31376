"""What enters and leaves each expert of a mixture whose experts share one packed module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.evidence.models._sites import Site, Tokens

if TYPE_CHECKING:
    from torch import Tensor, nn


def expert_rows(
    site: Site, module: Any, args: Any, tokens: Tokens, reads: str
) -> tuple[Tensor, Tensor]:
    """Inputs and outputs of one weight of one expert, for the real tokens sent to it.

    The packed module is called with (hidden states [tokens, width], chosen experts [tokens, k],
    weights). What lies between an expert's matrices is computed again.

    Returns:
        [tokens, input channels] and [tokens, output channels]; empty where not read.
    """
    hidden, chosen = args[0], args[1]
    hidden = hidden.reshape(-1, hidden.shape[-1])
    routed = (chosen.reshape(len(hidden), -1) == site.expert).any(dim=1)
    if tokens.mask is not None and tokens.mask.numel() == len(hidden):
        routed &= tokens.mask.flatten().to(routed.device)
    entering = hidden[routed].detach()
    nothing = entering[:0]
    if not len(entering) or (_enters(site) and reads == "inputs"):
        return entering, nothing
    with _weights(module), torch.no_grad():
        return _through(site, module, entering, reads, nothing)


def _enters(site: Site) -> bool:
    return not site.parameter.endswith("down_proj")


def _through(
    site: Site, module: Any, entering: Tensor, reads: str, nothing: Tensor
) -> tuple[Tensor, Tensor]:
    from torch.nn import functional

    expert = site.expert
    if _enters(site):
        first, last = site.rows or (0, None)
        weight = dict(module.named_parameters())[site.parameter.rpartition(".")[2]]
        leaving = functional.linear(entering, weight[expert, first:last])
        return (nothing if reads == "outputs" else entering), leaving
    inner = _inner(module, expert, entering)
    leaving = nothing if reads == "inputs" else functional.linear(inner, module.down_proj[expert])
    return (nothing if reads == "outputs" else inner), leaving


def _inner(module: Any, expert: int | None, entering: Tensor) -> Tensor:
    """What enters the expert's second matrix."""
    from torch.nn import functional

    if not hasattr(module, "gate_up_proj"):
        up: Tensor = module.act_fn(functional.linear(entering, module.up_proj[expert]))
        return up
    both = functional.linear(entering, module.gate_up_proj[expert])
    if hasattr(module, "_apply_gate"):
        gated: Tensor = module._apply_gate(both)
        return gated
    gate, other = both.chunk(2, dim=-1)
    acted: Tensor = module.act_fn(gate) * other
    return acted


@contextmanager
def _weights(module: nn.Module) -> Iterator[None]:
    """With the weights of an offloaded module in memory."""
    hook = getattr(module, "_hf_hook", None)
    if hook is None:
        yield
        return
    hook.pre_forward(module)
    try:
        yield
    finally:
        hook.post_forward(module, None)
