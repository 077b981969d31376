"""The small files of an output whose vocabulary is not simply its donor's."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergewise.checkpoint import (
    Copied,
    copy_tokenizer,
    parse_object,
    read_small,
    stays_inside,
    write_file,
)
from mergewise.vocabulary._edit import edited_files
from mergewise.vocabulary._ids import IdChange
from mergewise.vocabulary._tokenizer import Tokenizer, read_tokenizer
from mergewise.vocabulary._tokenizer_json import MAX_FILE

GENERATION = "generation_config.json"
_OF_TOKENIZER = re.compile(
    r"tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json"
    r"|vocab\.(json|txt|bpe)|merges\.txt|.*\.(model|spm|tiktoken)|chat_template\.(jinja|json)"
    r"|additional_chat_templates/.*"
)
_SLOW = re.compile(r"added_tokens\.json|vocab\.(json|txt|bpe)|merges\.txt|.*\.(model|spm|tiktoken)")


class OutputFiles:
    """What is written beside the weights, made before they are merged, so that errors come first.

    Args:
        tokenizer: the output's.
        rows: of the output's embedding.
        donor: the folder that gives the other small files.
        special: ids of begin, end and padding, if they are not the donor's.

    Raises:
        CheckpointError, IncompatibleModelsError, MissingExtraError, NotBuiltYetError: if the
            tokenizer's files cannot be made.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        rows: int,
        donor: Path,
        special: Mapping[str, Any] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._donor = donor
        self._files = edited_files(tokenizer) if tokenizer.edited else {}
        self.warnings: list[str] = []
        self._generation(rows, special or {})

    def write(self, out: Path) -> Copied:
        """Copy and write everything into `out`; see `copy_tokenizer`."""
        tokenizer = self._tokenizer
        whole = copy_tokenizer(self._donor, out, lambda n: not _OF_TOKENIZER.fullmatch(n))
        own = copy_tokenizer(tokenizer.folder, out, self._kept)
        for name, data in self._files.items():
            write_file(out / name, data)
        names = dict.fromkeys((*whole.names, *own.names, *self._files))
        return Copied(tuple(names), (*whole.warnings, *own.warnings, *self.warnings))

    def _kept(self, name: str) -> bool:
        if name in self._files or not _OF_TOKENIZER.fullmatch(name):
            return False
        return not (self._tokenizer.edited and _SLOW.fullmatch(name))

    def _generation(self, rows: int, special: Mapping[str, Any]) -> None:
        """The generation config goes with the tokenizer, else with the donor; its ids follow."""
        places = [folder / GENERATION for folder in (self._tokenizer.folder, self._donor)]
        path = next((p for p in places if p.is_file() and stays_inside(p, p.parent)), None)
        if path is None:
            return
        data = read_small(path, MAX_FILE)
        found = parse_object(data, path, "generation config")
        moved, lost = dict(found), list[str]()
        theirs = read_tokenizer(path.parent)
        if theirs is not None:
            moved, lost = moved_ids(found, theirs.tokens, self._tokenizer.tokens, rows)
        if path != places[0]:
            moved |= {k: n for k, n in special.items() if k in moved and not _has(moved[k], n)}
            lost = [text for text in lost if text.split()[0] not in special]
        self.warnings += [f"{GENERATION}: {text}" for text in lost]
        if moved != found:
            data = (json.dumps(moved, indent=2) + "\n").encode()
        self._files[GENERATION] = data


def _has(value: Any, number: Any) -> bool:
    """Whether it is that id, or a list with it (a model may end in several ways)."""
    return bool(value == number or (isinstance(value, list) and number in value))


def moved_ids(
    config: Mapping[str, Any], before: Mapping[str, int], after: Mapping[str, int], rows: int
) -> tuple[dict[str, Any], list[str]]:
    """A config with its token ids moved from one vocabulary to another, and what was lost."""
    change = IdChange(before, after, rows)
    moved = change.applied(config)
    return moved, change.told()
