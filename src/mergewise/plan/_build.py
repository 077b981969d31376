"""Build a plan from a recipe and the headers of its models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mergewise.checkpoint import find_layers, with_layers
from mergewise.errors import Diagnostic, MergewiseError, RecipeError
from mergewise.evidence import Evidence
from mergewise.methods import get_method
from mergewise.plan._evidence import open_evidence
from mergewise.plan._fates import Fates
from mergewise.plan._model import MergePlan, StagePlan, TensorPlan, View
from mergewise.plan._patterns import idle_patterns
from mergewise.plan._slots import Slot, slice_slots, whole_model_slots
from mergewise.plan._tokenizers import Tokenizers, stage_vocabulary
from mergewise.plan._views import describe, open_view, tokenizer_view
from mergewise.plan._vocabulary import StageVocabulary, asked_at
from mergewise.recipe import ModelRef, Module, Position, Recipe, Source, Stage, load_recipe

_CONFIG_KEYS = (
    "vocab_size", "rope_theta", "rope_scaling", "rope_parameters", "max_position_embeddings",
    "hidden_act", "rms_norm_eps", "num_attention_heads", "num_key_value_heads", "head_dim",
)  # fmt: skip


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
        return MergePlan(
            self.recipe, tuple(self.stages), checkpoints, tuple(self.warnings), self.evidence
        )

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
        for source in self._sources():
            for text in source.evidence:
                try:
                    self.evidence.setdefault(text, open_evidence(text, self.recipe))
                except MergewiseError as error:
                    self._problem(source.position, f"evidence: {describe(error)}")

    def _sources(self) -> list[Source]:
        """Every model of every stage, as often as it is named."""
        return [
            source
            for stage in self.recipe.stages
            for module in stage.modules
            for slice_ in module.slices
            for source in slice_.sources
        ]

    def _view(self, ref: ModelRef, stage: Stage) -> View:
        earlier = self.recipe.stage_of(ref, stage)
        if earlier is None:
            return self.views[str(ref)]
        planned = self.stages[self.recipe.stages.index(earlier)]
        return View(
            label=planned.label,
            tensors={name: t.meta for name, t in planned.tensors.items()},
            config=_stage_config(planned),
            folder=planned.donor.folder,
            stage=planned.index,
            tied=planned.tied,
            maybe_tied=planned.maybe_tied,
            tokenizer=planned.vocabulary.tokenizer if planned.vocabulary else None,
        )

    def _stage(self, index: int, stage: Stage) -> StagePlan | None:
        if len(stage.modules) > 1 or stage.modules[0].name not in (None, "default", "decoder"):
            names = ", ".join(str(m.name) for m in stage.modules)
            self._problem(
                stage.position,
                f"modules ({names}): merging the parts of a multi-module architecture by different "
                "rules is not built yet; a recipe with `models` merges all parts alike",
            )
            return None
        module = stage.modules[0]
        views = {ref: self._view(ref, stage) for ref in stage.models}
        donor = views[stage.models[0]]
        unbuilt = self._unbuilt(stage, views)
        if unbuilt:
            self.problems += unbuilt
            return None
        slots, layers = self._slots(stage, module, views, donor)
        if self.problems:
            return None
        found = self._vocabulary(stage, views)
        if self.problems:
            return None
        vocabulary, told = found
        planned = self._fates(index, stage, module, views, donor, slots, layers, vocabulary)
        return planned and replace(planned, warnings=(*planned.warnings, *told))

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

    def _unbuilt(self, stage: Stage, views: Mapping[ModelRef, View]) -> list[Diagnostic]:
        """Requests that this version cannot meet."""
        found = []
        if stage.chat_template:
            found.append(
                (
                    "chat_template",
                    "setting a chat template is not built yet; leave it out, the base's is copied",
                )
            )
        return [
            Diagnostic(at.path, at.line, at.column, f"{key}: {message}")
            for key, message in found
            for at in [stage.positions.get(key, stage.position)]
        ]

    def _slots(
        self, stage: Stage, module: Module, views: Mapping[ModelRef, View], donor: View
    ) -> tuple[list[Slot], tuple[int, ...] | None]:
        models = [[views[source.model] for source in s.sources] for s in module.slices]
        if module.slices[0].layers is None:
            return whole_model_slots(module.slices[0], models[0]), None
        groups = find_layers(list(donor.tensors))
        if not groups:
            self._problem(stage.position, f"slices: no repeated layers found in {donor.label}")
            return [], None
        for slice_ in module.slices:
            for source in slice_.sources:
                self._check_range(source.layer_range, source.position, views[source.model])
        if self.problems:
            return [], None
        layers: list[int] = []
        for slice_ in module.slices:
            chosen = slice_.base or slice_.sources[0]
            if chosen.layer_range:
                layers += range(*chosen.layer_range)
        return slice_slots(module.slices, models), tuple(layers)

    def _check_range(
        self, layer_range: tuple[int, int] | None, position: Position, view: View
    ) -> None:
        groups = find_layers(list(view.tensors))
        count = max((g.count for g in groups), default=0)
        if layer_range and layer_range[1] > count:
            self._problem(
                position,
                f"layer_range {list(layer_range)}: {view.label} has {count} layers "
                f"(0 to {count - 1}), so the range may end at {count} at most",
            )

    def _fates(
        self,
        index: int,
        stage: Stage,
        module: Module,
        views: Mapping[ModelRef, View],
        donor: View,
        slots: list[Slot],
        layers: tuple[int, ...] | None,
        vocabulary: StageVocabulary | None,
    ) -> StagePlan | None:
        ties = [v.tied or v.maybe_tied for v in views.values()]
        tie = next((pair for pair in ties if pair), None)
        all_tied = tie is not None and all(v.tied for v in views.values())
        omitted: dict[str, str] = {}
        tensors: dict[str, TensorPlan] = {}
        fates = Fates(
            stage, get_method(stage.method), module, self.evidence, self.collected, vocabulary
        )
        if tie and not all_tied and layers is not None:
            slots = _with_head(slots, tie, views)
        for slot in slots:
            used = [views[source.model] for source in slot.slice_.sources]
            is_head = tie is not None and slot.name == tie[0]
            if is_head and all_tied:
                omitted[slot.name] = f"tied to {tie[1] if tie else ''}, which is written once"
                continue
            tensor = fates.decide(_untie(slot, used) if is_head else slot, used)
            if tensor:
                tensors[slot.name] = tensor
        fates.finish()
        self.problems += fates.problems
        if self.problems:
            return None
        names = {name for slot in slots for name in (slot.name, *slot.inputs) if name}
        planned = StagePlan(
            index=index,
            stage=stage,
            tensors=tensors,
            omitted=omitted,
            donor=donor,
            views=tuple(views.values()),
            maybe_tied=tie if tie and not all_tied and tie[0] in tensors else None,
            tied=tie if all_tied else None,
            layers=layers,
            vocabulary=vocabulary,
            warnings=(
                *fates.warnings,
                *idle_patterns(stage, module, names),
                *_config_warnings(donor, list(views.values()), mapped=vocabulary is not None),
            ),
        )
        try:
            _stage_config(planned)
        except MergewiseError as error:
            self._problem(stage.position, f"slices: {describe(error)}, in {donor.label}")
            return None
        return planned


def _references(stage: Stage) -> list[tuple[ModelRef, Position]]:
    found = []
    if stage.base_model:
        at = stage.positions.get("base_model", stage.position)
        found.append((stage.base_model, at))
    for module in stage.modules:
        for slice_ in module.slices:
            found += [(source.model, source.position) for source in slice_.sources]
    return found


def _with_head(
    slots: list[Slot], tie: tuple[str, str], views: Mapping[ModelRef, View]
) -> list[Slot]:
    """Slots with a head, if it is to come from a last slice whose files hold none: it is tied."""
    last = slots[-1].slice_
    lacks = all(slot.name != tie[0] for slot in slots)
    if not lacks or not any(views[source.model].tied for source in last.sources):
        return slots
    return [*slots, Slot(tie[0], last, 0.0, (None,) * len(last.sources))]


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
    for view in views:
        if view is donor or not donor.config or not view.config:
            continue
        if view.config.get("architectures") != donor.config.get("architectures"):
            found.append(
                f"architectures differ: {view.config.get('architectures')} in {view.label}, "
                f"{donor.config.get('architectures')} in {donor.label}"
            )
        odd = [k for k in _CONFIG_KEYS if view.config.get(k) != donor.config.get(k)]
        odd = [k for k in odd if not (mapped and k == "vocab_size")]
        if odd:
            found.append(
                f"{view.label} differs from {donor.label} in config {', '.join(odd)}; "
                f"the output gets {donor.label}'s"
            )
    return found


def _stage_config(planned: StagePlan) -> dict[str, object] | None:
    config = planned.donor.config
    if config and planned.vocabulary:
        config = planned.vocabulary.config(config)[0]
    return with_layers(config, list(planned.layers)) if config and planned.layers else config
