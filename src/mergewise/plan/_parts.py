"""A module of a model, its tensors sorted into layers, under the names they get in the output."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from mergewise.checkpoint import (
    ModelModule,
    find_modules,
    layer_count,
    layer_index,
    layer_kinds,
    layer_prefix,
)
from mergewise.plan._model import View

_TEXT = ("default", "text_decoder")


@dataclass(frozen=True)
class Part:
    """One module as one model has it.

    Attributes:
        view: the model.
        name: of the module, in the output.
        prefix: what the names of its layers begin with in the output.
        loose: the names of tensors outside the layers: in the output, and here.
        layers: by number, what follows it in the name (with its dot), and the name here.
        count: layers that slices may take: those that the config counts.
    """

    view: View
    name: str
    prefix: str
    loose: Mapping[str, str]
    layers: Mapping[int, Mapping[str, str]]
    count: int

    @property
    def beyond(self) -> list[str]:
        """Tensors of layers past the last that counts, such as those for predicting ahead."""
        return [n for number in self.layers if number >= self.count for n in self.names(number)]

    def names(self, number: int) -> list[str]:
        return list(self.layers.get(number, {}).values())

    def peculiar(self) -> dict[int, str]:
        """Layers whose tensors the config does not tell from others of their kind, and how.

        ModernBERT's first layer lacks a norm that all others have: it can be nowhere else.
        """
        kinds = layer_kinds(self.view.config, self.name, self.count)
        groups: dict[Hashable, list[int]] = {}
        for number in range(self.count):
            groups.setdefault(kinds[number], []).append(number)
        found: dict[int, str] = {}
        for group in groups.values():
            found |= self._odd_ones(group)
        return found

    def _odd_ones(self, group: list[int]) -> dict[int, str]:
        signatures = {number: frozenset(self.layers.get(number, ())) for number in group}
        every = list(signatures.values())
        first = signatures[group[0]]  # where it is one against one, the first is the odd one
        usual = max(every, key=lambda one: (every.count(one), one != first))
        return {n: _difference(s, usual) for n, s in signatures.items() if s != usual}


def _difference(one: frozenset[str], usual: frozenset[str]) -> str:
    lacks, adds = sorted(usual - one), sorted(one - usual)
    return f"lacks {lacks[0][1:]}" if lacks else f"has {adds[0][1:]}"


def find_part(view: View, name: str, donor: ModelModule) -> Part | None:
    """The module of a model, matched with that of the donor; None if the model has no such part.

    A language model alone may stand for the language part of a larger model, and the other way
    round; names that differ in a prefix then (``model.`` and ``language_model.model.``) are
    brought to the donor's.
    """
    modules = find_modules(view.tensors)
    found = modules.get(name)
    if found is None and name in _TEXT:
        found = next((modules[other] for other in _TEXT if other in modules), None)
    if found is None:
        return None
    ours = donor.layers.prefix if donor.layers else ""
    theirs = found.layers.prefix if found.layers else ""
    return _sorted(view, name, found, ours, theirs)


def _sorted(view: View, name: str, module: ModelModule, ours: str, theirs: str) -> Part:
    shared = _only_in_one_layer(module, theirs)
    loose: dict[str, str] = {}
    layers: dict[int, dict[str, str]] = {}
    old, new = _stems(theirs, ours)
    for tensor in module.tensors:
        number = layer_index(tensor)
        inside = module.layers is not None and layer_prefix(tensor) == theirs
        if not inside or number is None:
            known = tensor.startswith(old)
            loose[new + tensor.removeprefix(old) if known else tensor] = tensor
        elif tensor in shared:
            loose[ours + tensor.removeprefix(theirs)] = tensor
        else:
            suffix = tensor[len(f"{theirs}{number}") :]
            layers.setdefault(number, {})[suffix] = tensor
    highest = module.layers.count if module.layers else 0
    stated = layer_count(view.config, name) if highest else 0
    count = min(highest, stated) if stated else highest
    return Part(view, name, ours, loose, layers, count)


def _only_in_one_layer(module: ModelModule, prefix: str) -> set[str]:
    """T5's position biases: the first layer holds them, all layers use them."""
    found = [n for n in module.tensors if n.startswith(prefix) and "relative_attention_bias" in n]
    numbers = {layer_index(name) for name in found}
    return set(found) if len(numbers) == 1 and prefix else set()


def _stems(theirs: str, ours: str) -> tuple[str, str]:
    """What to take from the front of their names, and what to put there."""
    a, b = theirs.split("."), ours.split(".")
    while a and b and a[-1] == b[-1]:
        a.pop()
        b.pop()
    return "".join(f"{part}." for part in a), "".join(f"{part}." for part in b)
