"""One output tensor: what must be known before its first block, and then its blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.constants import BLOCK_ELEMENTS, PLAIN_BLOCK_ELEMENTS
from mergewise.engine._block import Block, Keys, Shared
from mergewise.engine._kernels import Kernels, Result
from mergewise.engine._masks import MaskCache
from mergewise.engine._ranks import row_ranks
from mergewise.engine._select import find_thresholds
from mergewise.engine._sources import Source, nonfinite
from mergewise.engine._work import Parallel, Range, Work
from mergewise.errors import MergewiseError, NonFiniteError
from mergewise.methods import Access, Method

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Options:
    """What a run decides for all its tasks.

    Attributes:
        block: elements per block; None for what suits the way of computing.
        fuse: allow compiled kernels.
        check: refuse NaN and infinity.
        nonfinite: where they were found, if they are not refused.
    """

    seed: int = 0
    device: str = "cpu"
    block: int | None = None
    fuse: bool = True
    check: bool = True
    nonfinite: set[str] = field(default_factory=set, compare=False)

    @property
    def step(self) -> int:
        """Elements per block."""
        plain = not self.fuse and self.device == "cpu"
        return self.block or (PLAIN_BLOCK_ELEMENTS if plain else BLOCK_ELEMENTS)


FEW_INPUTS = 8
_LEAST_BLOCK = 1 << 14


def block_elements(step: int, inputs: int) -> int:
    """Elements of a block of so many inputs: of many, fewer, so that memory does not grow."""
    most = max(_LEAST_BLOCK, step * FEW_INPUTS // max(inputs, FEW_INPUTS))
    return min(step, most)


_MATRICES = ("matrix", "output_matrix")


def row_length(shape: Sequence[int]) -> int:
    """Elements in a row: the last axis, or all of an output channel of a convolution."""
    if len(shape) >= 4:
        return math.prod(shape[1:])
    return shape[-1] if shape else 1


@dataclass
class TensorTask:
    """A method applied to one tensor of several models.

    Attributes:
        values: the method's parameters, resolved for this tensor.
        base, experts: the inputs.
        evidence: for each of the method's needs, each model's mean statistic; empty if this
            tensor is not described.
        turned: the weight is stored [inputs, outputs], as GPT-2's Conv1D stores it.
        matrix: the method is given a matrix beside this tensor, with every block of rows.
    """

    name: str
    shape: tuple[int, ...]
    method: Method
    values: Mapping[str, Any]
    base: Source | None
    experts: Sequence[Source]
    out_dtype: torch.dtype
    options: Options = field(default_factory=Options)
    evidence: Sequence[Sequence[Source]] = ()
    turned: bool = False

    def __post_init__(self) -> None:
        given = [*([self.base] if self.base else []), *self.experts]
        self._inputs_ready = False
        self._sources = given
        self.size = math.prod(self.shape)
        self.columns = max(1, row_length(self.shape))
        self.keys = Keys.of(self.options.seed, self.name, len(self.experts))
        wide = torch.float64 in (self.out_dtype, *(s.dtype for s in self._sources))
        self.kernels = Kernels(
            self.method,
            self.values,
            self.keys,
            self.out_dtype,
            compute=torch.float64 if wide else torch.float32,
            device=self.options.device,
            fuse=self.options.fuse,
            described=bool(self.evidence),
        )
        self.access = self.method.access(self.kernels.settings)
        self._ranked = self.method.ranked(self.kernels.settings)
        if self._ranked and self.access is Access.FLAT:
            self.access = Access.ROWS
        self._needs = self.method.needs(self.kernels.settings) if self.evidence else ()
        self.matrix = any(need.per in _MATRICES for need in self._needs)
        if self.matrix:
            together = self.turned or any(need.per == "output_matrix" for need in self._needs)
            self.access = Access.WHOLE if together else Access.ROWS
            self.columns = max(1, math.prod(self.shape[1:]))
        self._masks = MaskCache()
        self._masked = self._ranked and self.kernels.count("masks", self._tiny) > 0

    def ranges(self) -> list[Range]:
        """The blocks as (start, size); whole rows for row methods."""
        step = block_elements(self.options.step, len(self._sources))
        if self.access is Access.WHOLE:
            step = max(1, self.size)
        elif self.access is Access.ROWS:
            # a matrix is read and factored for every block: let that be little beside its rows
            step = max(1, step // self.columns, self.columns * self.matrix) * self.columns
        return [(at, min(step, self.size - at)) for at in range(0, self.size, step)]

    def load(self, where: Range) -> Block:
        """Read one block of every input, and its row ranks if the method wants them."""
        start, size = where
        tensors = [s.read(start, size, slot) for slot, s in enumerate(self._sources)]
        has_base = self.base is not None
        block = Block(start, size, tensors, has_base, self.columns, self._seen(self.shape))
        block.evidence = self._evidence(where)
        block.turned = self.turned and self.matrix
        if self._ranked:
            self._rank(block, where)
        return block

    def _evidence(self, where: Range) -> list[list[Tensor]]:
        """The statistics of one block; a matrix is read whole."""
        found = []
        slot = len(self._sources)
        for need, sources in zip(self._needs, self.evidence, strict=True):
            each = []
            for source in sources:
                whole = need.per in _MATRICES
                start, size = (0, math.prod(source.shape)) if whole else where
                statistic = source.read(start, size, slot)
                each.append(statistic.reshape(source.shape) if whole else statistic)
                slot += 1
            found.append(each)
        return found

    def _seen(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in which the method sees a block."""
        if self.matrix and self.access is Access.WHOLE:
            return (whole[0], math.prod(whole[1:]))
        if self.access is Access.WHOLE:
            return whole
        return (-1, self.columns) if self.access is Access.ROWS else (-1,)

    def _rank(self, block: Block, where: Range) -> None:
        """Give a block the masks its ranks make, if the method wants no more; else its ranks."""
        kept = self._masks.take(where)
        if kept is not None:
            block.masks = kept
            return
        scores = self._checked(self.kernels.scores(block), where).tensors
        block.ranks = [
            row_ranks(score, block.start, self.columns, (self.keys.tensor, self.keys.tie[i]))
            for i, score in enumerate(scores)
        ]
        if self._masked:
            block.masks, block.ranks = self.kernels.masks(block).tensors, []

    def scores(self, where: Range) -> list[Tensor]:
        return self._checked(self.kernels.scores(self.load(where)), where).tensors

    def prepare_inputs(self) -> Work:
        """What must be known of inputs that are computed themselves (earlier stages)."""
        if not self._inputs_ready:
            for source in self._sources:
                yield from source.prepare()
            self._inputs_ready = True

    def prepare(self, shared: Shared | None = None) -> Work:
        """Everything `combine` needs: thresholds and totals (unless given), coefficients."""
        if not self.size:
            return
        yield from self.prepare_inputs()
        shared = shared or Shared()
        thresholds = shared.thresholds
        if thresholds is None and self.wants_thresholds():
            thresholds = yield from find_thresholds([self])
        if thresholds is not None:
            self.kernels.extend({"thresholds": thresholds})
        totals = shared.totals
        if totals is None:
            totals = yield from self.find_totals()
        try:
            more = self.method.coefficients(totals, self.kernels.settings, self.size)
        except MergewiseError as problem:
            raise type(problem)(f"tensor {self.name}: {problem}") from None
        if more:
            self.kernels.extend(more)

    def find_totals(self) -> Work:
        """The method's terms, each summed over this tensor."""
        yield from self.prepare_inputs()
        if not self.kernels.count("terms", self._tiny):
            return {}
        parts = yield Parallel(self._terms, self.ranges())
        return {name: math.fsum(part[name] for part in parts) for name in parts[0]}

    def wants_thresholds(self) -> bool:
        return not self._ranked and bool(self.size) and self.kernels.count("scores", self._tiny) > 0

    def merged(self, where: Range) -> Tensor:
        """One block of the output, flat, in the output's type. Call after `prepare`."""
        block = self.load(where)
        try:
            result = self.kernels.combine(block)
        except MergewiseError as problem:
            raise type(problem)(f"tensor {self.name}: {problem}") from None
        return self._checked(result, where).tensors[0]

    def _terms(self, where: Range) -> dict[str, float]:
        block = self.load(where)
        if block.masks:
            self._masks.put(where, block.masks)
        return self._checked(self.kernels.terms(block), where).sums

    def _tiny(self) -> Block:
        """A block of zeros, to see what a method computes at all."""
        dtypes = [source.dtype for source in self._sources]
        size = self.columns if self.access is Access.ROWS else 1
        tensors = [torch.zeros(size, dtype=d) for d in dtypes]
        shape = self._seen((1,) * len(self.shape))
        ranks = [torch.zeros(size)] * len(self.experts) if self._ranked else []
        block = Block(0, size, tensors, self.base is not None, self.columns, shape, ranks)
        block.evidence = [
            [torch.zeros((1, 1) if need.per in _MATRICES else size)] * len(sources)
            for need, sources in zip(self._needs, self.evidence, strict=True)
        ]
        return block

    def _checked(self, result: Result, where: Range) -> Result:
        if not result.bad:
            return result
        for slot, source in enumerate(self._sources, 1):
            if result.bad >> slot & 1 and not self.options.check:
                self.options.nonfinite.add(f"{source.name} of {source.model}")
            elif result.bad >> slot & 1:
                raise nonfinite(source, where)
        if result.bad & 1 and self.options.check:
            raise NonFiniteError(
                f"merging tensor {self.name} with {self.method.name} gives numbers that do not "
                f"fit {str(self.out_dtype).removeprefix('torch.')}; choose a wider dtype, or "
                "smaller weights"
            )
        return result
