"""Which attention heads and neurons a tensor belongs to, by its name."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergewise._lazy import torch
from mergewise.errors import EvidenceError

if TYPE_CHECKING:
    from torch import Tensor

_NAME = re.compile(r"(?P<layer>(?:.*\.)?(?:layers?|h)\.\d+)\.(?P<tail>.+)\.(?P<kind>weight|bias)")
_ROLES = {
    # BERT, RoBERTa; ViT as it is stored
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "heads",
    "attention.attention.query": "query",
    "attention.attention.key": "key",
    "attention.attention.value": "heads",
    "attention.output.dense": "heads_out",
    "attention.output.LayerNorm": "heads",
    "intermediate.dense": "neurons_in",
    "output.dense": "neurons_out",
    "output.LayerNorm": "neurons",
    "layernorm_before": "heads",
    "layernorm_after": "neurons",
    # ViT in memory
    "attention.q_proj": "query",
    "attention.k_proj": "key",
    "attention.v_proj": "heads",
    "attention.o_proj": "heads_out",
    "mlp.fc1": "neurons_in",
    "mlp.fc2": "neurons_out",
    # Llama
    "self_attn.q_proj": "query",
    "self_attn.k_proj": "key",
    "self_attn.v_proj": "heads",
    "self_attn.o_proj": "heads_out",
    "input_layernorm": "heads",
    "mlp.gate_proj": "neurons_in",
    "mlp.up_proj": "neurons_in",
    "mlp.down_proj": "neurons_out",
    "post_attention_layernorm": "neurons",
    # GPT-2
    "attn.c_attn": "joined",
    "attn.c_proj": "heads_out",
    "ln_1": "heads",
    "mlp.c_fc": "neurons_in",
    "mlp.c_proj": "neurons_out",
    "ln_2": "neurons",
}


@dataclass(frozen=True)
class Place:
    """A tensor of a layer.

    Attributes:
        layer: the names' common start.
        role: `query` and `key`, by heads; `joined`, both and the values; `neurons_in`, by
            neurons; `heads` or `neurons`, of all of them; the same with `_out`, what they enter.
        weight: a matrix, not a bias.
        turned: stored [inputs, outputs].
    """

    layer: str
    role: str
    weight: bool
    turned: bool


@functools.cache
def place_of(name: str) -> Place | None:
    """Where in a layer a tensor belongs; None for a name that is not known."""
    found = _NAME.fullmatch(name)
    role = _ROLES.get(found["tail"]) if found else None
    if found is None or role is None:
        return None
    turned = ".c_" in name
    return Place(found["layer"], role, found["kind"] == "weight", turned)


def spread_over(
    place: Place, shape: Sequence[int], found: Mapping[str, Tensor], kv_heads: int
) -> Tensor:
    """The numbers of heads and neurons as a tensor's: its shape, with 1 along repeated axes.

    Args:
        found: `heads` [heads] and `neurons` [neurons].

    Raises:
        EvidenceError: if the shape does not fit them.
    """
    if place.role.removesuffix("_out") in found:
        return found[place.role.removesuffix("_out")].mean().reshape((1,) * len(shape))
    side = shape[-1] if place.turned or not place.weight else shape[0]
    rows = _rows(place, side, found, kv_heads)
    if len(shape) == 1:
        return rows
    return rows[None, :] if place.turned else rows[:, None]


def _rows(place: Place, side: int, found: Mapping[str, Tensor], kv_heads: int) -> Tensor:
    heads = found["heads"]
    if place.role == "neurons_in":
        return _repeated(found["neurons"], side, place)
    if place.role == "query":
        return _repeated(heads, side, place)
    if place.role == "key":
        return _repeated(heads.reshape(kv_heads, -1).mean(1), side, place)
    each = _repeated(heads, side // 3, place)
    return torch.cat([each, each, heads.mean().expand(side - 2 * len(each))])


def _repeated(nodes: Tensor, side: int, place: Place) -> Tensor:
    times, rest = divmod(side, len(nodes))
    if rest or not times:
        raise EvidenceError(
            f"fisher_nodes: {place.layer} has {side} rows for {len(nodes)} heads or neurons; "
            "collect `fisher` in its place"
        )
    return nodes.repeat_interleave(times)
