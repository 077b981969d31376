"""Classification of anything: run a whole classifier, or a body with the task's own head."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from mergewise._lazy import torch
from mergewise.errors import DataError, TaskError
from mergewise.evidence._data import Record
from mergewise.evidence.evaluators._base import Evaluator, Score
from mergewise.evidence.evaluators._class_metrics import METRICS, classification
from mergewise.evidence.evaluators._features import Batch, run
from mergewise.evidence.evaluators._heads import Head, load_head
from mergewise.evidence.evaluators._surgery import Surgery, load_surgery, surgery_file
from mergewise.evidence.models._live import LiveModel, Role
from mergewise.methods import Param

if TYPE_CHECKING:
    from torch import Tensor


class Items(Param):
    """A parameter that is one value or a list of values: ``0.5`` or ``[0.48, 0.46, 0.41]``."""

    def problem(self, value: Any) -> str | None:
        """Why `value` cannot be this parameter, in words, or None if it can."""
        if not isinstance(value, list | tuple):
            return super().problem(value)
        if not value or None in value:
            return "a value, or a list of values, expected"
        return next((found for part in value if (found := Param.problem(self, part))), None)

    def convert(self, value: Any) -> Any:
        """`value`, or each of a list, in the parameter's own type."""
        if not isinstance(value, list | tuple):
            return super().convert(value)
        return [self.kind(part) for part in value]


COMMON: dict[str, Param] = {
    "label": Param(str, "label", "field of the class: a number from 0, or a name"),
    "label_names": Items(str, None, "names of the classes, in their order"),
    "pool": Param(
        str, None, "features of a body: first token, mean over tokens, or its pooler",
        choices=("cls", "mean", "pooler"),
    ),
    "normalise": Param(bool, None, "compare directions (prototypes); by default as the head says"),
    "scale": Param(float, None, "factor on the head's logits; by default as the head says", gt=0),
    "surgery": Param(
        str, None, "name of a correction of features, surgery.NAME.safetensors in a model's "
        "folder; models without one are scored as they are",
    ),
    "batch_size": Param(int, 32, "examples at a time; does not change the result", ge=1),
}  # fmt: skip


