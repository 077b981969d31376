"""What a plan says: the fate of every tensor, before any data is read."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mergewise.checkpoint import BITS, ChangedRef, Checkpoint, TensorRef, identity
from mergewise.evidence import Evidence
from mergewise.plan._evidence import Statistics
from mergewise.recipe import Recipe, Stage
from mergewise.vocabulary import RowMap, Tokenizer

if TYPE_CHECKING:
    from mergewise.plan._vocabulary import StageVocabulary


@dataclass(frozen=True)
class TensorMeta:
    """A tensor as headers describe it; dtype is a safetensors code such as ``BF16``."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * BITS[self.dtype] // 8


@dataclass(frozen=True)
class View:
    """A model that a stage takes in: a checkpoint, or the result of an earlier stage.

    Attributes:
        label: as the recipe calls it.
        tensors: by name, in the order of the files.
        config: its ``config.json``; None if it has none.
        folder: where its small files lie.
        checkpoint: the files; None for a stage.
        stage: the number of the stage; None for a checkpoint.
        tied: (head, embedding) if the model's output head is its embedding.
        maybe_tied: the same, if that shows only once the stage is computed; it has a head then.
        tokenizer: the one that an earlier stage or its adapter gave it; None for that of `folder`.
        template: the chat template that an earlier stage gave it; likewise.
    """

    label: str
    tensors: Mapping[str, TensorMeta]
    config: dict[str, Any] | None
    folder: Path
    checkpoint: Checkpoint | None = None
    stage: int | None = None
    tied: tuple[str, str] | None = None
    maybe_tied: tuple[str, str] | None = None
    tokenizer: Tokenizer | None = None
    template: str | None = None

    def ref(self, name: str) -> TensorRef | None:
        return self.checkpoint.tensors[name] if self.checkpoint else None


@dataclass(frozen=True)
class MappedRows:
    """How an input's rows are brought into the order of the output's vocabulary.

    Attributes:
        map: where each row comes from.
        axis: along which they lie.
        donors: the tensors of other models that fill rows, by the map's numbers.
    """

    map: RowMap
    axis: int
    donors: Mapping[int, Input]


@dataclass(frozen=True)
class Input:
    """One input of an output tensor: a tensor of a model.

    Attributes:
        meta: as the method sees it: with mapped rows it has as many as the output.
        rows: for a tensor with a vocabulary that differs from the output's.
    """

    view: View
    meta: TensorMeta
    rows: MappedRows | None = None


@dataclass(frozen=True)
class TensorPlan:
    """One output tensor.

    Attributes:
        fate: `merge` by the stage's method, `copy` of the only input, or `pool`: a running mean or
            variance of the mixture of the experts' activations (a base counts as one of them).
        values: the method's parameters for this tensor; per-model ones one per expert.
        origins: where each came from, in the same shape.
        in_dtype: inputs are rounded to this first (a recipe's `dtype`); None for as they are.
        reason: why it is copied; or that it is merged without evidence, and how.
        statistics: for each of the method's needs, one for each expert; empty if the evidence
            does not describe this tensor.
        turned: it is stored [inputs, outputs], as GPT-2's Conv1D stores it.
        means: of a running variance that is pooled: each expert's running mean.
    """

    meta: TensorMeta
    fate: Literal["merge", "copy", "pool"]
    base: Input | None
    experts: tuple[Input, ...]
    values: Mapping[str, Any] = field(default_factory=dict)
    origins: Mapping[str, Any] = field(default_factory=dict)
    in_dtype: str | None = None
    reason: str = ""
    statistics: Statistics = ()
    turned: bool = False
    means: tuple[Input, ...] = ()

    @property
    def inputs(self) -> tuple[Input, ...]:
        return (self.base, *self.experts) if self.base else self.experts


