"""Check an adapter's shapes against its base, and say what becomes of each tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mergewise.checkpoint._adapters._adapter import Adapter
from mergewise.checkpoint._change import Change, LowRank, Scaled, Shifted
from mergewise.checkpoint._files import shown, where
from mergewise.checkpoint._model import TensorRef
from mergewise.checkpoint._parts import stored_turned
from mergewise.errors import CheckpointError, NotBuiltYetError

_FLOATS = ("F64", "F32", "F16", "BF16")
Parts = Mapping[str, TensorRef]


class Fit:
    """An adapter on a base.

    Args:
        base: its tensors, with a tied head's under the head's name.
        names: the base's name of each module and each replaced tensor.
    """

    def __init__(self, adapter: Adapter, base: Mapping[str, TensorRef], names: Mapping[str, str]):
        self._adapter = adapter
        self._config = adapter.config
        self._base = base
        self._names = names

    def replaced(self) -> dict[str, TensorRef]:
        """Tensors that the adapter holds whole, by the base's names."""
        found = {}
        for name, ref in self._adapter.replaced.items():
            mine = self._base[self._names[name]]
            if ref.shape != mine.shape:
                raise self._odd(name, f"{list(mine.shape)}, as in the base,", ref)
            found[self._names[name]] = ref
        return found

    def changes(self) -> dict[str, Change]:
        """What happens to each tensor that is changed, by the base's names."""
        found: dict[str, Change] = {}
        for module, parts in self._adapter.modules.items():
            name = self._names[module]
            weight = self._base[f"{name}.weight"]
            if weight.dtype not in _FLOATS:
                raise NotBuiltYetError(
                    f"{where(weight.file)}: {weight.name}: elements of type {weight.dtype} cannot "
                    "be combined with an adapter; use the unquantised base"
                )
            if self._config.kind == "IA3":
                self._scale(found, module, parts, weight)
            else:
                change = self._low_rank(module, parts, weight)
                if change.rank == 0:  # AdaLoRA left nothing of it
                    continue
                found[weight.name] = change
                self._shift(found, module, parts)
        return found

    def _low_rank(self, module: str, parts: Parts, weight: TensorRef) -> LowRank:
        embeds = "lora_embedding_A" in parts or "lora_embedding_B" in parts
        a_name, b_name = (
            ("lora_embedding_A", "lora_embedding_B") if embeds else ("lora_A", "lora_B")
        )
        allowed = {a_name, b_name, "lora_magnitude_vector", *(() if embeds else ("lora_B.bias",))}
        if self._config.kind == "ADALORA":
            allowed = {a_name, b_name, "lora_E"}
        a, b = parts.get(a_name), parts.get(b_name)
        if a is None or b is None or parts.keys() - allowed:
            raise self._bad(module, f"{a_name} and {b_name} expected, got {', '.join(parts)}")
        rank = self._rank(module, parts, a)
        turned = embeds or self._is_turned(weight, a.shape, b.shape)
        want_a, want_b = _factor_shapes(weight.shape, rank, turned)
        if a.shape != want_a:
            raise self._odd(module, f"{a_name} {list(want_a)}", a, f"(rank {rank})")
        if b.shape != want_b:
            raise self._odd(module, f"{b_name} {list(want_b)}", b, f"(rank {rank})")
        outputs = weight.shape[1] if turned else weight.shape[0]
        magnitude = self._magnitude(module, parts, outputs)
        scale = self._config.scale_of(module)
        return LowRank(a, b, scale, turned, magnitude, parts.get("lora_E"))

    def _rank(self, module: str, parts: Parts, a: TensorRef) -> int:
        """What the config says; of AdaLoRA, which cuts ranks while it trains, what is there."""
        if self._config.kind != "ADALORA":
            return self._config.rank_of(module)
        middle, rank = parts.get("lora_E"), a.shape[0] if a.shape else 0
        if middle is None or middle.shape != (rank, 1) or rank > self._config.rank:
            got = "none" if middle is None else list(middle.shape)
            raise self._bad(
                module,
                f"lora_E [{rank}, 1], of rank {self._config.rank} at most, expected, got {got}",
            )
        return rank

    def _magnitude(self, module: str, parts: Parts, outputs: int) -> TensorRef | None:
        found = parts.get("lora_magnitude_vector")
        if (found is not None) != self._config.dora:
            state = "is" if self._config.dora else "is not"
            raise self._bad(
                module, f"use_dora {state} set, and there is {shown(list(parts))}; save it anew"
            )
        if found is not None and math.prod(found.shape) != outputs:
            raise self._odd(module, f"lora_magnitude_vector of {outputs} numbers", found)
        return found

    def _shift(self, found: dict[str, Change], module: str, parts: Parts) -> None:
        shift = parts.get("lora_B.bias")
        if shift is None:
            return
        name = f"{self._names[module]}.bias"
        bias = self._base.get(name)
        if bias is None:
            raise self._bad(module, f"lora_B has a bias, and the base no {name}")
        if bias.shape != shift.shape:
            raise self._odd(module, f"lora_B.bias {list(bias.shape)}", shift)
        found[name] = Shifted(shift, self._config.scale_of(module))

    def _scale(
        self, found: dict[str, Change], module: str, parts: Parts, weight: TensorRef
    ) -> None:
        by = parts.get("ia3_l")
        if by is None or len(parts) > 1:
            raise self._bad(module, f"ia3_l expected, got {', '.join(parts)}")
        if len(weight.shape) != 2:
            raise NotBuiltYetError(
                f"{where(self._adapter.file)}: module {shown(module)}: IA3 of a tensor of shape "
                f"{list(weight.shape)} is not built yet; merge it into its base with PEFT"
            )
        if len(by.shape) != 2 or 1 not in by.shape or by.shape == (1, 1):
            raise self._odd(module, "ia3_l [outputs, 1] or [1, inputs]", by)
        inward = by.shape[0] == 1  # a feed-forward module, whose inputs are scaled
        turned = self._is_turned_ia3(weight, by.shape)
        size = weight.shape[0] if inward == turned else weight.shape[1]
        if math.prod(by.shape) != size:
            raise self._odd(module, f"ia3_l of {size} numbers", by)
        found[weight.name] = Scaled(by, by_row=inward == turned)
        bias = self._base.get(f"{self._names[module]}.bias")
        if bias is not None and not inward:
            found[bias.name] = Scaled(by, by_row=True)

    def _is_turned_ia3(self, weight: TensorRef, shape: tuple[int, ...]) -> bool:
        rows, columns = weight.shape
        if rows == columns:
            return self._stored_turned(weight)
        inward, size = shape[0] == 1, math.prod(shape)
        return size == (rows if inward else columns)

    def _is_turned(self, weight: TensorRef, a: tuple[int, ...], b: tuple[int, ...]) -> bool:
        """Whether a weight is stored [inputs, outputs], whatever the config says of all of them.

        PEFT corrects ``fan_in_fan_out`` for each module and saves what the last one had.
        """
        if len(weight.shape) != 2 or len(a) != 2 or len(b) != 2:
            return False
        if weight.shape[0] != weight.shape[1]:
            return (b[0], a[1]) == (weight.shape[1], weight.shape[0])
        return self._stored_turned(weight)

    def _stored_turned(self, weight: TensorRef) -> bool:
        """For a square weight: as the other weights of its layer, told by their biases."""
        told = stored_turned(weight.name, self._base)
        return self._config.turned if told is None else told

    def _odd(self, module: str, expected: str, got: TensorRef, hint: str = "") -> CheckpointError:
        more = f" {hint}" if hint else ""
        return self._bad(module, f"{expected} expected{more}, got {list(got.shape)}")

    def _bad(self, module: str, what: str) -> CheckpointError:
        return CheckpointError(
            f"{where(self._adapter.file)}: {shown(module)}: {what}; does this adapter belong to "
            "this base?"
        )


def _factor_shapes(
    weight: tuple[int, ...], rank: int, turned: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of A and B for a weight; of a convolution, B has a kernel of ones."""
    if turned and len(weight) == 2:
        return (rank, weight[0]), (weight[1], rank)
    if len(weight) < 2:
        return (rank, 0), (0, rank)
    return (rank, *weight[1:]), (weight[0], rank, *(1 for _ in weight[2:]))
