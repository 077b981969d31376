"""An adapter whose embedding and head have other rows than its base's: tokens were added."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mergewise.checkpoint._adapters._adapter import Adapter
from mergewise.checkpoint._config import config_value, set_config_value, text_config
from mergewise.checkpoint._files import shown, where
from mergewise.checkpoint._model import TensorRef
from mergewise.checkpoint._parts import head_and_embedding, layer_index
from mergewise.errors import CheckpointError

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json")
_OWNERS = ("embed_tokens", "head", "lm_head")

Refs = Mapping[str, TensorRef]


@dataclass(frozen=True)
class OtherVocabulary:
    """What an adapter on a base has for tokens.

    Attributes:
        rows: of embedding and head if they are not the base's; else None.
        refs: the base's tensors, with the adapter's in place of those of another size.
        untied: of embedding and head, the ones that may differ though the base has one for both.
        tokenizer: the adapter's folder, if its tokenizer is the model's.
        warnings: what had to be taken for granted.
    """

    rows: int | None
    refs: dict[str, TensorRef]
    untied: frozenset[str]
    tokenizer: Path | None
    warnings: tuple[str, ...] = ()

    def config(self, config: dict[str, Any] | None) -> dict[str, Any] | None:
        """The base's config with the number of rows."""
        if config is None or self.rows is None or config_value(config, "vocab_size") == self.rows:
            return config
        config = copy.deepcopy(config)
        nested = text_config(config)
        stated = config_value(config, "vocab_size") is not None
        set_config_value(config if stated or nested is None else nested, "vocab_size", self.rows)
        return config


def other_vocabulary(
    adapter: Adapter, refs: Refs, names: Mapping[str, str], tie: tuple[str, str] | None
) -> OtherVocabulary:
    """Find out whether an adapter brings a vocabulary of its own.

    PEFT saves embedding and head whole where they were resized, trained (``modules_to_save``) or
    not (``save_embedding_layers``).

    Args:
        refs: the base's tensors, with a tied head's under the head's name.
        names: the base's name of each tensor that the adapter holds whole.
        tie: (head, embedding) if the base has one tensor for both.

    Raises:
        CheckpointError: if rows are missing, or of several numbers.
    """
    pair = head_and_embedding(refs.keys())
    held = {names[name]: ref for name, ref in adapter.replaced.items()}
    ours = [name for name in pair or () if name in held]
    folder = _tokenizer(adapter) if ours else None
    if pair is None or not any(_resized(refs[name], held[name]) for name in ours):
        return OtherVocabulary(None, dict(refs), frozenset(ours), folder)
    return _Resizing(adapter, refs, held, pair, tie is not None).run(folder)


def _resized(old: TensorRef, new: TensorRef) -> bool:
    """Whether one is the other with another number of rows; else shapes are checked later."""
    alike = len(old.shape) == len(new.shape) == 2 and old.shape[1] == new.shape[1]
    return alike and old.shape[0] != new.shape[0] > 0


@dataclass(frozen=True)
class _Resizing:
    adapter: Adapter
    refs: Refs
    held: Refs
    pair: tuple[str, str]
    tied: bool

    def run(self, folder: Path | None) -> OtherVocabulary:
        names = [name for name in self.pair if name in self.refs]
        ours = [name for name in names if name in self.held]
        rows = self._rows(ours)
        old = self.refs[ours[0]].shape[0]
        if len(ours) < len(names) and not self.tied:
            lacking = next(name for name in names if name not in ours)
            raise self._bad(lacking, f"the base's has {old:,}, and the adapter holds none")
        parts = {name: self.held.get(name, self.held[ours[0]]) for name in names}
        parts |= self._bias(rows)
        self._refuse_others(old, {*parts})
        found = {name: replace(ref, name=name) for name, ref in parts.items()}
        trained = frozenset(ours) if len(ours) == 2 and any(map(self._trained, ours)) else ()
        warnings = () if len(ours) == len(names) or not self._trained(ours[0]) else self._same(ours)
        return OtherVocabulary(
            rows, {**self.refs, **found}, frozenset(trained), folder, tuple(warnings)
        )

    def _rows(self, ours: list[str]) -> int:
        rows = {self.held[name].shape[0] for name in ours if self._fits(name)}
        if len(rows) > 1 or not all(map(self._fits, ours)):
            told = " and ".join(f"{shown(n)} {list(self.held[n].shape)}" for n in ours)
            raise CheckpointError(
                f"{where(self.adapter.file)}: {told}: another vocabulary than the base's, and not "
                "of one size; save the adapter anew"
            )
        return rows.pop()

    def _fits(self, name: str) -> bool:
        shape = self.held[name].shape
        return len(shape) == 2 and shape[1:] == self.refs[name].shape[1:]

    def _bias(self, rows: int) -> dict[str, TensorRef]:
        """The head's bias, which has a number for each row."""
        name = f"{self.pair[0].removesuffix('.weight')}.bias"
        if name not in self.refs:
            return {}
        if name not in self.held or self.held[name].shape != (rows,):
            raise self._bad(name, f"{rows:,} numbers are expected in the adapter")
        return {name: self.held[name]}

    def _refuse_others(self, old: int, known: set[str]) -> None:
        for name, ref in self.refs.items():
            if name in known or ref.shape[:1] != (old,):
                continue
            if layer_index(name) is None or name.split(".")[-2] in _OWNERS:
                raise self._bad(name, f"the base's has {old:,} too, and the adapter holds none")

    def _trained(self, name: str) -> bool:
        module = f".{name.removesuffix('.weight')}"
        stated = self.adapter.config.raw.get("modules_to_save")
        return any(
            module.endswith(f".{part}") for part in stated or () if isinstance(part, str) and part
        )

    def _same(self, ours: list[str]) -> list[str]:
        if self.adapter.config.keeps_tied:
            return []
        return [
            f"{where(self.adapter.folder)}: of another vocabulary than its base, it holds "
            f"{ours[0]} alone, which is taken for both head and embedding"
        ]

    def _bad(self, name: str, what: str) -> CheckpointError:
        return CheckpointError(
            f"{where(self.adapter.file)}: the adapter has another vocabulary than its base, and "
            f"rows for its tokens are missing in {shown(name)}: {what}; save the adapter with "
            "PEFT's save_embedding_layers=True, or merge it into its resized base with PEFT"
        )


def _tokenizer(adapter: Adapter) -> Path | None:
    """Its folder, if there is a tokenizer."""
    folder = adapter.folder
    return folder if any((folder / name).is_file() for name in _TOKENIZERS) else None
