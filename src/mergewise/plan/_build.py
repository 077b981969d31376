"""Build a plan from a recipe and the headers of its models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mergewise.checkpoint import SAFETY, find_modules
from mergewise.errors import Diagnostic, MergewiseError, RecipeError
from mergewise.evidence import Evidence
from mergewise.methods import get_method
from mergewise.plan._assemble import Assembly, assemble
from mergewise.plan._chat import Told, stage_template
from mergewise.plan._config_facts import differing
from mergewise.plan._evidence_files import open_files
from mergewise.plan._fates import Fates
from mergewise.plan._layouts import in_one_layout
from mergewise.plan._model import MergePlan, StagePlan, TensorPlan, View
from mergewise.plan._patterns import idle_patterns
from mergewise.plan._prefix import prefix_between
from mergewise.plan._rounded import rounded_changes
from mergewise.plan._slots import Slot
from mergewise.plan._tokenizers import Tokenizers, stage_vocabulary
from mergewise.plan._views import describe, open_view, tokenizer_view
from mergewise.plan._vocabulary import StageVocabulary, asked_at
from mergewise.recipe import ModelRef, Position, Recipe, Stage, load_recipe


def build_plan(
    recipe: Recipe | str | Path | Mapping[str, object], *, collected: bool = True
) -> MergePlan:
    """Plan a merge from headers and configs alone; no tensor is read and torch is not loaded.

    Args:
        recipe: a loaded recipe, or anything `load_recipe` takes.
        collected: the evidence that methods read is there; False for a plan that cannot be run,
            made to find out what evidence will be needed.

    Raises:
        RecipeError: with every problem found, at its place in the recipe: a recipe that cannot be
            run, models that cannot be opened, tensors that do not fit together, requests that are
            not built yet.
    """
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    return _Builder(loaded, collected).build()


class _Builder:
    def __init__(self, recipe: Recipe, collected: bool) -> None:
        self.recipe = recipe
        self.collected = collected
        self.problems: list[Diagnostic] = []
        self.warnings: list[str] = []
        self.views: dict[str, View] = {}
        self.evidence: dict[str, Evidence] = {}
        self.tokenizers = Tokenizers()
        self.stages: list[StagePlan] = []

    def build(self) -> MergePlan:
        self._open_models()
        self._raise()
        for index, stage in enumerate(self.recipe.stages):
            planned = self._stage(index, stage)
            self._raise()
            assert planned is not None
            self.stages.append(planned)
            self.warnings += [f"{planned.label}: {w}" for w in planned.warnings]
        checkpoints = {v.label: v.checkpoint for v in self.views.values() if v.checkpoint}
        for checkpoint in checkpoints.values():
            self.warnings += checkpoint.warnings
        self.warnings += [_guided(stage) for stage in self.recipe.stages if stage.guide]
        warnings = tuple(dict.fromkeys(self.warnings))  # a base of two adapters is opened twice
        return MergePlan(self.recipe, tuple(self.stages), checkpoints, warnings, self.evidence)

    def _problem(self, position: Position, message: str) -> None:
        self.problems.append(Diagnostic(position.path, position.line, position.column, message))

    def _raise(self) -> None:
        if self.problems:
            raise RecipeError(sorted(self.problems, key=lambda d: (d.line, d.column)))

    def _open_models(self) -> None:
        tried: set[ModelRef] = set()
        for stage in self.recipe.stages:
            for ref, position in _references(stage):
                if ref in tried or self.recipe.stage_of(ref, stage):
                    continue
                tried.add(ref)
                try:
                    self.views[str(ref)] = open_view(ref, self.recipe)
                except MergewiseError as error:
                    self._problem(position, describe(error))
        self.evidence = open_files(self.recipe, self._problem)

    def _view(self, ref: ModelRef, stage: Stage) -> View:
        earlier = self.recipe.stage_of(ref, stage)
        if earlier is None:
            return self.views[str(ref)]
        planned = self.stages[self.recipe.stages.index(earlier)]
        return View(
            label=planned.label,
            tensors={name: t.meta for name, t in planned.tensors.items()},
            config=planned.config,
            folder=planned.donor.folder,
            stage=planned.index,
            tied=planned.tied,
            maybe_tied=planned.maybe_tied,
            tokenizer=planned.vocabulary.tokenizer if planned.vocabulary else None,
            template=planned.template,
        )

    def _stage(self, index: int, stage: Stage) -> StagePlan | None:
        views = {ref: self._view(ref, stage) for ref in stage.models}
        donor = views[stage.models[0]]
        views = {ref: self._in_layout_of(donor, view, stage) for ref, view in views.items()}
        if self.problems:
            return None
        assembly = assemble(stage, views, self._problem)
        if self.problems:
            return None
        self.warnings += assembly.remarks
        ordered = _donor_first(views, assembly.donor)
        vocabulary, told = self._vocabulary(stage, ordered)
        if self.problems:
            return None
        chat = self._template(stage, list(ordered.values()), vocabulary)
        planned = self._fates(index, stage, views, assembly, vocabulary)
        warnings = (*told, *chat.warnings)
        return planned and replace(
            planned, warnings=(*planned.warnings, *warnings), template=chat.template
        )

    def _vocabulary(
        self, stage: Stage, views: Mapping[ModelRef, View]
    ) -> tuple[StageVocabulary | None, list[str]]:
        """What becomes of tokenizers, and warnings; problems are noted."""
        told: list[str] = []
        at = stage.positions.get(asked_at(stage), stage.position)

        def opened(label: str) -> View:
            ref = ModelRef.parse(label)
            if self.recipe.stage_of(ref, stage):
                return self._view(ref, stage)
            if label not in self.views:
                self.views[label] = tokenizer_view(ref, self.recipe)
            return self.views[label]

        try:
            found = stage_vocabulary(stage, views, self.tokenizers, opened, told)
        except MergewiseError as error:
            key = f"{asked_at(stage)}: " if stage.tokenizer else ""
            self._problem(at, f"{key}{describe(error)}")
            return None, told
        if found is not None and not stage.tokenizer:
            told[:0] = [f"{of}: {text}" for of, text in found.said]
        return found, told

    def _in_layout_of(self, donor: View, view: View, stage: Stage) -> View:
        try:
            found, remark = in_one_layout(donor, view, stage.excludes)
        except MergewiseError as error:
            if stage.missing == "error" and not prefix_between(donor.tensors, view.tensors):
                self._problem(stage.position, describe(error))
            return view
        self.warnings += [remark] if remark else []
        return found

    def _template(
        self, stage: Stage, views: Sequence[View], vocabulary: StageVocabulary | None
    ) -> Told:
        """The output's chat template; problems are noted."""
        try:
            return stage_template(stage, views, vocabulary, self.tokenizers)
        except MergewiseError as error:
            at = stage.positions.get("chat_template", stage.position)
            self._problem(at, f"chat_template: {describe(error)}")
            return Told(None)

    def _fates(
        self,
        index: int,
        stage: Stage,
        views: Mapping[ModelRef, View],
        assembly: Assembly,
        vocabulary: StageVocabulary | None,
    ) -> StagePlan | None:
        donor, slots = assembly.donor, assembly.slots
        ties = [v.tied or v.maybe_tied for v in (donor, *views.values())]
        tie = next((pair for pair in ties if pair), None)
        all_tied = tie is not None and all(v.tied for v in views.values())
        omitted = dict(assembly.omitted)
        tensors: dict[str, TensorPlan] = {}
        method = get_method(stage.method)
        fates = Fates(stage, method, self.evidence, self.collected, vocabulary)
        if tie and not all_tied and assembly.sliced:
            slots = _with_head(slots, tie, views)
        for slot in slots:
            used = [views[source.model] for source in slot.slice_.sources]
            is_head = tie is not None and slot.name == tie[0]
            if is_head and all_tied:
                omitted[slot.name] = f"tied to {tie[1] if tie else ''}, which is written once"
                continue
            if slot.name.startswith(SAFETY) and slot.name not in donor.tensors:
                omitted[slot.name] = f"{donor.label} has no such safety checker"
                continue
            tensor = fates.decide(_untie(slot, used) if is_head else slot, used)
            if tensor:
                tensors[slot.name] = tensor
        fates.hint = partial(_as_modules, stage, list(views.values()))
        fates.finish()
        self.problems += fates.problems
        if self.problems:
            return None
        try:
            config, lost = _config(assembly, vocabulary)
        except MergewiseError as error:
            at = stage.positions.get(asked_at(stage), stage.position)
            self._problem(at, describe(error))
            return None
        outputs = {slot.name for slot in slots}
        names = outputs.union(*(filter(None, slot.inputs) for slot in slots))
        return StagePlan(
            index=index,
            stage=stage,
            tensors=tensors,
            omitted=omitted,
            donor=donor,
            views=tuple(views.values()),
            maybe_tied=tie if tie and not all_tied and tie[0] in tensors else None,
            tied=tie if all_tied else None,
            config=config,
            sliced=assembly.sliced,
            vocabulary=vocabulary,
            warnings=(
                *fates.warnings,
                *(f"config.json: {text}" for text in lost),
                *idle_patterns(stage, outputs, names),
                *rounded_changes(stage, views.values()),
                *_config_warnings(donor, list(views.values()), mapped=vocabulary is not None),
            ),
        )


