"""Decide what becomes of each output tensor."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mergewise.checkpoint import (
    CODES,
    SAFETY,
    TORCH_NAMES,
    Orientation,
    is_end,
    tensor_kind,
)
from mergewise.errors import Diagnostic, MergewiseError, RecipeError
from mergewise.evidence import Evidence
from mergewise.methods import Method, Need, PlacedMethod, Settings, placed
from mergewise.plan._batch_norm import is_statistic, pooled
from mergewise.plan._evidence import Own, find_statistics, lacking
from mergewise.plan._model import Input, TensorMeta, TensorPlan, View
from mergewise.plan._odd_evidence import Given, odd_evidence
from mergewise.plan._slots import Slot
from mergewise.plan._values import Parameters
from mergewise.plan._views import describe
from mergewise.plan._vocabulary import StageVocabulary
from mergewise.recipe import Source, Stage

COUNTED = "I64"
"""What positions and counters are stored as, and quantised weights never are."""
FLOATS = frozenset(
    ("F16", "BF16", "F32", "F64", "F8_E5M2", "F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
)


class Fates:
    """Decides tensor by tensor for one stage, collecting every problem."""

    def __init__(
        self,
        stage: Stage,
        method: Method,
        evidence: Mapping[str, Evidence],
        reads: bool = True,
        vocabulary: StageVocabulary | None = None,
    ) -> None:
        self._evidence = evidence
        self._reads = reads
        self._vocabulary = vocabulary
        self.stage = stage
        self.method = method
        self.parameters = Parameters(stage, method)
        self.problems: list[Diagnostic] = []
        self.warnings: list[str] = []
        self.hint: Callable[[], str] = str
        """What else to do if models lack tensors that others have."""
        self._missing: dict[str, list[str]] = {}
        self._alike: dict[Hashable, tuple[Diagnostic, list[str]]] = {}
        self._described = [0, 0]
        self._unread = True
        self._needs: dict[Need, None] = {}
        self._given: dict[str, Given] = {}
        self._lacking: dict[str, list[str]] = {}
        self._stored: dict[str, Orientation] = {}

    def decide(self, slot: Slot, views: Sequence[View]) -> TensorPlan | None:
        """The plan of one tensor; None, with the problem noted, if it cannot be made."""
        found = [
            Input(view, view.tensors[name]) if name else None
            for view, name in zip(views, slot.inputs, strict=True)
        ]
        if self._vocabulary:
            try:
                found = self._mapped(self._vocabulary, found)
            except MergewiseError as error:
                self._problem(slot.name, _without(str(error), [slot.name]), describe(error))
                return None
        donor = self._donor(slot, found)
        dtype = self._out_dtype(donor.meta.dtype)
        meta = TensorMeta(slot.name, dtype, donor.meta.shape)
        if donor.meta.dtype not in TORCH_NAMES:
            self._problem(
                slot.name,
                (donor.view.label, donor.meta.dtype),
                f"tensor {slot.name} of {donor.view.label}: elements of type {donor.meta.dtype} "
                "cannot be read by this version; use an unquantised checkpoint",
            )
            return None
        if donor.meta.dtype not in FLOATS or any(i.meta.dtype == COUNTED for i in found if i):
            return self._integer(replace(meta, dtype=donor.meta.dtype), donor, found)
        if self.stage.excludes(slot.name):
            reason = f"excluded by the recipe: copied from {donor.view.label}"
            return TensorPlan(meta, "copy", None, (donor,), reason=reason)
        if slot.name.startswith(SAFETY):
            reason = f"a safety checker is not merged: copied from {donor.view.label}"
            return TensorPlan(meta, "copy", None, (donor,), reason=reason)
        if slot.slice_.copied(self.method.base, self.method.experts[0]):
            reason = f"the recipe names only {donor.view.label} here"
            return TensorPlan(meta, "copy", None, (donor,), reason=reason)
        if self.stage.batch_norm == "copy" and is_statistic(slot.name):
            reason = f"a batch norm's (batch_norm: copy): copied from {donor.view.label}"
            return TensorPlan(meta, "copy", None, (donor,), reason=reason)
        absent = [view.label for view, item in zip(views, found, strict=True) if item is None]
        if absent and not self._tolerates(slot, found):
            if self.stage.missing == "error":
                self._missing.setdefault(", ".join(absent), []).append(slot.name)
                return None
            return _copied(meta, donor, absent)
        if not (self._same_shape(slot, donor, found) and self._all_floats(slot, found)):
            return None
        planned = self._merge(slot, meta, found)
        if planned and self.stage.batch_norm == "pool" and is_statistic(slot.name):
            return pooled(planned, self.method) or planned
        return planned

    def _mapped(
        self, vocabulary: StageVocabulary, found: Sequence[Input | None]
    ) -> list[Input | None]:
        names = {item.view.label: item.meta.name for item in found if item}
        return [vocabulary.mapped(item, names) if item else None for item in found]

    def finish(self) -> None:
        """Turn what was gathered over all tensors into problems, one for each kind."""
        for found, more in self._alike.values():
            also = f" ({_count(more)} more likewise: {_some(more)})" if more else ""
            self.problems.append(replace(found, message=found.message + also))
        self._judge_unread()
        self._judge_evidence()
        for models, names in self._missing.items():
            self._add(
                f"{_count(names)} not in {models}: {_some(names)}; "
                "merge models of one architecture, `exclude` these names, or set "
                "`missing: available` (merge the models that have them) or `missing: copy`"
                + self.hint()
            )

    def _judge_unread(self) -> None:
        slices = [slice_ for module in self.stage.modules for slice_ in module.slices]
        given = [str(s.model) for slice_ in slices for s in slice_.sources if s.evidence]
        if given and self._unread and not self.stage.guide:
            self.warnings.append(
                f"the evidence of {_some(list(dict.fromkeys(given)))} has no effect: "
                f"{self.method.name} reads none with these parameters "
                f"(mergewise methods {self.method.name})"
            )

    def _judge_evidence(self) -> None:
        without, described = self._described
        given = list(self._given.values())
        if without and not described:
            names = (name for one in given for file in one.files for _, name in file.entries)
            self._add(
                f"the evidence describes none of the {without} tensors that {self.method.name} "
                f"is to merge, but such as {next(names, 'none at all')}; was it collected on these "
                "models?"
            )
            return
        otherwise = next((f" ({need.otherwise})" for need in self._needs if need.otherwise), "")
        for model, lacks in self._lacking.items():
            self.warnings.append(
                f"the evidence of {model} does not describe {_count(lacks)} that other models' "
                f"does: {_some(lacks)}; {self.method.name} merges them as if none did{otherwise}"
            )
        self.warnings += odd_evidence(self.method.name, list(self._needs), given)

    def _add(self, message: str) -> None:
        self.problems.append(self._at_stage(message))

    def _at_stage(self, message: str) -> Diagnostic:
        at = self.stage.position
        return Diagnostic(at.path, at.line, at.column, message)

    def _problem(self, name: str, kind: Hashable, message: str) -> None:
        """Note a problem of one tensor; those of one kind are told as one, the first in full."""
        self._gather(name, kind, self._at_stage(message))

    def _gather(self, name: str, kind: Hashable, problem: Diagnostic) -> None:
        if kind in self._alike:
            self._alike[kind][1].append(name)
        else:
            self._alike[kind] = (problem, [])

    def _donor(self, slot: Slot, found: Sequence[Input | None]) -> Input:
        """The base's tensor, else the first there is."""
        base = slot.slice_.base
        for source, item in zip(slot.slice_.sources, found, strict=True):
            if item is not None and source is base:
                return item
        return next(item for item in found if item is not None)

    def _out_dtype(self, given: str) -> str:
        wanted = self.stage.out_dtype or self.stage.dtype
        return CODES[wanted] if wanted and given in FLOATS else given

    def _integer(self, meta: TensorMeta, donor: Input, found: Sequence[Input | None]) -> TensorPlan:
        kinds = {(i.meta.dtype, i.meta.shape) for i in found if i}
        if len(kinds) > 1:
            self.warnings.append(
                f"{meta.name}: models hold it in different types or shapes; "
                f"that of {donor.view.label} is copied"
            )
        kind = meta.dtype if meta.dtype not in FLOATS else COUNTED
        reason = f"{kind} is not averaged: copied from {donor.view.label}"
        return TensorPlan(meta, "copy", None, (donor,), reason=reason)

    def _tolerates(self, slot: Slot, found: Sequence[Input | None]) -> bool:
        """Whether the method may go on with the models that have the tensor."""
        if self.stage.missing != "available":
            return False
        least = self.method.experts[0]
        experts = [i for i in slot.slice_.experts(self.method.base) if found[i] is not None]
        base = slot.slice_.base
        has_base = any(
            item is not None and source is base
            for source, item in zip(slot.slice_.sources, found, strict=True)
        )
        return len(experts) >= least and (has_base or self.method.base != "required")

    def _same_shape(self, slot: Slot, donor: Input, found: Sequence[Input | None]) -> bool:
        good = True
        for item in found:
            if item is None or item.meta.shape == donor.meta.shape:
                continue
            good = False
            hint = (
                "these look like vocabularies of different sizes; see `tokenizer_source`"
                if "emb" in slot.name or "head" in slot.name
                else "models of one architecture and size are needed"
            )
            self._problem(
                slot.name,
                ("shape", item.view.label, donor.view.label, hint),
                f"tensor {slot.name}: shape {list(item.meta.shape)} in {item.view.label}, "
                f"{list(donor.meta.shape)} in {donor.view.label}; {hint}",
            )
        return good

    def _all_floats(self, slot: Slot, found: Sequence[Input | None]) -> bool:
        odd = [item for item in found if item and item.meta.dtype not in FLOATS]
        for item in odd:
            self._problem(
                slot.name,
                (item.view.label, item.meta.dtype),
                f"tensor {slot.name}: {item.meta.dtype} in {item.view.label}, floating point in "
                "another model; is that model quantised? Use the unquantised checkpoint",
            )
        return not odd

    def _merge(
        self, slot: Slot, meta: TensorMeta, found: Sequence[Input | None]
    ) -> TensorPlan | None:
        names = [item.meta.name if item else None for item in found]
        try:
            values, origins = self.parameters.of(slot, names)
        except RecipeError as error:
            for diagnostic in error.diagnostics:
                kind = _without(str(diagnostic), [slot.name, *filter(None, names)])
                self._gather(slot.name, kind, diagnostic)
            return None
        values, origins, reason = self._placed(values, origins, meta, found)
        experts = [i for i in slot.slice_.experts(self.method.base) if found[i] is not None]
        problem = self.method.problem(Settings(values), len(experts))
        every = slot.slice_.experts(self.method.base)
        if problem and not self.method.problem(Settings(values), len(every)):
            absent = [
                str(s.model) for s, f in zip(slot.slice_.sources, found, strict=True) if not f
            ]
            return _copied(meta, self._donor(slot, found), absent)
        if problem:
            text = f"{self.method.name}: {problem} (tensor {slot.name})"
            self._problem(slot.name, problem, text)
            return None
        base = slot.slice_.base if self.method.base != "ignored" else None
        base_input = next(
            (f for s, f in zip(slot.slice_.sources, found, strict=True) if s is base and f), None
        )
        lack = None if base_input else self.method.baseless(Settings(values))
        if lack:
            text = f"{self.method.name}: {lack}, and there is none (tensor {slot.name})"
            self._problem(slot.name, lack, f"{text}; give base_model")
            return None
        inputs = tuple(item for i, item in enumerate(found) if item and i in experts)
        in_dtype = CODES[self.stage.dtype] if self.stage.dtype else None
        planned = TensorPlan(meta, "merge", base_input, inputs, values, origins, in_dtype, reason)
        return self._with_statistics(slot, planned, experts)

    def _placed(
        self,
        values: dict[str, Any],
        origins: dict[str, Any],
        meta: TensorMeta,
        found: Sequence[Input | None],
    ) -> tuple[dict[str, Any], dict[str, Any], str]:
        """Values and origins with what methods of matrices are told; the reason if it is no such
        tensor."""
        if not isinstance(self.method, PlacedMethod):
            return values, origins, ""
        kind = tensor_kind(meta.name, meta.shape)
        donor = next(item for item in found if item is not None)
        turned = self._turned(donor, kind)
        values = placed(self.method, values, kind, turned, is_end(meta.name))
        seen = "the tensor's name and shape"
        told = self.method.elsewhere(Settings(values))
        return values, {**origins, "kind": seen, "turned": seen, "end": seen}, told

    def _turned(self, item: Input, kind: str) -> bool:
        """Whether a weight is stored [inputs, outputs]."""
        view = item.view
        stored = self._stored.setdefault(view.label, Orientation(view.tensors))
        return stored.turned(item.meta.name, kind)

    def _with_statistics(
        self, slot: Slot, planned: TensorPlan, experts: Sequence[int]
    ) -> TensorPlan | None:
        """The plan with what the method reads beside the weights."""
        needs = self.method.needs(Settings(planned.values))
        self._unread = self._unread and not needs
        if not needs or not self._reads:
            return planned
        if any(item.rows for item in planned.inputs):
            otherwise = next((f": {n.otherwise}" for n in needs if n.otherwise), "")
            return replace(planned, reason=f"evidence is of another vocabulary{otherwise}")
        sources = [slot.slice_.sources[i] for i in experts]
        theirs = [need for need in needs if need.of == "experts"]
        models = [
            self._own(item, source, theirs)
            for item, source in zip(planned.experts, sources, strict=True)
        ]
        base = None
        if planned.base and slot.slice_.base and len(theirs) < len(needs):
            base = self._own(planned.base, slot.slice_.base, [n for n in needs if n not in theirs])
            models.append(base)
        known = [own for own in models if own is not None]
        if len(known) < len(models):
            return None
        names = [item.meta.name for item in planned.experts]
        files = [own.files for own in known[: len(names)]]
        self._needs |= dict.fromkeys(needs)
        try:
            found = find_statistics(needs, names, planned.meta.shape, files, base)
        except MergewiseError as error:
            self._problem(slot.name, _without(str(error), names), describe(error))
            return None
        self._described[bool(found.statistics)] += 1
        for i in found.lacking:
            item = planned.experts[i] if i >= 0 else planned.base
            if item is not None:
                self._lacking.setdefault(item.view.label, []).append(planned.meta.name)
        otherwise = "" if found.statistics else next((n.otherwise for n in needs), "")
        why = "only some models' evidence" if found.lacking else "no evidence"
        why = "no evidence for each of its groups" if found.grouped else f"{why} describes it"
        reason = f"{why}: {otherwise}" if otherwise else ""
        return replace(planned, statistics=found.statistics, turned=found.turned, reason=reason)

    def _own(self, item: Input, source: Source, needs: Sequence[Need]) -> Own | None:
        """A model's evidence; None, with the problem noted, if it lacks what is needed of it."""
        files = [self._evidence[text] for text in source.evidence] if needs else []
        if problem := lacking(self.method, needs, source, files):
            at = source.position
            where = Diagnostic(at.path, at.line, at.column, problem)
            self._alike.setdefault((at, problem), (where, []))
            return None
        self._given.setdefault(item.view.label, Given(item.view, tuple(files)))
        return Own(item.meta.name, files)


def _copied(meta: TensorMeta, donor: Input, absent: Sequence[str]) -> TensorPlan:
    reason = f"only {donor.view.label} is copied: not in {', '.join(absent)}"
    return TensorPlan(meta, "copy", None, (donor,), reason=reason)


def _without(message: str, names: Sequence[str]) -> str:
    """What problems of one kind have in common."""
    for name in sorted(set(names), key=len, reverse=True):
        message = message.replace(name, "")
    return message


def _count(names: Sequence[str]) -> str:
    return f"{len(names)} tensor{'s' * (len(names) > 1)}"


def _some(names: Sequence[str]) -> str:
    """The first few names, and how many there are besides."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if names[4:] else "")