class Classifier(Evaluator):
    """What classifiers of texts and of images share.

    Class attributes:
        whole: the role of a checkpoint that brings its own head.
        pool: how features are taken unless the task says.
    """

    metrics = METRICS
    whole: ClassVar[Role]
    pool: ClassVar[str]

    @abstractmethod
    def read(self, record: Record, row: int) -> Any:
        """The input of a record, before any model is known.

        Raises:
            DataError: if it has none.
        """

    @abstractmethod
    def batches(self, model: LiveModel, inputs: Sequence[Any], notes: list[str]) -> Iterator[Batch]:
        """Batches that cover all inputs, in any order; appends what a reader must know."""

    def role(self) -> Role:
        """A body if the task has a head, else a whole classifier."""
        return self.whole if self.task.head is None else "body"

    def option(self, name: str) -> Any:
        """An option of the task, or its default."""
        return vars(self.task.options).get(name, self.params[name].default)

    def check(self) -> None:
        """Read the head and the first record of every split.

        Raises:
            TaskError: if head and options do not agree.
            DataError: if a record lacks a field, or there is none.
        """
        head, names = self._head(), self._names()
        if (surgery := self.option("surgery")) is not None:
            surgery_file(surgery)
            if head is None:
                raise TaskError(
                    f"task {self.task.name}: surgery corrects features before a head; give the "
                    "task its `head`"
                )
        if head is not None and names and len(names) != head.classes:
            raise TaskError(
                f"task {self.task.name}: {len(names)} label_names, but {head.name} has "
                f"{head.classes} classes"
            )
        for split, data in self.task.data.items():
            record = next(iter(data), None)
            if record is None:
                raise DataError(f"{data.name}: task {self.task.name}: split {split} is empty")
            self.read(record, 0)
            self._label(record, 0)

    def check_model(self, name: str, sizes: Collection[int]) -> None:
        """A body whose features are as wide as the head has a tensor of that width.

        Raises:
            TaskError: if no tensor has it.
        """
        head = self._head()
        flattened = (self.option("pool") or self.pool) == "pooler"
        if head is not None and not flattened and head.width not in sizes:
            raise TaskError(
                f"task {self.task.name}: {head.name} takes {head.width} features, a width that no "
                f"tensor of {name} has; is it the head of another model?"
            )

    def score(self, model: LiveModel, split: str) -> Score:
        """Run every example of a split; what was read of it is kept for the next model.

        Raises:
            TaskError: if the model lacks what the task needs, or gives no finite logits.
            DataError: if the data cannot be read, or a label is no class of the model.
        """
        start = time.perf_counter()
        inputs, said = self._read(split)
        notes: list[str] = []
        head = self._head()
        if head is not None:  # a wrong label is found before the model runs
            self._classes(said, split, head.classes, self._names())
        pool = self.option("pool") or self.pool
        batches = self.batches(model, inputs, notes)
        surgery = self._surgery(model, pool, notes)
        logits = run(model, batches, head, pool, len(inputs), self.progress, surgery)
        names = self._names() or (_config_names(model, logits.shape[1]) if head is None else None)
        labels = self._classes(said, split, logits.shape[1], names)
        metrics, outcomes = classification(logits, labels, names)
        seconds = time.perf_counter() - start
        return Score(metrics, outcomes, len(said), seconds, tuple(notes))

    def _head(self) -> Head | None:
        if self.task.head is None:
            return None
        if (kept := self.__dict__.get("_loaded")) is None:
            found = load_head(self.task.head)
            told = {name: self.option(name) for name in ("normalise", "scale")}
            kept = replace(found, **{n: v for n, v in told.items() if v is not None})
            self._loaded = kept
        return kept

    def _surgery(self, model: LiveModel, pool: str, notes: list[str]) -> Surgery | None:
        """The model's own correction for this task."""
        name = self.option("surgery")
        if name is None:
            return None
        file = None if model.folder is None else model.folder / surgery_file(name)
        if file is None or not file.is_file():
            notes.append(f"no surgery {name} in its folder; scored without")
            return None
        found = load_surgery(file)
        if found.pool != pool:
            raise TaskError(
                f"task {self.task.name}: {found.name} was trained on features with `pool: "
                f"{found.pool}`, but the task has `pool: {pool}`"
            )
        notes.append(f"features corrected by surgery {name}")
        return found

    def _names(self) -> list[str] | None:
        given = self.option("label_names")
        if given is None:
            return None
        names = given.split(",") if isinstance(given, str) else given
        return [str(name).strip() for name in names]

    def _read(self, split: str) -> tuple[list[Any], list[int | str]]:
        kept: dict[str, Any] = self.__dict__.setdefault("_kept", {})
        if split not in kept:
            rows = list(enumerate(self.task.split(split)))
            if not rows:
                raise DataError(f"{self.task.split(split).name}: split {split!r} has no examples")
            labels = [self._label(record, row) for row, record in rows]
            kept[split] = [self.read(record, row) for row, record in rows], labels
        return kept[split]

    def _label(self, record: Record, row: int) -> int | str:
        field = self.option("label")
        value: Any = record.get(field)
        value = value.item() if hasattr(value, "item") else value  # numpy's numbers
        if isinstance(value, str):
            return value
        if not isinstance(value, int | float) or value % 1 != 0:
            raise DataError(
                f"task {self.task.name}: row {row + 1}: `{field}` must be a class, a whole number "
                f"or a name; got {value!r}; the fields are {', '.join(record) or 'none'}"
            )
        return int(value)

    def _classes(
        self, said: Sequence[int | str], split: str, classes: int, names: Sequence[str] | None
    ) -> Tensor:
        """Labels as numbers of the model's classes, int64 [examples]."""
        known = {name: k for k, name in enumerate(names or ())}
        found = []
        for row, value in enumerate(said):
            number = value if isinstance(value, int) else known.get(value, _number(value))
            if number is None or not 0 <= number < classes:
                raise DataError(
                    f"{self.task.split(split).name}, row {row + 1}: label {value!r} is none of the "
                    f"model's {classes} classes ({_few(names, classes)}); is it this task's head, "
                    "and are `label_names` complete?"
                )
            found.append(number)
        return torch.tensor(found, dtype=torch.int64)


def _number(value: str) -> int | None:
    return int(value) if value.strip().isdecimal() else None


def _few(names: Sequence[str] | None, classes: int) -> str:
    if names is None:
        return f"0 to {classes - 1}"
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "")


def _config_names(model: LiveModel, classes: int) -> list[str] | None:
    """The names in a whole classifier's config, if it has real ones for all classes."""
    table = getattr(getattr(model.module, "config", None), "id2label", None) or {}
    names = [str(table.get(k, "")) for k in range(classes)]
    plain = all(name == f"LABEL_{k}" for k, name in enumerate(names))
    return None if plain or len(set(names)) < classes or "" in names else names
