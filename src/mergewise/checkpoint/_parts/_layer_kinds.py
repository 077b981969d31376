"""Which kind each layer is (sliding or full attention, dense or experts), as configs say it.

Some configs list the kinds (``layer_types``); those lists are put together anew when layers are
moved. Others give a rule for layer i: a period, an offset, a first layer. Here such a rule is
read, compared with what moved layers are, and rewritten where the config has a way to say it.
The rules are those of the configuration classes of transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from mergewise.errors import CheckpointError

Part = dict[str, Any]
Kinds = list[Hashable]


@dataclass(frozen=True)
class Rule:
    """A way to say which layer is what.

    Attributes:
        keys: of the config, for messages.
        kinds: the kinds of the layers of a model with so many; None if the config is silent.
        rewrite: change the config so that the layers are of these kinds; False if it cannot.
    """

    keys: str
    kinds: Callable[[Part, int], Kinds | None]
    rewrite: Callable[[Part, Kinds], bool]


def _number(part: Part, *keys: str) -> int | None:
    for key in keys:
        value = part.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _never(part: Part, kinds: Kinds) -> bool:
    return False


_SLIDING_BY_DEFAULT = {"gemma2": 2, "gemma3_text": 6, "cohere2": 4, "gemma3n_text": 5}


def _attention(part: Part, count: int) -> Kinds | None:
    """Attention kinds where ``layer_types`` is not given."""
    if isinstance(part.get("layer_types"), list):
        return None
    period = _number(part, "sliding_window_pattern", "_sliding_window_pattern")
    period = period or _SLIDING_BY_DEFAULT.get(str(part.get("model_type")))
    if period:
        return [_one_of((i + 1) % period == 0, "full", "sliding") for i in range(count)]
    if period := _number(part, "full_attention_interval"):
        return [_one_of((i + 1) % period == 0, "full", "linear") for i in range(count)]
    if period := _number(part, "global_attn_every_n_layers"):
        return [_one_of(i % period == 0, "full", "sliding") for i in range(count)]
    last = _number(part, "max_window_layers")
    if last is not None and part.get("use_sliding_window"):
        return [_one_of(i < last, "full", "sliding") for i in range(count)]
    return None


def _one_of(first: bool, one: str, other: str) -> str:
    return f"{one if first else other}_attention"


def _write_attention(part: Part, kinds: Kinds) -> bool:
    part["layer_types"] = list(kinds)
    return True


def _first_dense(part: Part, count: int) -> Kinds | None:
    first = _number(part, "first_k_dense_replace")
    return None if first is None else ["dense" if i < first else "experts" for i in range(count)]


def _write_first_dense(part: Part, kinds: Kinds) -> bool:
    dense = kinds.count("dense")
    part["first_k_dense_replace"] = dense
    return kinds == ["dense"] * dense + ["experts"] * (len(kinds) - dense)


def _sparse_step(part: Part, count: int) -> Kinds | None:
    step = _number(part, "decoder_sparse_step")
    if step is None or step <= 1:
        return None
    dense = part.get("mlp_only_layers") or []
    return ["experts" if i not in dense and (i + 1) % step == 0 else "dense" for i in range(count)]


def _write_sparse_step(part: Part, kinds: Kinds) -> bool:
    part["decoder_sparse_step"] = 1
    part["mlp_only_layers"] = [i for i, kind in enumerate(kinds) if kind == "dense"]
    return True


def _interleaved(part: Part, count: int) -> Kinds | None:
    step = _number(part, "interleave_moe_layer_step")
    if not step or isinstance(part.get("moe_layers"), list):
        return None
    return ["experts" if (i + 1) % step == 0 else "dense" for i in range(count)]


def _write_interleaved(part: Part, kinds: Kinds) -> bool:
    part["moe_layers"] = [i for i, kind in enumerate(kinds) if kind == "experts"]
    return True


def _positions(part: Part, count: int) -> Kinds | None:
    step = _number(part, "no_rope_layer_interval")
    if not step or (isinstance(part.get("no_rope_layers"), list) and part["no_rope_layers"]):
        return None
    return [int((i + 1) % step != 0) for i in range(count)]


def _write_positions(part: Part, kinds: Kinds) -> bool:
    part["no_rope_layers"] = list(kinds)
    return True


def _periodic(period: str, offset: str) -> Callable[[Part, int], Kinds | None]:
    def kinds(part: Part, count: int) -> Kinds | None:
        step, start = _number(part, period), _number(part, offset)
        if not step or start is None:
            return None
        return [f"{period} {i % step == start % step}" for i in range(count)]

    return kinds


def _last_shared(part: Part, count: int) -> Kinds | None:
    shared = _number(part, "num_kv_shared_layers")
    return ["shared" if i >= count - shared else "own" for i in range(count)] if shared else None


def _cycle(part: Part, count: int) -> Kinds | None:
    kinds = part.get("block_types")
    if not isinstance(kinds, list) or not kinds:
        return None
    return [kinds[i % len(kinds)] for i in range(count)]


def _write_cycle(part: Part, kinds: Kinds) -> bool:
    part["block_types"] = list(kinds)
    return True


def named_types(part: Part, count: int) -> Kinds | None:
    """GPT-Neo's ``[[["global", "local"], 12]]``; None if it does not describe `count` layers."""
    found: Kinds = []
    for pair in part.get("attention_types") or []:
        match pair:
            case [[*names], int(times)] if len(names) * times <= count:
                found += [str(name) for name in names] * times
            case _:
                return None
    return found if found and len(found) == count else None


