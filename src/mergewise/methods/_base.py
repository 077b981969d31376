"""The interface of a merge method: reduce, then combine.

A method is a pure function on tensors. It never sees a file, a layer or a device; the engine
asks what it needs and feeds it, tensor by tensor and block by block:

1. `scores` and `ranks` (optional): a score for every element, and which order statistics of it
   are wanted. The engine finds them exactly, without sorting, and hands them back as
   ``s.thresholds``: ``s.thresholds[i][j].value`` is the score at which the j-th wanted number of
   score i is reached. Ranks within rows are given instead to methods that ask (`ranked`).
2. `terms` (optional): elementwise expressions whose sums over the whole tensor are wanted, such
   as the products that make a Gram matrix.
3. `coefficients` (optional): plain Python on those sums, once per tensor.
4. `combine`: the output block from the input blocks.

`scores`, `terms` and `combine` should be elementwise (``+ - * /``, comparisons, ``torch.where``,
``abs``, ``clamp``, ``sqrt``, ``maximum``, ``minimum``) and must not branch on tensors or on float
parameters: then the engine can fuse them into one loop. Anything else still works, slower.
Choices by float parameters belong in `coefficients`.

All tensors a method receives are float32 (float64 if an input or the recipe asks for it).
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mergewise.methods._params import Param, Settings

if TYPE_CHECKING:
    from torch import Tensor


class Access(enum.Enum):
    """How much of a tensor a method must see at once."""

    FLAT = "flat"
    """Any run of elements, as one axis."""
    ROWS = "rows"
    """Whole rows, shape [rows, columns]: a row is the last axis of a matrix, all of a vector, and
    one output channel of a convolution."""
    WHOLE = "whole"
    """The whole tensor in its own shape."""


@dataclass(frozen=True)
class Need:
    """A statistic of every expert, or of the base, that a method reads beside the weights.

    Attributes:
        statistic, sum: what it is called in evidence files (``mergewise collect --list``).
        unit: the count by which the sum is divided.
        per: `element`, of the tensor's own shape; `column`, one number for each input channel of
            a weight that multiplies rows of inputs, which the method sees repeated for every
            element; `spread`, of the tensor's shape with 1 for axes along which it is repeated;
            `matrix`, [inputs, inputs] of a weight; the method then sees that weight as [outputs,
            inputs], some outputs at a time; or `output_matrix`, [outputs, outputs], and then it
            sees all outputs at once.
        of: whose it is; a need of the base gives one tensor, whatever the number of experts.
        vectors: with `column`, whether vectors are described too, element by element.
        signed: whether numbers by element or channel may be below zero; squares and sizes are not.
        asked_by: the setting for which it is read, such as ``score: fisher``; empty if the
            method always reads it.
        otherwise: what becomes of a tensor that the evidence does not describe.
    """

    statistic: str
    sum: str
    unit: Literal["tokens", "examples", "optimizers"]
    per: Literal["element", "column", "spread", "matrix", "output_matrix"]
    of: Literal["experts", "base"] = "experts"
    vectors: bool = False
    signed: bool = False
    asked_by: str = field(default="", compare=False)
    otherwise: str = field(default="", compare=False)

    @property
    def positive(self) -> bool:
        """Whether a number below zero is damage."""
        return self.per in ("element", "column") and not self.signed


class Inputs:
    """The inputs of one block: the same elements of every model.

    Attributes:
        base: the base model's block, or None when the method has no base.
        experts: the other models' blocks, in the recipe's order.
        ranks: where `Method.ranked` asked for it, each score's rank within its row as a float
            (0 = smallest, columns − 1 = largest); else empty.
        masks: what `Method.masks` made of the ranks, if it made something; else empty.
        columns: elements per row (for FLAT blocks, the whole tensor's last axis).
        evidence: for each of `Method.needs`, each expert's mean statistic (or the base's, alone);
            empty for a tensor that some model's evidence does not describe.
    """

    base: Tensor | None
    experts: Sequence[Tensor]
    ranks: Sequence[Tensor]
    masks: Sequence[Tensor]
    columns: int
    evidence: Sequence[Sequence[Tensor]] = ()

    @property
    def deltas(self) -> list[Tensor]:
        """Task vectors: expert − base."""
        assert self.base is not None
        return [expert - self.base for expert in self.experts]

    def weighted(self, weights: Sequence[Any]) -> list[Tensor]:
        """Task vectors times the experts' weights."""
        assert self.base is not None
        pairs = zip(self.experts, weights, strict=True)
        return [(expert - self.base) * weight for expert, weight in pairs]

    def noise(self, expert: int) -> Tensor:
        """Uniform numbers in [0, 1), a function of (seed, tensor, expert, position) alone."""
        raise NotImplementedError

    def at_least(self, score: Tensor, threshold: Any, expert: int) -> Tensor:
        """Mask of the elements whose score is not below `threshold` (from ``s.thresholds``).

        Equal scores are ordered by a hash of their position, so that exactly the wanted number
        is kept and no part of the tensor is preferred.
        """
        raise NotImplementedError


