"""Run a method's functions on a block: fused into one compiled loop, or in plain torch.

The two give the same elements bit for bit (sums agree to float64 rounding), so which one runs is
a matter of speed alone. `Kernels` decides per function: what cannot be recorded, compiled, or is
not in host memory runs in plain torch.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.engine import _compile, _emit
from mergewise.engine._block import (
    Block,
    Keys,
    TorchInputs,
    TracedInputs,
    split_settings,
)
from mergewise.engine._trace import Untraceable
from mergewise.methods import Access, Method, Settings

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)
FINITE_PIECE = 1 << 20
"""Elements that are widened to float64 at a time, of tensors that are held whole."""


@dataclass
class Result:
    """What a function made of a block.

    Attributes:
        tensors: scores, or the one output block.
        sums: totals of the terms over this block, by name.
        bad: bit 0 set if the output holds NaN or infinity, bit i + 1 if input i does.
    """

    tensors: list[Tensor] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    bad: int = 0


_cache: dict[Any, Any] = {}
_counts: dict[Any, int] = {}
_lock = threading.Lock()


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


class Kernels:
    """One tensor's functions: a method with its settings, keys and arithmetic.

    Args:
        values: parameters by name, later joined by thresholds and coefficients (`extend`).
        fuse: allow compiled loops.
        described: the method is given statistics of this tensor.
    """

    def __init__(
        self,
        method: Method,
        values: Mapping[str, Any],
        keys: Keys,
        out_dtype: torch.dtype,
        *,
        compute: torch.dtype | None = None,
        device: Any = "cpu",
        fuse: bool = True,
        described: bool = False,
    ) -> None:
        self.method = method
        self._described = described
        self.values = dict(values)
        self.keys = keys
        self.out_dtype = out_dtype
        self.compute = compute or torch.float32
        self.device = torch.device(device)
        self.settings = Settings(self.values)
        self._scalars = split_settings(self.values, keys)
        self._fuse = (
            fuse
            and method.access(self.settings) is not Access.WHOLE
            and self.device.type == "cpu"
            and self.compute == torch.float32
            and str(out_dtype).removeprefix("torch.") in _emit.FUSIBLE
        )

    def extend(self, values: Mapping[str, Any]) -> None:
        """Add thresholds or coefficients to what the functions are given as settings."""
        self.values.update(values)
        self.settings = Settings(self.values)
        self._scalars = split_settings(self.values, self.keys)

    def scores(self, block: Block) -> Result:
        """Scores of a block, float32, flat, one tensor per selection."""
        fused = self._fused("scores", block)
        if fused:
            return fused(block, self._scalars)
        x = self._inputs(block)
        found = self.method.scores(x, self.settings)
        return Result([t.to("cpu", torch.float32).flatten() for t in found], bad=self._bad(x))

    def masks(self, block: Block) -> Result:
        """The masks that the method makes of a block's ranks, bool, flat; or none."""
        fused = self._fused("masks", block)
        if fused:
            return fused(block, self._scalars)
        x = self._inputs(block)
        found = self.method.masks(x, self.settings)
        return Result([m.to("cpu").flatten() for m in found], bad=self._bad(x))

    def terms(self, block: Block) -> Result:
        """Sums of the method's terms over a block, in float64."""
        fused = self._fused("terms", block)
        if fused:
            return fused(block, self._scalars)
        x = self._inputs(block)
        terms = self.method.terms(x, self.settings)
        sums = {k: float(t.sum(dtype=torch.float64)) for k, t in terms.items()}
        return Result(sums=sums, bad=self._bad(x))

    def combine(self, block: Block) -> Result:
        """The output block, flat, in the output's type."""
        fused = self._fused("combine", block)
        if fused:
            return fused(block, self._scalars)
        x = self._inputs(block)
        merged = self.method.combine(x, self.settings)
        out = (merged.t() if block.turned else merged).to(self.out_dtype).to("cpu").flatten()
        bad = self._bad(x)
        if out.is_floating_point() and not finite(out):
            bad |= 1
        return Result([out.contiguous()], bad=bad)

    def count(self, stage: str, tiny: Callable[[], Block]) -> int:
        """How many tensors `scores`, `masks` or `terms` gives with these settings.

        Tried once for each structure of the settings, on the block that `tiny` makes.
        """
        experts = len(self.keys.noise)
        key = (type(self.method), stage, self._scalars.structure, experts, self._described)
        if key not in _counts:
            function = getattr(self.method, stage)
            _counts[key] = len(function(self._inputs(tiny()), self.settings))
        return _counts[key]

    def _inputs(self, block: Block) -> TorchInputs:
        return TorchInputs(block, self.keys, self.compute, self.device)

    def _bad(self, x: TorchInputs) -> int:
        return sum(1 << i for i, t in enumerate(x.all, 1) if not finite(t))

    def _fused(self, stage: str, block: Block) -> Callable[[Block, Any], Result] | None:
        if not self._fuse:
            return None
        dtypes = tuple(_dtype_name(t) for t in block.tensors)
        if not set(dtypes) <= _emit.FUSIBLE:
            return None
        if any(t.device.type != "cpu" for t in block.tensors):  # C is given addresses
            return None
        if any(t.dim() != 1 for each in block.evidence for t in each):
            return None
        if len(_inputs_of(block)) > _emit.MOST_INPUTS:
            return None
        columns = block.columns if block.ranks else None
        out = str(self.out_dtype).removeprefix("torch.")
        key = (
            type(self.method), stage, self._scalars.structure, dtypes, block.has_base,
            len(block.ranks), len(block.masks), _models_of(block), columns, out,
        )  # fmt: skip
        with _lock:
            if key not in _cache:
                _cache[key] = self._compile(stage, block, dtypes, out)
        found: Callable[[Block, Any], Result] | None = _cache[key]
        return found

    def _compile(
        self, stage: str, block: Block, dtypes: tuple[str, ...], out: str
    ) -> Callable[[Block, Any], Result] | None:
        experts = len(block.tensors) - block.has_base
        extra = (len(block.ranks), len(block.masks))
        columns = block.columns if block.ranks else None
        needs = _models_of(block)
        x = TracedInputs(experts, block.has_base, *extra, columns, needs)
        s = Settings(self._scalars.traced)
        inputs = [*dtypes, *["float32"] * extra[0], *["bool"] * extra[1]]
        inputs += ["float32"] * sum(needs)
        size = (len(self._scalars.floats), len(self._scalars.ints))
        try:
            if stage in ("scores", "masks"):
                found: list[Any] = getattr(self.method, stage)(x, s)
                dtype = torch.float32 if stage == "scores" else torch.bool
                name = str(dtype).removeprefix("torch.")
                source = _emit.emit("kernel", inputs, [(e, name) for e in found], {}, *size)
                return _Loaded.make(source, [dtype] * len(found), [])
            if stage == "terms":
                terms: Any = self.method.terms(x, s)
                return _Loaded.make(_emit.emit("kernel", inputs, [], terms, *size), [], list(terms))
            result: Any = self.method.combine(x, s)
            source = _emit.emit("kernel", inputs, [(result, out)], {}, *size)
            return _Loaded.make(source, [self.out_dtype], [])
        except Untraceable as reason:
            log.debug("%s.%s runs in plain torch: it %s", self.method.name, stage, reason)
            return None