def _references(stage: Stage) -> list[tuple[ModelRef, Position]]:
    found = []
    if stage.base_model:
        at = stage.positions.get("base_model", stage.position)
        found.append((stage.base_model, at))
    for module in stage.modules:
        for slice_ in module.slices:
            found += [(source.model, source.position) for source in slice_.sources]
    return found


def _as_modules(stage: Stage, views: list[View]) -> str:
    """How a language model alone gets into one of several parts, if that is what is wanted."""
    if stage.form != "models":
        return ""
    parts = {view.label: find_modules(view.tensors).keys() for view in views}
    alone = [label for label, names in parts.items() if names == {"default"}]
    inside = [label for label, names in parts.items() if "text_decoder" in names]
    if not (alone and inside):
        return ""
    return (
        f"; {alone[0]} is a language model alone: to merge it into the language part of "
        f"{inside[0]}, name it as a source of `modules: {{text_decoder: ...}}`"
    )


def _with_head(
    slots: list[Slot], tie: tuple[str, str], views: Mapping[ModelRef, View]
) -> list[Slot]:
    """Slots with a head, if it is to come from a last slice whose files hold none: it is tied."""
    home = next((slot.module for slot in slots if slot.name == tie[1]), slots[-1].module)
    last = home.slices[-1]
    lacks = all(slot.name != tie[0] for slot in slots)
    if not lacks or not any(views[source.model].tied for source in last.sources):
        return slots
    return [*slots, Slot(tie[0], last, 0.0, (None,) * len(last.sources), home)]


