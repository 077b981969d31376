"""What experts change in the outputs of single attention heads.

A head's output is its part of what the output projection adds up, without that one's bias. The
tensors in no head (norms that heads share, biases behind them) are one more part of the block.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.evidence.models import Site, Sites
from mergewise.guides._outputs._heads import Heads, Weights, find_heads, inner, output_of
from mergewise.guides._outputs._submodule import Family, Measure, Outputs, Submodule, products

if TYPE_CHECKING:
    from torch import Tensor


class HeadMeasure(Measure):
    """Runs one attention with everybody's heads; one whose heads are not found, as a whole."""

    def __init__(self, part: Submodule, sites: Sites, family: Family) -> None:
        super().__init__(part, sites, family)
        self._sites, self._family = sites, family
        self._heads: Heads | None = None
        self._grams: list[Tensor] = []

    def _add(self, args: Any, kwargs: Any) -> None:
        if self._rows == 0:
            self._heads = self._known(args, kwargs)
        heads = self._heads
        if heads is None or not self._places:
            super()._add(args, kwargs)
            return
        before = self._by_group(heads, self._base, args, kwargs)
        after = [self._by_group(heads, w, args, kwargs) for w in self._only(heads, True)]
        found = [
            products([own[group] - before[group] for own in after]) for group in range(heads.count)
        ]
        known = self._grams or [torch.zeros_like(gram) for gram in found]
        self._grams = [a + b for a, b in zip(known, found, strict=True)]
        if self._rest:
            plain = self._outputs(self._base, args, kwargs)
            each = self._only(heads, False)
            self._gram += products([self._outputs(w, args, kwargs) - plain for w in each])
        self._rows += len(before[0])

    def outputs(self, model: str) -> dict[str, Outputs]:
        """By path, a group's ``PATH.headG`` and ``PATH.rest``; raises as `Measure.outputs`."""
        if not self._grams:
            return super().outputs(model)
        tensors, places = tuple(self._places), self._places
        found = {
            f"{self.part.path}.head{g}": Outputs(tensors, self._mean(gram, model), g, places)
            for g, gram in enumerate(self._grams)
        }
        if self._rest:
            mean = self._mean(self._gram, model)
            found[f"{self.part.path}.rest"] = Outputs(self._rest, mean)
        return found

    def _known(self, args: Any, kwargs: Any) -> Heads | None:
        """The heads of a block like this one, looked for once."""
        module, known = self.part.module, self._family.heads
        shapes = tuple((name, tuple(p.shape)) for name, p in module.named_parameters())
        key = (type(module).__name__, shapes)
        if key not in known:
            known[key] = self._find(args, kwargs)
        return known[key]

    def _find(self, args: Any, kwargs: Any) -> Heads | None:
        module, base = self.part.module, self._base
        sites = self._matrices

        def whole() -> Any:
            return torch.func.functional_call(module, dict(base), args, kwargs)

        last = output_of(module, sites, whole)
        if last is None or f"{last[0]}.weight" not in base:
            return None

        def run(weights: Weights) -> Tensor:
            return self.tokens.rows(inner(module, last[0], weights, args, kwargs)).float()

        return find_heads(module, sites, last[0], base, run)

    @cached_property
    def _matrices(self) -> dict[str, Site]:
        start = f"{self.part.path}."
        kinds = ("linear", "conv1d_transposed")
        inside = (s for s in self._sites if s.path.startswith(start) and s.kind in kinds)
        return {site.path.removeprefix(start): site for site in inside}

    @cached_property
    def _places(self) -> dict[str, tuple[int, Tensor]]:
        """By tensor that is merged: an axis, and the group of every index along it."""
        found = {}
        for name, (axis, groups) in (self._heads.places if self._heads else {}).items():
            for one in self._sites.names.of(f"{self.part.path}.{name}"):
                if one.tensor in self.part.tensors:
                    found[one.tensor] = (axis, groups if axis else groups[one.start : one.stop])
        return found

    @cached_property
    def _rest(self) -> tuple[str, ...]:
        return tuple(name for name in self.part.tensors if name not in self._places)

    def _only(self, heads: Heads, inside: bool) -> Iterator[Mapping[str, Tensor]]:
        """Every expert's weights in heads, or in none; the base's elsewhere."""
        for own in self._experts:
            chosen: Collection[str] = [n for n in own if (n in heads.places) == inside]
            yield {**self._base, **{name: own[name] for name in chosen}}

    def _by_group(self, heads: Heads, weights: Weights, args: Any, kwargs: Any) -> list[Tensor]:
        """Each group's outputs, [tokens, channels]."""
        joined = inner(self.part.module, heads.out, weights, args, kwargs)
        rows = self.tokens.rows(joined).float()
        weight = weights[f"{heads.out}.weight"].float()
        weight = weight if heads.places[f"{heads.out}.weight"][0] == 0 else weight.T
        parts = zip(rows.chunk(heads.count, 1), weight.chunk(heads.count, 0), strict=True)
        return [values @ matrix for values, matrix in parts]