class _Loaded:
    """A compiled function, called with a block."""

    def __init__(self, library: Any, outputs: list[torch.dtype], sums: list[str]) -> None:
        self._function = library.kernel
        self._function.restype = ctypes.c_uint64
        self._outputs = outputs
        self._sums = sums

    @classmethod
    def make(cls, source: str, outputs: list[torch.dtype], sums: list[str]) -> _Loaded | None:
        library = _compile.load(_compile.PRELUDE + source)
        return cls(library, outputs, sums) if library is not None else None

    def __call__(self, block: Block, scalars: Any) -> Result:
        out = [torch.empty(block.size, dtype=d) for d in self._outputs]
        sums = (ctypes.c_double * max(1, len(self._sums)))()
        inputs = [t.contiguous() for t in _inputs_of(block)]
        bad = self._function(
            _pointers(inputs),
            _pointers(out),
            (ctypes.c_float * max(1, len(scalars.floats)))(*scalars.floats),
            (ctypes.c_int32 * max(1, len(scalars.ints)))(*scalars.ints),
            ctypes.c_uint64(block.start),
            ctypes.c_int64(block.size),
            sums,
        )
        return Result(out, dict(zip(self._sums, sums, strict=False)), bad)


def _models_of(block: Block) -> tuple[int, ...]:
    """For each statistic, of how many models a block has it."""
    return tuple(len(each) for each in block.evidence)


def _inputs_of(block: Block) -> list[Tensor]:
    """A loop's inputs, in its order."""
    evidence = [t for each in block.evidence for t in each]
    return [*block.tensors, *block.ranks, *block.masks, *evidence]


def _pointers(tensors: list[Tensor]) -> Any:
    return (ctypes.c_void_p * max(1, len(tensors)))(*(t.data_ptr() for t in tensors))


def finite(tensor: Tensor) -> bool:
    """Whether a floating-point tensor holds neither NaN nor infinity."""
    # torch widens all that it is given before it adds
    return all(_finite(piece) for piece in torch.split(tensor.reshape(-1), FINITE_PIECE))


def _finite(tensor: Tensor) -> bool:
    total = tensor.sum(dtype=torch.float64)
    # as float64: isfinite knows some of the 8-bit types only
    return bool(torch.isfinite(total)) or bool(torch.isfinite(tensor.to(torch.float64)).all())