def _untie(slot: Slot, views: list[View]) -> Slot:
    """A tied model's head is its embedding, whatever else its file may hold."""
    names = [
        view.tied[1] if view.tied else name for view, name in zip(views, slot.inputs, strict=True)
    ]
    return replace(slot, inputs=tuple(names))


def _guided(stage: Stage) -> str:
    name = (stage.guide or {}).get("name")
    return f"guide {name} has yet to find its numbers; this is the plan without them"


def _config_warnings(donor: View, views: list[View], *, mapped: bool) -> list[str]:
    found = []
    known = [view.label for view in views if view.config]
    if known and not donor.config:
        found.append(
            f"{donor.label} has no config.json, so the output has none; {known[0]} has one: name "
            "it as base_model, or first, for a model that loads"
        )
    for view in views:
        if view is donor or not donor.config or not view.config:
            continue
        if view.config.get("architectures") != donor.config.get("architectures"):
            found.append(
                f"architectures differ: {view.config.get('architectures')} in {view.label}, "
                f"{donor.config.get('architectures')} in {donor.label}"
            )
        odd = differing(view.config, donor.config)
        odd = [k for k in odd if not (mapped and k == "vocab_size")]
        if odd:
            found.append(
                f"{view.label} differs from {donor.label} in config {', '.join(odd)}; "
                f"the output gets {donor.label}'s"
            )
    return found


def _donor_first(views: Mapping[ModelRef, View], donor: View) -> dict[ModelRef, View]:
    return dict(sorted(views.items(), key=lambda item: item[1] is not donor))


def _config(
    assembly: Assembly, vocabulary: StageVocabulary | None
) -> tuple[dict[str, Any] | None, list[str]]:
    """The output's config, and ids of tokens that it has no more; raises likewise."""
    config = assembly.config
    return vocabulary.config(config) if config and vocabulary else (config, [])
