"""The interface of a guide: a recipe and evidence about its models in, an explicit recipe out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from mergewise.checkpoint import Checkpoint, make_folder, write_file
from mergewise.errors import GuideError
from mergewise.evidence import Data, Evidence, Tasks
from mergewise.methods import Param, Settings
from mergewise.plan import MergePlan, StagePlan
from mergewise.recipe import Recipe

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Needs:
    """What a guide reads beside weights.

    Attributes:
        experts: statistics of every expert, on its data.
        base: statistics of the base model, on each expert's data.
        data: it runs the models itself, on each expert's data.
        tasks: it scores models, on the tasks of a file.
        options: of statistics, where their defaults will not do, by statistic.
    """

    experts: tuple[str, ...] = ()
    base: tuple[str, ...] = ()
    data: bool = False
    tasks: bool = False
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


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
        base: the base model; None if the recipe has none, which only guides that are not `based`
            allow.
        experts: in the recipe's order.
        warnings: what is odd about the models or the evidence, but no reason to refuse.
        progress: called with (bytes read, bytes in all) while weights are read.
        data: by expert's label, for guides that run models themselves.
        options: how models are run and data is read: those of `mergewise.evidence.collect`.
        tasks, split: what models are scored on, for guides that score them.
        out: where the explicit recipe will be; relative paths in it are relative to its folder.
        folder: where files of evidence that the recipe names are kept; see `keep`.
        told: called with a line before each long step.
    """

    settings: Settings
    plan: MergePlan
    base: Checkpoint | None
    experts: tuple[Expert, ...]
    warnings: tuple[str, ...] = ()
    progress: Progress | None = None
    data: Mapping[str, Data] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    tasks: Tasks | None = None
    split: str = "validation"
    out: Path | None = None
    folder: Path | None = None
    told: Callable[[str], None] | None = None

    @property
    def stage(self) -> StagePlan:
        """The merge that is guided."""
        return self.plan.output

    @property
    def foundation(self) -> Checkpoint:
        """The base model, where the guide cannot be asked without one."""
        assert self.base is not None
        return self.base

    def tell(self, line: str) -> None:
        """Say what long step comes next."""
        if self.told is not None:
            self.told(line)

    def keep(self, name: str) -> Path:
        """The path of a file that the recipe will name, in a folder that exists.

        Raises:
            GuideError: if nobody said where such files go.
            OutputError: if the folder cannot be made.
        """
        if self.folder is None:
            raise GuideError("it writes files that the recipe names: say where, with folder=")
        make_folder(self.folder)
        return self.folder / name

    def refer(self, file: Path) -> str:
        """What the recipe calls a file: relative to its own folder, if the file lies below it."""
        home = None if self.out is None else self.out.absolute().parent
        if home is not None and file.absolute().is_relative_to(home):
            return file.absolute().relative_to(home).as_posix()
        return str(file.absolute())


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
        verified: how far its arithmetic is known to be its source's: compared with the authors'
            ``code``; with the formulas of the ``paper``; or only its ``idea`` is theirs, and the
            formulas are ours.
        based: whether it needs a base model.
        calibrates: whether it gives the recipe the evidence that its method reads, so that the
            recipe may come without.
        writes: the parameter of which it writes values, if a setting called ``parameter`` does not
            say it; see `written`.
        params: settings.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    data: ClassVar[Literal["none", "unlabelled", "labelled", "log"]]
    source: ClassVar[str]
    variant: ClassVar[str] = ""
    verified: ClassVar[Literal["code", "paper", "idea"]] = "paper"
    based: ClassVar[bool] = True
    calibrates: ClassVar[bool] = False
    writes: ClassVar[str | None] = None
    params: ClassVar[Mapping[str, Param]] = {}

    def written(self, settings: Settings) -> tuple[str, ...]:
        """The parameters of which it writes values, with these settings."""
        one = getattr(settings, "parameter", None) or self.writes
        return () if one is None else (one,)

    def problem(self, settings: Settings, recipe: Recipe) -> str | None:
        """Why it cannot be done, in words; None if it can. Asked before any work."""
        return None

    def contradiction(self, given: Mapping[str, Any]) -> str | None:
        """Why settings that were given do not go together, in words; None if they do."""
        return None

    def needs(self, settings: Settings) -> Needs:
        """The statistics it reads with these settings."""
        return Needs()

    def needs_for(self, settings: Settings, plan: MergePlan) -> Needs:
        """The statistics it reads of the models of a recipe, where that depends on the recipe."""
        return self.needs(settings)

    @abstractmethod
    def run(self, ask: Ask) -> Guided:
        """The explicit recipe."""

    @classmethod
    @abstractmethod
    def describe(cls) -> str:
        """What it computes, in plain text."""
