"""The interface of a transform: one checkpoint in, changes to it out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mergewise.checkpoint import Checkpoint, open_runnable
from mergewise.errors import DataError
from mergewise.evidence import Data, Feeder, LiveModel, Reading, open_model
from mergewise.evidence.models import Fed
from mergewise.evidence.statistics import role_of
from mergewise.methods import Param, Settings
from mergewise.vocabulary import OutputFiles

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from mergewise.evidence.models import Role

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class Opening:
    """How models are opened.

    Attributes:
        role: what they are loaded as; None for what the config says.
        dtype: what they compute in; results are stored in the checkpoint's own types.
    """

    role: Role | None = None
    device: str = "cpu"
    dtype: str | None = "float32"
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Ask:
    """What a transform is asked, checked.

    Attributes:
        settings: every parameter of the transform.
        checkpoint: what is transformed.
        models: further models by label, all with the checkpoint's tensors.
        weights: of those models, where they have some; they sum to one.
        data: by label; one under the empty label is for all.
    """

    settings: Settings
    checkpoint: Checkpoint
    models: Mapping[str, Checkpoint] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    data: Mapping[str, Data] = field(default_factory=dict)
    reading: Reading = field(default_factory=Reading)
    opening: Opening = Opening()
    progress: Progress = lambda stage, done, total: None

    def open(self, checkpoint: Checkpoint, role: Role | None = None) -> LiveModel:
        """A model that runs; raises CheckpointError if it cannot be loaded."""
        how = self.opening
        return open_model(
            checkpoint.path,
            role or how.role or role_of(checkpoint),
            device=how.device,
            dtype=how.dtype,
            trust_remote_code=how.trust_remote_code,
        )

    def batches(self, model: LiveModel, label: str = "", whole: bool = False) -> list[Fed]:
        """A set of data as this model takes it, held in memory.

        Args:
            whole: a long text is cut off, not cut into several.

        Raises:
            DataError: if nothing is left of it, or it does not fit the model.
        """
        data = self.data[label if label in self.data else ""]
        found = [fed for fed in Feeder(data, model, self.reading, whole) if fed.tokens]
        if not found:
            raise DataError(f"{data.name}: no token or image in it; give other data")
        return found


@dataclass(frozen=True)
class Changes:
    """What a transform makes of a checkpoint.

    Attributes:
        tensors: new values by stored name, in the stored shapes unless `resized`; the types may be
            wider than the stored ones, to which they are rounded.
        files: small files to be put beside the weights.
        notes: what was done, in words.
        warnings: what is odd, but no reason to refuse.
        numbers: what was measured, ready for JSON; kept in the provenance.
        config: the new config; None if it stays.
        small: the small files, if the tokenizer is not the checkpoint's.
        resized: some tensors have other shapes than before.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)
    config: dict[str, Any] | None = None
    small: OutputFiles | None = None
    resized: bool = False


class Transform(ABC):
    """A transform. Subclass it in a file of `mergewise.transforms`, and it is registered.

    Class attributes:
        name: on the command line.
        summary: one line.
        data: what it is fed: ``none``, ``unlabelled`` or ``labelled`` examples.
        models: what further models it needs, in words; empty for none.
        alike: the models have the checkpoint's tensors.
        weighted: the models have weights.
        by_label: every model has data of its own.
        source: paper (authors, year, arXiv id).
        variant: where it departs from its source.
        params: settings.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    data: ClassVar[Literal["none", "unlabelled", "labelled"]]
    models: ClassVar[str] = ""
    alike: ClassVar[bool] = True
    weighted: ClassVar[bool] = False
    by_label: ClassVar[bool] = False
    source: ClassVar[str]
    variant: ClassVar[str] = ""
    params: ClassVar[Mapping[str, Param]] = {}

    def role(self, checkpoint: Checkpoint) -> Role:
        """What the checkpoint is loaded as unless the user says."""
        return role_of(checkpoint)

    def open(self, path: str | Path) -> Checkpoint:
        """Open a further model from its headers; raises as `open_runnable`."""
        return open_runnable(path)

    def problem(self, settings: Settings, checkpoint: Checkpoint) -> str | None:
        """Why it cannot be done, in words, from headers alone; None if it can."""
        return None

    @abstractmethod
    def run(self, ask: Ask) -> Changes:
        """What is to be changed; writes nothing."""

    @classmethod
    @abstractmethod
    def describe(cls) -> str:
        """What it computes, in plain text."""
