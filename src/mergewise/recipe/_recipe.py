"""A recipe in memory: what was written, checked and brought into one shape."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from mergewise.recipe._form import Form
from mergewise.recipe._problems import Position
from mergewise.recipe._reference import ModelRef
from mergewise.recipe._resolve import Resolved, resolve
from mergewise.recipe._settings import Setting


@dataclass(frozen=True)
class Source:
    """One model of a slice.

    Attributes:
        model: which model.
        layer_range: the layers taken, from (included) and to (excluded); None for all.
        parameters: settings of this model alone.
        position: where the model is named.
        implicit: whether it is the base model, added because no source named it.
        evidence: files of statistics of this model, as written.
    """

    model: ModelRef
    layer_range: tuple[int, int] | None
    parameters: Mapping[str, Setting]
    position: Position
    implicit: bool = False
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True)
class Slice:
    """Consecutive output layers and where they come from; `base_model` is the one in force."""

    sources: tuple[Source, ...]
    base_model: ModelRef | None
    parameters: Mapping[str, Setting]
    position: Position

    @cached_property
    def base(self) -> Source | None:
        """The source that is the base model, if there is one."""
        return next((s for s in self.sources if s.model == self.base_model), None)

    def experts(self, base_role: Literal["required", "optional", "ignored"]) -> list[int]:
        """Indices of the sources that are experts of a method.

        All of them if the method ignores base models (`Method.base`), else all but the base.
        """
        base = None if base_role == "ignored" else self.base
        return [i for i, source in enumerate(self.sources) if source is not base]

    def copied(self, base_role: Literal["required", "optional", "ignored"], least: int) -> bool:
        """Whether its only model is too few for a method, so that it is taken as it is."""
        return len(self.sources) == 1 and len(self.experts(base_role)) < least

    @property
    def layers(self) -> int | None:
        """How many output layers; None for as many as the models have."""
        first = self.sources[0].layer_range
        return None if first is None else first[1] - first[0]


@dataclass(frozen=True)
class Module:
    """A part of the architecture (name None: the whole model) as slices in output order."""

    name: str | None
    slices: tuple[Slice, ...]
    parameters: Mapping[str, Setting]


@dataclass(frozen=True)
class Stage:
    """One document: one merge.

    Attributes:
        name: by which later stages refer to it.
        method: a registered method's name.
        base_model: the base, as written at the top level.
        modules: never empty. ``models:`` is one module of one slice without layer ranges.
        form: how the document wrote it.
        parameters: settings of the whole stage.
        dtype: type inputs are cast to (bfloat16, float16, float32, float64), or None.
        out_dtype: type of the result, or None.
        tokenizer: None, or ``{"source": "union" | "base" | reference, "tokens": {...},
            "pad_to_multiple_of": int}``, the last two if given.
        chat_template: a known name, Jinja text, or None.
        seed: of the random methods.
        exclude: globs; matching tensors keep the base's values.
        missing: what to do with tensors that only some models have.
        guide: the guide that is to find this stage's numbers, as written; a mapping with its
            ``name``, or None.
        batch_norm: what to do with running means and variances.
        makes: what the recipe makes instead of a checkpoint (its `form`), or None.
        native: whether the document uses what mergekit does not have.
        position: where the document begins.
        positions: where each top-level value is.
    """

    name: str | None
    method: str
    base_model: ModelRef | None
    modules: tuple[Module, ...]
    form: Literal["models", "slices", "modules"]
    parameters: Mapping[str, Setting]
    dtype: str | None
    out_dtype: str | None
    tokenizer: Mapping[str, Any] | None
    chat_template: str | None
    seed: int | None
    exclude: tuple[str, ...]
    missing: Literal["error", "available", "copy"]
    native: bool
    position: Position
    positions: Mapping[str, Position] = field(default_factory=dict)
    guide: Mapping[str, Any] | None = None
    batch_norm: Literal["pool", "merge", "copy"] = "pool"
    makes: Form | None = None

    @property
    def models(self) -> tuple[ModelRef, ...]:
        """All distinct models: the base first, then in document order."""
        refs = [self.base_model] if self.base_model else []
        refs += [
            source.model
            for module in self.modules
            for slice_ in module.slices
            for source in slice_.sources
        ]
        return tuple(dict.fromkeys(refs))

    def excludes(self, tensor: str) -> bool:
        """Whether a glob of `exclude` matches the tensor's name (case counts)."""
        return any(fnmatch.fnmatchcase(tensor, pattern) for pattern in self.exclude)

    def resolve(
        self,
        name: str,
        *,
        module: Module,
        slice_: Slice,
        source: Source | None,
        t: float,
        output_name: str,
        input_name: str | None = None,
        kind: type = float,
    ) -> Resolved | None:
        """The value of parameter `name` for one tensor, or None if no level gives one.

        Args:
            name: the parameter.
            module: the module of the tensor.
            slice_: the slice of the tensor.
            source: for a per-model parameter, the model; None for one that all share.
            t: position of the layer in its slice, 0 to 1; 0 outside the layers.
            output_name: the output tensor's name; filters of shared parameters look at it.
            input_name: the input tensor's name; filters of per-model parameters look at it.
            kind: the parameter's type (`Param.kind`).
        """
        levels = [slice_.parameters, module.parameters, self.parameters]
        if source is not None:
            levels.insert(0, source.parameters)
        tensor = output_name if source is None else (input_name or output_name)
        return resolve(name, levels, t, tensor, kind)


@dataclass(frozen=True)
class Recipe:
    """A checked recipe.

    Attributes:
        path: the file, or ``<recipe>``.
        text: the document; with overrides, as they left it (comments are lost then).
        stages: in order; the last is the output.
        digest: sha256 of what the documents say; comments and the order of keys do not matter.
    """

    path: str
    text: str
    stages: tuple[Stage, ...]
    digest: str

    @property
    def output(self) -> Stage:
        return self.stages[-1]

    def stage_of(self, ref: ModelRef, before: Stage | None = None) -> Stage | None:
        """The stage that `ref` names, or None if it is a model.

        With `before`, only the stages ahead of it count.
        """
        for stage in self.stages:
            if stage is before:
                break
            if len(self.stages) > 1 and stage.name == ref.path and ref.revision is None:
                return stage
        return None
