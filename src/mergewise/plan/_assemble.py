"""From what a stage asks for to output tensors: which modules, which layers, which config."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mergewise.checkpoint import (
    ModelModule,
    find_modules,
    layer_count,
    layer_kinds,
    module_called,
    shown,
    with_layers,
)
from mergewise.errors import MergewiseError
from mergewise.plan._model import View
from mergewise.plan._parts import Part, find_part
from mergewise.plan._prefix import prefix_between
from mergewise.plan._slots import (
    Slot,
    output_layers,
    slice_slots,
    whole_model_slots,
    whole_part_slots,
)
from mergewise.plan._views import describe
from mergewise.recipe import ModelRef, Module, Position, Slice, Source, Stage

REST = "rest"
"""The name by which a recipe means every module that it does not name."""

Report = Callable[[Position, str], None]


@dataclass
class Assembly:
    """What a stage's output is put together from.

    Attributes:
        donor: the model whose config and small files the output gets.
        config: that config, with layers as they are in the output.
        sliced: whether layers are put together anew.
        omitted: input tensors that no slice can take, and why.
        remarks: what the user should know, but need not change.
    """

    donor: View
    config: dict[str, Any] | None
    slots: list[Slot] = field(default_factory=list)
    sliced: bool = False
    omitted: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def assemble(stage: Stage, views: Mapping[ModelRef, View], report: Report) -> Assembly:
    """The output tensors of a stage; what cannot be done is told to `report`."""
    return _Assembler(stage, views, report).run()


class _Assembler:
    def __init__(self, stage: Stage, views: Mapping[ModelRef, View], report: Report) -> None:
        self.stage = stage
        self.views = views
        self.problems = 0
        self._report = report
        donor = _donor(stage, views)
        self.done = Assembly(donor, donor.config)
        self._parts: dict[tuple[str, str], Part | None] = {}
        self._peculiar: dict[tuple[str, str], dict[int, str]] = {}

    def run(self) -> Assembly:
        first = self.stage.modules[0]
        if first.name is None and first.slices[0].layers is None:
            views = [self.views[source.model] for source in first.slices[0].sources]
            prefixes = [self._prefix(view) for view in views]
            self.done.slots = whole_model_slots(first, views, prefixes)
            return self.done
        self.modules = find_modules(self.done.donor.tensors)
        for target, module in self._targets():
            if module.slices[0].layers is None or target.name in self._beside:
                self._whole(target, module)
            else:
                self._sliced(target, module)
        return self.done

    def _prefix(self, view: View) -> tuple[str, str]:
        """What a model's names begin with, and the donor's in its place."""
        donor = self.done.donor
        found = prefix_between(donor.tensors, view.tensors)
        if found is None:
            return "", ""
        theirs, ours = (shown(prefix) if prefix else "no prefix" for prefix in found)
        self.done.remarks.append(
            f"names of {view.label} begin with {theirs}, those of {donor.label} with {ours}; they "
            "are otherwise the same, and merged under the latter"
        )
        return found

    def report(self, position: Position, message: str) -> None:
        self.problems += 1
        self._report(position, message)

    def _targets(self) -> list[tuple[ModelModule, Module]]:
        """Each module of the model, and what the recipe says of it."""
        self._beside: frozenset[str] = frozenset()
        if self.stage.modules[0].name is None:
            return self._main(self.stage.modules[0])
        found: dict[str, tuple[ModelModule, Module]] = {}
        for module in self.stage.modules:
            if module.name == REST and REST not in self.modules:
                continue
            called = module_called(str(module.name), self.modules)
            if called is None:
                self._unknown(module)
            elif called.name in found:
                other = found[called.name][1].name
                self.report(
                    _at(module),
                    f"modules: {module.name} and {other} are the same part of the model",
                )
            else:
                found[called.name] = called, module
        return [*found.values(), *self._others(found)]

    def _main(self, module: Module) -> list[tuple[ModelModule, Module]]:
        """`slices` without `modules`: of the language model; what stands beside it stays whole."""
        main = next(
            (self.modules[n] for n in ("default", "text_decoder") if n in self.modules), None
        )
        if main is None:
            names = ", ".join(self.modules)
            self.report(
                self.stage.positions.get("slices", self.stage.position),
                f"slices: {self.done.donor.label} has several parts with layers ({names}); say "
                "which with `modules: {encoder: {slices: ...}, decoder: {models: ...}, ...}`",
            )
            return []
        self._beside = frozenset(self.modules) - {main.name}
        return [(its, module) for its in self.modules.values()]

    def _unknown(self, module: Module) -> None:
        close = difflib.get_close_matches(str(module.name), self.modules, n=1, cutoff=0.5)
        hint = f"did you mean `{close[0]}`? " if close else ""
        self.report(
            _at(module),
            f"modules: {self.done.donor.label} has no module {module.name!r}; {hint}it has: "
            + "; ".join(_described(its) for its in self.modules.values()),
        )

    def _others(
        self, found: Mapping[str, tuple[ModelModule, Module]]
    ) -> list[tuple[ModelModule, Module]]:
        """The modules not named, which `rest` is about; every tensor must come from somewhere."""
        left = [module for name, module in self.modules.items() if name not in found]
        rest = next((m for m in self.stage.modules if m.name == REST), None)
        if rest is None and left and not self.problems:
            self.report(
                self.stage.positions.get("modules", self.stage.position),
                "modules: nothing is said of " + "; ".join(map(_described, left)) + "; add each, "
                f"or `{REST}: {{models: [{{model: {self.done.donor.label}}}]}}` for all of them",
            )
        if rest is None:
            return []
        if rest.slices[0].layers is not None:
            self.report(
                _at(rest), f"modules.{REST}: `models` expected, got `slices`; name the module"
            )
            return []
        if not left:
            self.report(_at(rest), f"modules.{REST}: every module is named; remove it")
        return [(module, rest) for module in left]

    def _whole(self, target: ModelModule, module: Module) -> None:
        parts = self._its(target, module.slices[0].sources)
        if parts is None:
            return
        self.done.slots += whole_part_slots(module, parts)
        chosen = parts[_described_by(module.slices[0])]
        kept = [(chosen, number) for number in range(chosen.count)]
        if not _alike(chosen.view, self.done.donor, target.name, chosen.count):
            self._describe(target, module, kept)

    def _sliced(self, target: ModelModule, module: Module) -> None:
        if target.layers is None:
            self.report(_at(module), f"slices: no repeated layers found in {_described(target)}, "
                        f"of {self.done.donor.label}")  # fmt: skip
            return
        found = [self._its(target, slice_.sources) for slice_ in module.slices]
        parts = [its for its in found if its is not None]
        if len(parts) < len(found) or not self._in_range(module, parts):
            return
        self.done.sliced = True
        self.done.slots += slice_slots(module, parts)
        kept = []
        for slice_, its, k in output_layers(module.slices, parts):
            at = _described_by(slice_)
            first = slice_.sources[at].layer_range
            assert first is not None
            kept.append((its[at], first[0] + k))
            self._stays(slice_, its[at], first[0] + k, len(kept) - 1)
        self._leave_out(parts)
        self._describe(target, module, kept)

    def _its(self, target: ModelModule, sources: Sequence[Source]) -> list[Part] | None:
        found = []
        for source in sources:
            view = self.views[source.model]
            key = view.label, target.name
            if key not in self._parts:
                self._parts[key] = find_part(view, target.name, target)
            part = self._parts[key]
            if part is None:
                self.report(source.position, f"{view.label} has no {target.name}; it has: "
                            + ", ".join(find_modules(view.tensors)))  # fmt: skip
            else:
                found.append(part)
        return found if len(found) == len(sources) else None

    def _in_range(self, module: Module, parts: Sequence[Sequence[Part]]) -> bool:
        before = self.problems
        for slice_, its in zip(module.slices, parts, strict=True):
            for source, part in zip(slice_.sources, its, strict=True):
                if source.layer_range and source.layer_range[1] > part.count:
                    where = f" in {part.name}" if len(self.modules) > 1 else ""
                    self.report(
                        source.position,
                        f"layer_range {list(source.layer_range)}: {part.view.label} has "
                        f"{part.count} layers{where} (0 to {part.count - 1}), so the range may "
                        f"end at {part.count} at most",
                    )
        return self.problems == before

    def _stays(self, slice_: Slice, part: Part, number: int, index: int) -> None:
        """Refuse to move a layer that its config does not tell from others, but its tensors do."""
        key = part.view.label, part.name
        if key not in self._peculiar:
            self._peculiar[key] = part.peculiar()
        odd = self._peculiar[key]
        if number == index or not odd.keys() & {number, index}:
            return
        which, why = (number, odd[number]) if number in odd else (index, odd[index])
        self.report(
            slice_.position,
            f"layer {number} of {part.view.label} cannot become layer {index}: layer {which} "
            f"{why}, unlike the others of its kind, and nothing in the config says so; it must "
            "stay where it is",
        )

    def _leave_out(self, parts: Sequence[Sequence[Part]]) -> None:
        for part in {id(part): part for its in parts for part in its}.values():
            for name in part.beyond:
                why = f"of a layer beyond the {part.count} that the config counts"
                self.done.omitted[name] = f"{why}; slices leave it out"

    def _describe(
        self, target: ModelModule, module: Module, kept: Sequence[tuple[Part, int]]
    ) -> None:
        donor = self.done.config
        if donor is None or self.problems:
            return
        try:
            self.done.config = with_layers(
                donor,
                [number for _, number in kept],
                target.name,
                [part.view.config or donor for part, _ in kept],
            )
        except MergewiseError as error:
            what = "slices" if module.slices[0].layers else f"modules.{module.name}"
            message = f"{what}: {describe(error)}, in {self.done.donor.label}"
            self.report(module.slices[0].position, message)


def _donor(stage: Stage, views: Mapping[ModelRef, View]) -> View:
    """The base, else the first model; for `modules`, the first with most of them."""
    models = [views[ref] for ref in stage.models]
    if stage.form != "modules":
        return models[0]
    return max(models, key=lambda view: len(find_modules(view.tensors)))


def _described_by(slice_: Slice) -> int:
    """The source whose config says of which kind a slice's layers are: the base, else the first."""
    return next((i for i, source in enumerate(slice_.sources) if source is slice_.base), 0)


def _alike(one: View, other: View, module: str, count: int) -> bool:
    """Whether two configs say the same of the layers of a module."""
    if one is other or count == 0 or one.config is None or other.config is None:
        return True
    mine, theirs = (
        (layer_count(view.config, module), layer_kinds(view.config, module, count))
        for view in (one, other)
    )
    return mine == theirs


def _at(module: Module) -> Position:
    return module.slices[0].position


def _described(module: ModelModule) -> str:
    if module.layers:
        return f"`{module.name}` ({module.layers.count} layers, {module.layers.prefix}*)"
    return f"`{module.name}` ({len(module.tensors)} tensors such as {module.tensors[0]})"
