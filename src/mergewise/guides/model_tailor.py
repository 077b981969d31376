"""Model Tailor: the inputs' Gram matrices, for a merge by `model_tailor`."""

from __future__ import annotations

from typing import Any

from mergewise._lazy import torch
from mergewise.errors import EvidenceError
from mergewise.evidence.models import StoredTensors
from mergewise.guides._base import Ask, Expert, Guide, Guided, Map, Needs
from mergewise.guides._document import explicit
from mergewise.guides._evidence import OPTIONS, given_options, name_files, options_problem
from mergewise.guides._measures._cells import find_cells, tensor_map
from mergewise.methods import Param, Settings
from mergewise.methods.model_tailor import tailored
from mergewise.recipe import Recipe

STATISTIC = "input_gram"


class ModelTailor(Guide):
    """Collects what the method reads; with `measure`, says what its outputs will still lack."""

    name = "model_tailor"
    summary = "inputs' Gram matrices, for keeping few of an expert's changes and fitting them"
    data = "unlabelled"
    source = "Model Tailor, Zhu et al. 2024, arXiv 2402.12048"
    verified = "idea"
    variant = "that of the method model_tailor, which differs from the authors' code"
    calibrates = True
    params = {
        "measure": Param(
            bool, False, "tailor every weight once more, for a map of what is missed of its outputs"
        ),
        "collect": OPTIONS,
    }  # fmt: skip

    def problem(self, settings: Settings, recipe: Recipe) -> str | None:
        """See `Guide.problem`."""
        if problem := options_problem(settings.collect, (STATISTIC,)):
            return problem
        if recipe.output.method == self.name:
            return None
        return f"it is for {self.name}, not for {recipe.output.method}; change merge_method"

    def needs(self, settings: Settings) -> Needs:
        return Needs((STATISTIC,), options=given_options(settings.collect))

    def run(self, ask: Ask) -> Guided:
        notes: list[str] = []

        def edit(document: dict[str, Any]) -> list[dict[str, Any]]:
            own = {e.index: [e.evidence[STATISTIC]] for e in ask.experts}
            notes.extend(name_files(document, ask, own))
            return [document]

        text, recipe, replaced = explicit(self, ask, edit=edit)
        maps, told = [], []
        for place, expert in enumerate(ask.experts):
            described = _described(ask, expert)
            told.append(f"{expert.label}: {len(described)} weights are described")
            if ask.settings.measure:
                maps.append(_missed(ask, place, described))
        return Guided(text, recipe, tuple(maps), (*notes, *replaced, *told), ask.warnings)

    @classmethod
    def describe(cls) -> str:
        return (
            "The recipe names each expert's input_gram; the method does the rest (mergewise "
            "methods model_tailor).\n"
            "Map with `measure`: |X (e - d)^T|^2 / |X d^T|^2 over tokens, d the change of a weight "
            "and e what is kept of it, 0 to 1."
        )


def _described(ask: Ask, expert: Expert) -> list[str]:
    """The tensors that can be tailored.

    Raises:
        EvidenceError: if there is none.
    """
    known = set(expert.evidence[STATISTIC].tensors(STATISTIC))
    merged = [n for n, tensor in ask.stage.tensors.items() if tensor.fate == "merge" and n in known]
    if not merged:
        raise EvidenceError(
            f"{expert.evidence[STATISTIC].path}: it describes no weight that is merged; was it "
            "collected on this model?"
        )
    return merged


def _missed(ask: Ask, place: int, names: list[str]) -> Map:
    """By cell: the share of the outputs' mean square that is missed."""
    expert = ask.experts[place]
    ask.tell(f"tailoring {expert.label} to measure it")
    found = {name: _share(ask, place, name) for name in names}
    known = {name: share for name, share in found.items() if share is not None}
    return tensor_map(expert, "missed of the outputs", known, find_cells(ask.stage))


def _share(ask: Ask, place: int, name: str) -> float | None:
    """None where the outputs do not change."""
    expert = ask.experts[place]
    evidence, values = expert.evidence[STATISTIC], ask.stage.tensors[name].values
    gram = evidence.values(STATISTIC, name)["gram"]
    change = StoredTensors(expert.checkpoint)[name] - StoredTensors(ask.foundation)[name]
    matrix = change.T if name in evidence.record.turned else change.flatten(1)
    if len(gram) != matrix.shape[1]:
        raise EvidenceError(
            f"{evidence.path}: {name} has {matrix.shape[1]} input channels, and its Gram matrix "
            f"{len(gram)} rows; was it collected on this model?"
        )
    kept = tailored(
        matrix, gram, values["density"][place], values["salience"], values["ridge"],
        values["compensate"],
    )  # fmt: skip
    whole = _square(matrix, gram)
    return _square(kept - matrix, gram) / whole if whole > 0 else None


def _square(matrix: torch.Tensor, gram: torch.Tensor) -> float:
    wide = matrix.double()
    return float(((wide @ gram.double()) * wide).sum())