def _write_named_types(part: Part, kinds: Kinds) -> bool:
    part["attention_types"] = [[list(kinds), 1]]
    return True


RULES = (
    Rule("attention_types", named_types, _write_named_types),
    Rule("block_types", _cycle, _write_cycle),
    Rule("layer_types", _attention, _write_attention),
    Rule("first_k_dense_replace", _first_dense, _write_first_dense),
    Rule("decoder_sparse_step", _sparse_step, _write_sparse_step),
    Rule("interleave_moe_layer_step", _interleaved, _write_interleaved),
    Rule("no_rope_layer_interval", _positions, _write_positions),
    Rule("attn_layer_period", _periodic("attn_layer_period", "attn_layer_offset"), _never),
    Rule("expert_layer_period", _periodic("expert_layer_period", "expert_layer_offset"), _never),
    Rule("num_kv_shared_layers", _last_shared, _never),
)


def ruled_kinds(part: Part, count: int) -> Kinds:
    """For each layer, what the config's rules say it is; equal for layers of one kind."""
    found = [kinds for rule in RULES if (kinds := rule.kinds(part, count))]
    return list(zip(*found, strict=True)) if found else [()] * count


def attention_kind(part: Part, index: int, count: int) -> Hashable:
    """What goes into ``layer_types`` for a layer of a config without; None if that is unclear."""
    kinds = _attention(part, count)
    if kinds is None and not isinstance(part.get("sliding_window"), int):
        return "full_attention"
    return kinds[index] if kinds else None


def keep_kinds(part: Part, rows: Sequence[tuple[Part, int, int]]) -> None:
    """Make `part` say that its layer i is of the kind of layer ``rows[i][1]`` of another config.

    Args:
        part: the config to change; its lists of layers are in order already.
        rows: for each layer, a config, the layer in it, and how many it has.

    Raises:
        CheckpointError: if the config cannot say so; nothing of `part` is of use then.
    """
    for rule in RULES:
        known = [rule.kinds(source, count) for source, _, count in rows]
        if not any(known):
            continue
        wanted = [
            kinds[index] if kinds else _listed(source, rule.keys, index)
            for kinds, (source, index, _) in zip(known, rows, strict=True)
        ]
        have = rule.kinds(part, len(rows)) or part.get(rule.keys)
        if have != wanted and not rule.rewrite(part, wanted):
            _refuse(rule, have or wanted, wanted, rows)


def _listed(source: Part, key: str, index: int) -> Hashable:
    listed = source.get(key)
    found: Hashable = listed[index] if isinstance(listed, list) and index < len(listed) else None
    return found


def _refuse(rule: Rule, have: Kinds, wanted: Kinds, rows: Sequence[tuple[Part, int, int]]) -> None:
    i = next((i for i, (a, b) in enumerate(zip(have, wanted, strict=True)) if a != b), 0)
    raise CheckpointError(
        f"the config's {rule.keys} decides by its place what a layer is, and layer {rows[i][1]} "
        f"is of another kind than layer {i}, where it would go; choose slices in which layers "
        "keep the order of kinds, such as whole periods"
    )