class Method(ABC):
    """A merge method. Subclass it in a file of `mergewise.methods` and it is registered.

    Class attributes:
        name: the name in recipes.
        summary: one line.
        base: whether the base model is `required`, `optional`, or `ignored` (then a base given
            in the recipe takes part like any expert).
        experts: the least and the most number of models besides the base (None: no limit).
        formula: the arithmetic, in plain text.
        source: paper (authors, year, arXiv id) or the software it comes from.
        variant: which published variant the defaults follow.
        params: the parameters by name.
        advice: when to use it and when not, in two sentences.
        family: where it stands among methods: `averages`, `task vectors`, `subspaces`,
            `arithmetic` or `evidence`; empty for what its needs suggest.
        example: a recipe (YAML) that runs; models are named base, expert_a, expert_b.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    base: ClassVar[Literal["required", "optional", "ignored"]] = "required"
    experts: ClassVar[tuple[int, int | None]] = (1, None)
    formula: ClassVar[str]
    source: ClassVar[str]
    variant: ClassVar[str] = "mergekit"
    params: ClassVar[Mapping[str, Param]] = {}
    example: ClassVar[str] = ""
    advice: ClassVar[str] = ""
    family: ClassVar[str] = ""
    symmetric: ClassVar[bool] = True
    """Whether the order of the experts is immaterial, given their parameters move with them."""
    idempotent: ClassVar[bool] = True
    """Whether equal inputs give that input back, at weights that sum to one."""
    random: ClassVar[bool] = False
    solving: ClassVar[int] = 3
    """Blocks in float64 that `combine` holds at once, of a method that is given matrices."""
    unfused: ClassVar[int] = 0
    """Blocks for each input that functions hold which cannot be fused; 0 if they can be."""
    copies: ClassVar[int] = 2
    """Blocks for each input that functions hold in plain torch, where they could be fused."""

    def access(self, p: Settings) -> Access:
        """How much of a tensor is needed at once."""
        return Access.FLAT

    def needs(self, p: Settings) -> tuple[Need, ...]:
        """The statistics it reads beside the weights. Called before any data is read."""
        return ()

    def problem(self, p: Settings, experts: int) -> str | None:
        """Why these parameters cannot go together, or None. Called before any data is read."""
        return None

    def baseless(self, p: Settings) -> str | None:
        """Why these parameters need a base, where one is optional; None if they do not."""
        return None

    def scores(self, x: Inputs, s: Settings) -> list[Tensor]:
        """Non-negative scores to select by, one tensor per selection; [] for no selection."""
        return []

    def ranks(self, p: Settings, n: int, nonzero: Sequence[int]) -> list[list[int]]:
        """For each score, which order statistics are wanted, as counts from the top.

        ``r`` asks for the threshold that exactly the r largest scores reach; 0 for one that none
        reaches, n for one that all reach; ``-r`` for the r-th smallest score itself, -1 for the
        least and -n for the largest of all. `nonzero` counts each score's non-zero elements, if
        `counts_nonzero`; else it is empty.
        """
        return []

    counts_nonzero: ClassVar[bool] = False
    rounds: ClassVar[int] = 1
    """How often scores are ranked. With more than one, `scores` and `ranks` find the number of the
    round, from 0, as ``s.round`` (0 where it is missing), `scores` the thresholds of the rounds
    before; in the end ``s.thresholds`` has those of all rounds, one after another."""

    def ranked(self, p: Settings) -> bool:
        """Whether ``x.ranks`` (each score's rank within its row) is needed; `ranks` then asks for
        nothing."""
        return False

    def scale(self, p: Settings, described: bool) -> str:
        """What the scores are measured in, for thresholds over the whole model.

        Tensors of different scales do not share one. `described` says whether the tensor has
        the statistics of `needs`.
        """
        return ""

    def masks(self, x: Inputs, s: Settings) -> list[Tensor]:
        """Masks made from ``x.ranks``, if that is all the ranks are for; [] otherwise.

        Ranks are costly. With masks they are found once; `terms` and `combine` are given
        ``x.masks`` and no ranks.
        """
        return []

    def terms(self, x: Inputs, s: Settings) -> dict[str, Tensor]:
        """Elementwise expressions to be summed over the whole tensor; {} for none."""
        return {}

    def needs_at_defaults(self) -> tuple[Need, ...]:
        """`needs` with every parameter that has a default at it."""
        return self.needs(Settings({name: param.default for name, param in self.params.items()}))

    def pooled(self, p: Settings) -> bool:
        """Whether the terms are to be summed over all tensors of the model, not over one."""
        return False

    def mixture(self, p: Settings, base: bool, experts: int) -> list[float]:
        """How much of the result each input is, for statistics of activations that are pooled.

        Experts count by `weight` where the method has it, negative ones as 0, and a base from
        which their task vectors are added has what they leave of 1. Without weights all experts
        count alike, and a base only beside a single one.

        Args:
            p: the method's parameters.
            base: there is a base model that is no expert.
            experts: how many others there are.

        Returns:
            Shares that sum to 1: the base's first, if there is one, then each expert's.
        """
        weights = getattr(p, "weight", None)
        if isinstance(weights, list):
            parts = [max(0.0, w) for w in weights]
            divided = getattr(p, "normalize", False) or self.base != "required"
            rest = 0.0 if divided else max(0.0, 1.0 - sum(parts))
        else:
            parts, rest = [1.0] * experts, float(experts == 1)
        found = [*([rest] if base else []), *parts]
        return (
            [part / sum(found) for part in found] if sum(found) else [1 / len(found)] * len(found)
        )

    def normalized(self, p: Settings) -> str:
        """What divides the weights by their sum, so that a factor on all of them has no effect.

        The parameter that does (a switch, or one with another choice), the method's own name if
        it always does, or nothing.
        """
        return "normalize" if "weight" in self.params and getattr(p, "normalize", False) else ""

    def summed(self, p: Settings) -> list[float] | None:
        """Factors of the task vectors, if the result is the base plus their weighted sum.

        None if it is not, or if that depends on their elements. Adapters can then be merged
        without making the matrices that they stand for.
        """
        return None

    def turns(self, p: Settings) -> tuple[bool, bool]:
        """Whether a matrix's result turns with its task vectors: with their outputs, and inputs.

        ``f(U d_1, ..., U d_n) = U f(d_1, ..., d_n)``, and likewise from the right, for any U with
        orthonormal columns, however large the matrices are. Adapters, which span little, can then
        be merged within what they span.
        """
        return False, False

    def coefficients(self, totals: Mapping[str, float], p: Settings, n: int) -> dict[str, Any]:
        """Scalars for `combine`: floats, or lists of floats. `n` counts the tensor's elements.

        The result joins the parameters: ``{"scale": 2.0}`` is read as ``s.scale``.
        """
        return {}

    def recorded(self, totals: Mapping[str, float], p: Settings) -> dict[str, float]:
        """Numbers over the whole model, made of `pooled` sums, to be kept in the provenance.

        For what a later recipe must be told of this merge.
        """
        return {}

    @abstractmethod
    def combine(self, x: Inputs, s: Settings) -> Tensor:
        """The merged block, of the inputs' shape."""
