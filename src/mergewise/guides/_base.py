"""The interface of a guide: a recipe and evidence about its models in, an explicit recipe out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from mergewise.checkpoint import Checkpoint, write_file
from mergewise.evidence import Evidence
from mergewise.methods import Param, Settings
from mergewise.plan import MergePlan, StagePlan
from mergewise.recipe import Recipe

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Needs:
    """Statistics that a guide reads; the base's are collected on each expert's data.

    Attributes:
        experts: of every expert.
        base: of the base model.
    """

    experts: tuple[str, ...] = ()
    base: tuple[str, ...] = ()


@dataclass(frozen=True)
class Expert:
    """An expert of the recipe, and what is known of it.

    Attributes:
        label: as the recipe calls it.
        index: its place in the recipe's list of models.
        evidence: by statistic, of the expert.
        base: by statistic, of the base model on the same data.
    """

    label: str
    index: int
    checkpoint: Checkpoint
    evidence: Mapping[str, Evidence] = field(default_factory=dict)
    base: Mapping[str, Evidence] = field(default_factory=dict)


@dataclass(frozen=True)
class Ask:
    """What a guide is asked.

    Attributes:
        settings: every parameter of the guide, checked.
        plan: of the recipe as it is.
        base: the base model.
        experts: in the recipe's order.
        warnings: what is odd about the evidence, but no reason to refuse.
        progress: called with (bytes read, bytes in all) while weights are read.
    """

    settings: Settings
    plan: MergePlan
    base: Checkpoint
    experts: tuple[Expert, ...]
    warnings: tuple[str, ...] = ()
    progress: Progress | None = None

    @property
    def stage(self) -> StagePlan:
        """The merge that is guided."""
        return self.plan.output


@dataclass(frozen=True)
class Map:
    """Numbers over layers and components of one expert, for a picture.

    Attributes:
        expert: as the recipe calls it.
        what: what the numbers are.
        values: by layer (its name up to the number), then component.
    """

    expert: str
    what: str
    values: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Guided:
    """An explicit recipe.

    Attributes:
        text: the document, with comments that say where its numbers come from.
        recipe: the same, checked; may be planned and merged.
        maps: what a picture shows.
        notes: what was found and replaced, in words.
        warnings: what is odd, but no reason to refuse.
    """

    text: str
    recipe: Recipe
    maps: tuple[Map, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def write(self, path: Path | str) -> None:
        """Write the document, whole or not at all; a file that is there is replaced.

        Raises:
            OutputError: if it cannot be written.
        """
        write_file(Path(path), self.text.encode())


class Guide(ABC):
    """A guide. Subclass it in a file of `mergewise.guides`, and it is registered.

    Class attributes:
        name: on the command line.
        summary: one line.
        data: what its evidence is collected on: ``none``, ``unlabelled`` or ``labelled`` examples,
            or a training ``log``.
        source: paper (authors, year, arXiv id).
        variant: where it departs from its source.
        params: settings.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    data: ClassVar[Literal["none", "unlabelled", "labelled", "log"]]
    source: ClassVar[str]
    variant: ClassVar[str] = ""
    params: ClassVar[Mapping[str, Param]] = {}

    def problem(self, settings: Settings, recipe: Recipe) -> str | None:
        """Why it cannot be done, in words; None if it can. Asked before any work."""
        return None

    def needs(self, settings: Settings) -> Needs:
        """The statistics it reads with these settings."""
        return Needs()

    @abstractmethod
    def run(self, ask: Ask) -> Guided:
        """The explicit recipe."""

    @classmethod
    @abstractmethod
    def describe(cls) -> str:
        """What it computes, in plain text."""