@dataclass(frozen=True)
class StagePlan:
    """One stage: its tensors in output order.

    Attributes:
        tensors: the output by name.
        omitted: input tensors that are not written, with the reason.
        maybe_tied: (head, embedding) if inputs disagree on tying: the head is left out if it
            turns out equal to the embedding after merging.
        tied: (head, embedding) if the output's head is its embedding for certain.
        donor: the model whose config and tokenizer the output gets.
        config: the donor's, as the output's layers and vocabulary are; None if it has none.
        sliced: whether layers are put together from slices.
        vocabulary: the output's tokenizer and vocabulary; None if they are simply the donor's.
    """

    index: int
    stage: Stage
    tensors: Mapping[str, TensorPlan]
    omitted: Mapping[str, str]
    donor: View
    views: tuple[View, ...]
    maybe_tied: tuple[str, str] | None = None
    tied: tuple[str, str] | None = None
    config: dict[str, Any] | None = None
    sliced: bool = False
    warnings: tuple[str, ...] = ()
    vocabulary: StageVocabulary | None = None
    template: str | None = None

    @property
    def label(self) -> str:
        return self.stage.name or f"stage {self.index + 1}"


@dataclass(frozen=True)
class MergePlan:
    """Everything a merge will do.

    Attributes:
        stages: in order; the last one's tensors are the output.
        checkpoints: every model on disk, by its label.
        evidence: every evidence file, as the recipe calls it.
        warnings: what is odd, but no reason to refuse.
    """

    recipe: Recipe
    stages: tuple[StagePlan, ...]
    checkpoints: Mapping[str, Checkpoint]
    warnings: tuple[str, ...]
    evidence: Mapping[str, Evidence] = field(default_factory=dict)

    @property
    def output(self) -> StagePlan:
        return self.stages[-1]

    @property
    def donor(self) -> Checkpoint | None:
        """The checkpoint whose form the output has: files' names, components of a pipeline."""
        view = self.output.donor
        while view.stage is not None:
            view = self.stages[view.stage].donor
        return view.checkpoint

    @property
    def seeds(self) -> dict[str, int]:
        """The seed of each stage's random masks."""
        return {stage.label: stage.stage.seed or 0 for stage in self.stages}

    @property
    def seeds_in_words(self) -> str:
        """``7``, or ``7 in first, 0 in stage 2`` where stages differ."""
        if len(set(self.seeds.values())) == 1:
            return str(next(iter(self.seeds.values())))
        return ", ".join(f"{seed} in {label}" for label, seed in self.seeds.items())

    @property
    def bytes_write(self) -> int:
        """Bytes of output tensors."""
        return sum(t.meta.nbytes for t in self.output.tensors.values())

    @property
    def bytes_read(self) -> int:
        """Bytes of input tensors that the merge looks at; some methods read them again."""
        seen: dict[tuple[str, str], int] = {}
        for stage in self.stages:
            for tensor in stage.tensors.values():
                for item in tensor.inputs:
                    if item.view.checkpoint:
                        ref = item.view.checkpoint.tensors[item.meta.name]
                        seen[item.view.label, item.meta.name] = _stored_bytes(ref)
                for statistic in (s for each in tensor.statistics for s in each):
                    seen[str(statistic.file), statistic.ref.name] = statistic.ref.nbytes
        return sum(seen.values())

    @property
    def elements(self) -> int:
        return sum(t.meta.elements for t in self.output.tensors.values())

    def digest(self) -> str:
        """A hash of all that the output's bytes depend on: recipe, inputs
        (by size and time of change; on the Hub by commit), configs, version."""
        from mergewise import __version__

        files = [
            [label, *identity(file, stamp)]
            for label, checkpoint in sorted(self.checkpoints.items())
            for file, stamp in checkpoint.stamps.items()
        ]
        files += [
            [label, known.path.name, known.stamp.size, known.stamp.mtime_ns]
            for label, known in sorted(self.evidence.items())
        ]
        # a config decides on tied heads and layers, and is copied
        configs = {label: checkpoint.config for label, checkpoint in self.checkpoints.items()}
        whole: list[Any] = [__version__, self.recipe.digest, self.seeds, files, configs]
        whole += [stage.vocabulary.digest() for stage in self.stages if stage.vocabulary]
        whole.append(self.output.template)
        text = json.dumps(whole, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _stored_bytes(ref: TensorRef) -> int:
    """Bytes in the files that a tensor is made of."""
    if isinstance(ref, ChangedRef):
        return ref.stored.nbytes + ref.extra_bytes
    return ref.nbytes
