"""How much memory a merge needs, and with how many workers it stays within a budget."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mergewise.checkpoint import BITS, ChangedRef
from mergewise.constants import BLOCK_ELEMENTS, FUSE_FROM_ELEMENTS, PLAIN_BLOCK_ELEMENTS
from mergewise.engine import _compile
from mergewise.engine._device import processors
from mergewise.engine._emit import MOST_INPUTS
from mergewise.engine._task import block_elements, row_length
from mergewise.errors import MergewiseError
from mergewise.methods import Access, Method, Need, PlacedMethod, Settings, get_method
from mergewise.plan import MergePlan, StagePlan, TensorPlan

# Measured, in bytes.
_RUNTIME = 250_000_000  # Python, torch and the allocator's reserve
_DECOMPOSING = 60_000_000  # LAPACK and its buffers, once matrices are decomposed
_RANKING = 24  # for an element, its ranks within the row while they are found
_KEY = 16  # for a key collected around a threshold: 8, held twice
_DEQUANTISING = 32  # for an element, while it is computed from a code and a scale
_OPEN = 2  # tensors begun and not finished


@dataclass(frozen=True)
class Memory:
    """An estimate of peak resident memory in bytes.

    Attributes:
        fixed: the runtime, keys collected for thresholds, and masks kept between passes.
        per_worker: blocks (or whole tensors) one worker holds.
        largest: the tensor that decides it.
        decomposes: whether matrices are decomposed.
    """

    fixed: int
    per_worker: int
    largest: str
    decomposes: bool

    def peak(self, workers: int) -> int:
        return self.fixed + workers * self.per_worker


def estimate(plan: MergePlan) -> Memory:
    """Estimate the memory of a plan from shapes alone, for merging on the CPU."""
    compiled = plan.elements >= FUSE_FROM_ELEMENTS and _compile.available()
    fixed, per_worker, largest, decomposes = _RUNTIME, 0, ("", 0), False
    for stage in plan.stages:
        needs = [_Need(stage, t, compiled) for t in stage.tensors.values() if t.fate == "merge"]
        fixed += max((need.kept for need in needs), default=0) + _collected(needs)
        decomposes |= any(need.decomposes for need in needs)
        worst = max(needs, key=lambda need: need.held, default=None)
        if worst is not None:
            # a stage's blocks are read while those of the next are held
            per_worker += worst.held
            largest = max(largest, (worst.tensor.meta.name, worst.held), key=lambda pair: pair[1])
    return Memory(fixed + decomposes * _DECOMPOSING, per_worker, largest[0], decomposes)


class _Need:
    """What merging one tensor takes.

    Attributes:
        held: bytes a worker holds for a block.
        decomposes: whether it calls LAPACK.
        kept: bytes from pass to pass.
        selections: thresholds to be found.
    """

    def __init__(self, stage: StagePlan, tensor: TensorPlan, compiled: bool) -> None:
        method = get_method(stage.stage.method)
        settings = Settings(tensor.values)
        self.tensor = tensor
        self.elements = tensor.meta.elements
        self.whole_model = getattr(settings, "granularity", "") == "model"
        self.selections = _selections(method, settings, tensor)
        ranked = method.ranked(settings)
        # random masks made of ranks, a bit an element, and as many more of the tensor begun next
        self.kept = _OPEN * len(tensor.experts) * self.elements // 8 if ranked else 0
        self._refs = [item.view.ref(item.meta.name) for item in tensor.inputs]
        # an adapter's matrices, widened; those of the tensor begun next too
        self.kept += _OPEN * sum(
            4 * part.numel
            for ref in self._refs
            if isinstance(ref, ChangedRef)
            for part in ref.change.parts
        )
        access = method.access(settings)
        block = block_elements(
            BLOCK_ELEMENTS if compiled else PLAIN_BLOCK_ELEMENTS, len(tensor.inputs)
        )
        types = {tensor.meta.dtype, *(item.meta.dtype for item in tensor.inputs)}
        fusible = access is Access.FLAT and not method.unfused and "F64" not in types
        compiled = compiled and fusible and len(tensor.inputs) <= MOST_INPUTS
        needs = method.needs(settings)
        sides = self._sides(needs)
        # of both sides at once, all matrices are held in float64
        self._wide = any(need.per == "output_matrix" for need in needs)
        self.solving = method.solving
        if sides:
            together = tensor.turned or self._wide
            block = self.elements if together else max(block, *(n * n for n in sides))
        elif access is Access.WHOLE:
            block = self.elements
        elif access is Access.ROWS or ranked:
            block = max(block, row_length(tensor.meta.shape))
        block = min(block, self.elements)
        self.decomposes = bool(sides)
        if sides:
            self.held = self._solving(block, sides)
        elif isinstance(method, PlacedMethod) and access is Access.WHOLE:
            self.decomposes = True
            room = method.room(tensor.meta.shape, len(tensor.experts), settings)
            self.held = block * self._bytes(self._widened())
            self.held += math.ceil(room) * (16 if "F64" in types else 8)
        else:
            # widened inputs, and intermediate results of each
            plain = access is Access.WHOLE or not compiled
            copies = (max(method.copies, method.unfused) * len(tensor.inputs) + 4) * plain
            self.held = block * (self._bytes(copies) + self._choosing(ranked))

    def _sides(self, needs: Sequence[Need]) -> list[int]:
        """Of each statistic that is a matrix: its number of rows."""
        pairs = zip(needs, self.tensor.statistics, strict=False)
        matrices = (known for need, each in pairs if need.per.endswith("matrix") for known in each)
        return [known.ref.shape[0] for known in matrices]

    def _solving(self, block: int, sides: list[int]) -> int:
        """Bytes for a block of rows and matrices beside it: see `Method.solving`."""
        tensor = self.tensor
        types = [tensor.meta.dtype, *(item.meta.dtype for item in tensor.inputs)]
        stored = sum(BITS[dtype] for dtype in types) // 8
        widened = 4 * (len(tensor.inputs) + 1) + 8 * self.solving
        held = 8 * sum(n * n for n in sides) if self._wide else 2 * 8 * max(sides) ** 2
        matrices = sum(4 * n * n for n in sides) + held
        return block * (stored + widened) + matrices

    def _widened(self) -> int:
        """How many inputs are converted to be computed with."""
        types = [item.meta.dtype for item in self.tensor.inputs]
        computed = "F64" if "F64" in (*types, self.tensor.meta.dtype) else "F32"
        return sum(dtype != computed for dtype in types)

    def _bytes(self, copies: int) -> int:
        """Bytes for one element of a block: as stored, and so many copies to compute with."""
        tensor = self.tensor
        types = [item.meta.dtype for item in tensor.inputs] + [tensor.meta.dtype]
        wide = 8 if "F64" in types else 4
        stored = sum(BITS[dtype] for dtype in types) // 8
        stored += wide * copies
        # what an adapter changes is computed in float32 unless the recipe has a type for it;
        # the base's block is held beside
        stored += 2 * wide * any(isinstance(r, ChangedRef) for r in self._refs)
        stored += wide * sum(isinstance(r, ChangedRef) for r in self._refs)
        # dequantised in float32, from codes and scales widened to as much
        stored += _DEQUANTISING * sum(bool(r and r.stored_as) for r in self._refs)
        # sums as stored, and means
        return stored + 8 * sum(len(each) for each in tensor.statistics)

    def _choosing(self, ranked: bool) -> int:
        """Bytes for one element of a block, of what elements are chosen by."""
        experts = len(self.tensor.experts)
        masks = (_RANKING + 4 + 4 + 1) * experts if ranked else 0
        # scores, and the keys of one of them
        return masks + (4 * experts + 8 if self.selections else 0)


def _selections(method: Method, settings: Settings, tensor: TensorPlan) -> int:
    """How many thresholds are neither above nor below every element."""
    n = tensor.meta.elements
    wanted = method.ranks(settings, n, [n] * len(tensor.experts))
    return sum(rank < n and rank != 0 for ranks in wanted for rank in ranks)


def _collected(needs: Iterable[_Need]) -> int:
    """Bytes of the keys collected around thresholds, of a tensor or of all of them together."""
    pools: dict[str, int] = defaultdict(int)
    most = 0
    for need in needs:
        if need.whole_model:
            pools[str(need.tensor.values)] += need.elements
            most = max(most, _keys(pools[str(need.tensor.values)]) * need.selections)
        else:
            most = max(most, _keys(need.elements) * need.selections)
    return most * _KEY


def _keys(n: int) -> int:
    """The sample, or the share of n that it leaves in doubt; see `_select`."""
    sample = min(max(n // 128, 1 << 16), 1 << 22)
    return min(n, max(sample, int(6 * n / sample**0.5)))


def choose_workers(plan: MergePlan, workers: int | None, budget: int | None) -> int:
    """The number of workers: as asked, or one per processor, but within the memory budget.

    Raises:
        MergewiseError: if even one worker would exceed the budget.
    """
    wanted = max(1, workers or processors())
    if budget is None:
        return wanted
    memory = estimate(plan)
    if memory.peak(1) > budget:
        raise MergewiseError(
            f"about {memory.peak(1):,} bytes of memory are needed (tensor {memory.largest}), more "
            f"than the {budget:,} of --memory; allow more, or use a method that works by blocks"
        )
    return max(1, min(wanted, (budget - memory.fixed) // max(1, memory.per_worker)))
