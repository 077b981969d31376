"""GPTQ and AWQ: integers packed in 32-bit words, stored the other way round than the weight.

GPTQ packs along the inputs, ``qweight [inputs * bits / 32, outputs]``, AWQ along the outputs,
``qweight [inputs, outputs * 4 / 32]``, eight to a word in the order 0, 2, 4, 6, 1, 3, 5, 7. Zero
points are packed along the outputs, one for each group of inputs; GPTQ's first format (all but
``gptq_v2``) stores them less one.

Sources: the layouts of AutoGPTQ's and AutoAWQ's linear modules, as `gptqmodel` reads them. That
the missing one is added within the bits (15 becomes 0) is from memory of AutoGPTQ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.checkpoint._files import shown, where
from mergewise.checkpoint._model import TensorRef
from mergewise.checkpoint._packed._codes import unpacked
from mergewise.checkpoint._packed._find import Search
from mergewise.checkpoint._packed._ref import Fill, Packing, strided, taken
from mergewise.errors import CheckpointError, NotBuiltYetError

if TYPE_CHECKING:
    from torch import Tensor

_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Which four bits of a word hold its first, second ... column."""
_SCALES = ("F16", "BF16", "F32")


@dataclass(frozen=True)
class Turned(Packing):
    """(code - zero) * scale of a weight [outputs, inputs] that is stored turned.

    Attributes:
        codes: ``qweight``.
        zeros: ``qzeros``, ``[groups, outputs * bits / 32]``.
        scales: ``[groups, outputs]``.
        inputs: columns of the result.
        group: inputs that share a scale, where no `order` says which.
        order: for each input its group.
        awq: AWQ's layout; else GPTQ's.
        less: what zero points are stored less by.
    """

    codes: TensorRef
    zeros: TensorRef
    scales: TensorRef
    bits: int
    inputs: int
    group: int
    order: TensorRef | None = None
    awq: bool = False
    less: int = 0

    @property
    def kind(self) -> str:
        return f"{'AWQ' if self.awq else 'GPTQ'} {self.bits} bits"

    @property
    def parts(self) -> tuple[TensorRef, ...]:
        every = (self.codes, self.zeros, self.scales, self.order)
        return tuple(part for part in every if part is not None)

    @property
    def granule(self) -> int:
        return self.inputs

    def values(self, start: int, size: int, fill: Fill) -> Tensor:
        first, count = start // self.inputs, size // self.inputs
        groups, outputs = self.scales.shape
        zeros = self._across(self.zeros, first, count, fill)
        zeros = (zeros + self.less & (1 << self.bits) - 1).float()
        scales = strided(fill, self.scales, first, count, outputs, groups).float()
        of = self._groups(fill)
        codes = self._codes(first, count, fill).float()  # [inputs, count]
        return codes.sub_(zeros[of]).mul_(scales[of]).T.reshape(-1)

    def _codes(self, first: int, count: int, fill: Fill) -> Tensor:
        if self.awq:
            return self._across(self.codes, first, count, fill)
        words, outputs = self.codes.shape
        runs = strided(fill, self.codes, first, count, outputs, words)
        return unpacked(runs.T, self.bits, self.inputs).T

    def _across(self, part: TensorRef, first: int, count: int, fill: Fill) -> Tensor:
        """Integers that are packed along the outputs: those of some outputs, [rows, count]."""
        rows, width = part.shape
        skipped = first // 32 * 32  # 32 integers fill whole words, whatever their bits
        low = skipped * self.bits // 32
        high = min(width, -(-(first + count) * self.bits // 32))
        words = strided(fill, part, low, high - low, width, rows)
        if self.awq:
            codes = unpacked(words, 4, 8 * (high - low)).view(rows, -1, 8)
            codes = codes[:, :, list(_AWQ_ORDER)].reshape(rows, -1)
        else:
            codes = unpacked(words, self.bits, first - skipped + count)
        return codes[:, first - skipped : first - skipped + count].int()

    def _groups(self, fill: Fill) -> Tensor:
        if self.order is None:
            return torch.arange(self.inputs) // self.group
        of = taken(fill, self.order, 0, self.inputs).long()
        most = self.scales.shape[0] - 1
        if bool((of < 0).any()) or bool((of > most).any()):
            raise CheckpointError(
                f"{where(self.order.file)}: {self.order.name} must hold numbers from 0 to {most}, "
                f"got {int(of.min())} to {int(of.max())}; fetch it again"
            )
        return of


def find_gptq(search: Search) -> None:
    """Every ``qweight`` of GPTQ with its scales, zero points and order."""
    bits = _count(search, "bits", 4)
    if bits not in (2, 3, 4, 8):
        _refuse(search, "bits", bits, "2, 3, 4 or 8")
    form = search.settings.get("checkpoint_format", search.settings.get("format", "gptq"))
    if form not in ("gptq", "gptq_v2", None):
        _refuse(search, "checkpoint_format", form, "gptq or gptq_v2")
    for name, codes in _quantised(search):
        words, outputs = codes.shape
        inputs = words * 32 // bits
        packing = _packing(search, name, codes, bits, inputs, outputs, less=int(form != "gptq_v2"))
        search.add(f"{name}.weight", (outputs, inputs), packing, f"{name}.g_idx")


def find_awq(search: Search) -> None:
    """Every ``qweight`` of AWQ with its scales and zero points."""
    bits = _count(search, "bits", _count(search, "w_bit", 4))
    version = str(search.settings.get("version", "gemm")).lower()
    if bits != 4:
        _refuse(search, "bits", bits, "4")
    if version != "gemm":
        _refuse(search, "version", version, "gemm")
    for name, codes in _quantised(search):
        inputs, outputs = codes.shape[0], codes.shape[1] * 8
        packing = _packing(search, name, codes, 4, inputs, outputs, awq=True)
        search.add(f"{name}.weight", (outputs, inputs), packing)


def _quantised(search: Search) -> list[tuple[str, TensorRef]]:
    found = [(n, ref) for n, ref in search.tensors.items() if n.endswith(".qweight")]
    for name, ref in found:
        search.check(ref, ("I32",))
        if len(ref.shape) != 2 or 0 in ref.shape:
            search.refuse(name, f"must be a matrix, got shape {list(ref.shape)}")
    return [(name.removesuffix(".qweight"), ref) for name, ref in found]


def _packing(
    search: Search,
    name: str,
    codes: TensorRef,
    bits: int,
    inputs: int,
    outputs: int,
    awq: bool = False,
    less: int = 0,
) -> Turned:
    scales = search.need(f"{name}.scales", codes.name)
    zeros = search.need(f"{name}.qzeros", codes.name)
    order = None if awq else search.tensors.get(f"{name}.g_idx")
    search.check(scales, _SCALES)
    groups = scales.shape[0] if len(scales.shape) == 2 else 0
    if not groups or (inputs % groups and order is None):
        search.refuse(scales.name, f"has shape {list(scales.shape)} for {inputs} inputs")
    search.check(scales, _SCALES, (groups, outputs))
    search.check(zeros, ("I32",), (groups, -(-outputs * bits // 32)))
    if order is not None:
        search.check(order, ("I32", "I64"), (inputs,))
    group = max(1, inputs // groups)
    return Turned(codes, zeros, scales, bits, inputs, group, order, awq, less)


def _count(search: Search, key: str, default: int) -> int:
    value = search.settings.get(key, default)
    return value if type(value) is int else -1


def _refuse(search: Search, key: str, got: Any, wanted: str) -> None:
    raise NotBuiltYetError(
        f"{where(search.checkpoint.path)}: {key} {shown(got)} of the quantisation cannot be read "
        f"by this version, only {wanted}; use the unquantised checkpoint"
    )
