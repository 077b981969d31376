"""How the vocabularies of a stage's models meet: which rows stand where, and why."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mergewise.checkpoint import config_value, edited_config, set_config_value, shown, text_config
from mergewise.errors import IncompatibleModelsError
from mergewise.plan._model import Input, MappedRows, TensorMeta, View
from mergewise.recipe import Stage
from mergewise.vocabulary import IdChange, RowMap, Tokenizer, VocabularyTensors, moved_ids, roles_of

SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
Names = Mapping[str, str]
"""A tensor's name by the label of a model."""


@dataclass(frozen=True, eq=False)
class StageVocabulary:
    """The vocabulary of a stage's output, and how its models are mapped to it.

    Attributes:
        tokenizer: the output's.
        rows: of the output's embedding.
        views: the models whose rows are used, by their numbers in the maps.
        maps: by model; a model that is not there is taken as it is.
        tensors: by model, which tensors have a vocabulary.
        before: the ids that the donor's config speaks of.
        special: ids of begin, end and padding for the config, if not its own.
        resized: whether the config's ``vocab_size`` changes.
        said: what is done, in a few lines: what it is about, and the rest.
    """

    tokenizer: Tokenizer
    rows: int
    views: tuple[View, ...]
    maps: Mapping[str, RowMap]
    tensors: Mapping[str, VocabularyTensors]
    before: Mapping[str, int]
    special: Mapping[str, Any] = field(default_factory=dict)
    resized: bool = False
    said: tuple[tuple[str, str], ...] = ()

    def mapped(self, item: Input, names: Names) -> Input:
        """An input with its rows in the order of the output.

        Args:
            names: what the tensor is called in each model.

        Raises:
            IncompatibleModelsError: if rows are to come from a model that has no such tensor.
        """
        label, name = item.view.label, item.meta.name
        found, rows = self.tensors.get(label), self.maps.get(label)
        if found is None or rows is None:
            return item
        if name in found.unclear:
            raise IncompatibleModelsError(
                f"tensor {name} of {label}: it seems to have a vocabulary of its own, which cannot "
                "be mapped; merge models with the same tokenizer"
            )
        if name not in found.axes:
            return item
        axis = found.axes[name]
        donors = {number: self._donor(self.views[number], item, names) for number in rows.donors}
        shape = (*item.meta.shape[:axis], self.rows, *item.meta.shape[axis + 1 :])
        meta = TensorMeta(name, item.meta.dtype, shape)
        return replace(item, meta=meta, rows=MappedRows(rows, axis, donors))

    def _donor(self, view: View, item: Input, names: Names) -> Input:
        found = self.tensors[view.label]
        name = names.get(view.label) or _own_name(view, item.meta.name, found.axes)
        if name is None or name not in found.axes:
            raise IncompatibleModelsError(
                f"tensor {item.meta.name} of {item.view.label}: tokens that this model lacks are "
                f"to come from {view.label}, which has no such tensor; take a tokenizer whose "
                "tokens all models have, or say where each token comes from (tokenizer.tokens)"
            )
        meta, axis = view.tensors[name], found.axes[name]
        mine = self.tensors[item.view.label].axes[item.meta.name]
        if _others(meta.shape, axis) != _others(item.meta.shape, mine):
            raise IncompatibleModelsError(
                f"tensor {item.meta.name}: rows of shape {list(_others(meta.shape, axis))} in "
                f"{view.label}, {list(_others(item.meta.shape, mine))} in {item.view.label}; "
                "models of one width are needed"
            )
        return Input(view, meta)

    def config(self, donor: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """The donor's config for the output's vocabulary, and what was lost.

        Raises:
            IncompatibleModelsError: if a token is lost without which the model cannot be.
        """
        change = IdChange(self.before, self.tokenizer.tokens, self.rows)
        config = change.applied(donor)
        for key, number in self.special.items():
            set_config_value(config, key, number)
        if needed := change.needed():
            key, number, token = needed[0]
            raise IncompatibleModelsError(
                f"{key} {number} of the config is not in the output's vocabulary"
                + (f": list its token {shown(token, 40)} under `tokenizer: {{tokens: ...}}`, or "
                   "take `source: union`" if token else "; take `source: union` or `base`")
            )  # fmt: skip
        lost = [text for text in change.told() if text.split()[0] not in self.special]
        if not self.resized:
            return config, lost
        model_name = {k: v for k, v in config.items() if k in _NOT_EDITED}
        return edited_config(config, vocab_size=self.rows) | model_name, lost

    def digest(self) -> str:
        """A hash of everything here that the output's bytes depend on."""
        parts = [str(self.rows), self.tokenizer.digest()]
        parts += [f"{label} {rows.digest()}" for label, rows in sorted(self.maps.items())]
        return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


_NOT_EDITED = ("_name_or_path", "quantization_config")

Opener = Callable[[str], View]
"""Opens a model that a recipe names only under `tokenizer`."""


def _own_name(view: View, name: str, axes: Mapping[str, int]) -> str | None:
    """What a tensor is called in a model that the recipe does not match with the others.

    Its embedding stands for a head that is tied to it; a language model alone lacks the prefixes
    of one inside a larger model.
    """
    if view.tied and _ending(view.tied[0]) == _ending(name):
        return view.tied[1]
    alike = [n for n in axes if _ending(n) == _ending(name)]
    return name if name in axes else alike[0] if len(alike) == 1 else None


def _ending(name: str) -> list[str]:
    return name.split(".")[-2:]


def _others(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], *shape[axis + 1 :])


def special_ids(
    view: View, after: Mapping[str, int], rows: int, tokenizer: Tokenizer | None
) -> dict[str, Any]:
    """Begin, end and padding ids of a model's config, in the output's vocabulary.

    Of a tokenizer alone, those that its settings name.
    """
    own = tokenizer.tokens if tokenizer else {}
    config = view.config
    if config is None:
        named = roles_of(tokenizer) if tokenizer else {}
        ids = {f"{role}_id": own[token] for role, token in named.items()}
    else:
        keys = config.keys() | (text_config(config) or {}).keys()
        ids = {key: config_value(config, key) for key in SPECIAL_IDS if key in keys}
    stated = {key: number for key, number in ids.items() if key in SPECIAL_IDS}
    return moved_ids(stated, own, after, rows)[0]


def asked_at(stage: Stage) -> str:
    """The key that asks for a tokenizer."""
    return "tokenizer" if "tokenizer" in stage.positions else "tokenizer_source"
