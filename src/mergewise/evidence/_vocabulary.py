"""Whether a tokenizer gives ids that its model does not know, found before any model is loaded.

Tokenizers often have a few tokens more than the model (kinds of images, roles of a chat), which is
no harm while no text has them. So files are compared first, and only where a tokenizer has higher
ids are the texts themselves tokenized.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergewise.checkpoint import (
    MAX_COPIED,
    Checkpoint,
    config_value,
    head_and_embedding,
    parse_object,
    read_small,
)
from mergewise.errors import CheckpointError, DataError

if TYPE_CHECKING:
    from mergewise.evidence._data import Data
    from mergewise.evidence.models._live import Role

Text = tuple[int, str]
"""A text and the number of the row it is from."""


def known_tokens(checkpoint: Checkpoint) -> int | None:
    """How many tokens a model knows: rows of its embedding, else what its config says."""
    pair = head_and_embedding(checkpoint.tensors.keys())
    shape = checkpoint.tensors[pair[1]].shape if pair else ()
    if len(shape) == 2:
        return shape[0]
    stated = config_value(checkpoint.config, "vocab_size")
    return stated if isinstance(stated, int) else None


def highest_id(folder: Path) -> int | None:
    """The highest id of a folder's tokenizer; None where its file does not tell it plainly."""
    for name in ("tokenizer.json", "vocab.txt"):
        path = folder / name
        if path.is_file():
            state = path.stat()
            return _highest_in(path, state.st_size, state.st_mtime_ns)
    return None


@lru_cache(maxsize=64)
def _highest_in(path: Path, size: int, time: int) -> int | None:
    try:
        data = read_small(path, MAX_COPIED)
        if path.suffix == ".txt":
            return data.count(b"\n")
        return _highest(parse_object(data, path, "tokenizer"))
    except (CheckpointError, TypeError, AttributeError, KeyError, ValueError):
        return None  # what is wrong with it is said when it is loaded


def _highest(tokenizer: Mapping[str, Any]) -> int:
    """Of the ``tokenizer.json`` of the `tokenizers` library; raises if it is of another form."""
    vocabulary = tokenizer["model"]["vocab"]
    listed = isinstance(vocabulary, list)
    ids = [len(vocabulary) - 1] if listed else [int(i) for i in vocabulary.values()]
    return max(ids + [int(one["id"]) for one in tokenizer.get("added_tokens") or ()])


def see_tokens(
    name: str,
    checkpoint: Checkpoint,
    data: Data,
    role: Role,
    template: str | None = None,
    trust: bool = False,
    plain: bool = False,
) -> None:
    """See that the model knows every token of the data's texts.

    Args:
        name: what the model is called in messages.
        data: that can be read more than once.
        plain: look at each text of a record, not at what `template` or the usual fields make.

    Raises:
        DataError: for the first token that it does not know.
        CheckpointError: if the tokenizer must be loaded and cannot be.
    """
    from mergewise.evidence._text import encode
    from mergewise.evidence.models._live import _tokenizer

    known, highest = known_tokens(checkpoint), highest_id(checkpoint.tokenizer_folder)
    if known is None or (highest is not None and highest < known) or role == "image_classifier":
        return
    tokenizer = _tokenizer(checkpoint.tokenizer_folder, role, trust)
    if tokenizer is None:
        return
    for row, text in _texts(data, template, tokenizer, plain):
        worst = max(encode(tokenizer, text), default=0)
        if worst >= known:
            raise DataError(
                f"{data.name}: row {row + 1} has the token id {worst}, but {name} knows {known} "
                "tokens; is it the tokenizer of another model?"
            )


def _texts(data: Data, template: str | None, tokenizer: Any, plain: bool) -> Iterator[Text]:
    from mergewise.evidence._text import text_of

    first, step = data.share
    for index, record in enumerate(data):
        row = data.rows[0] + first + index * step
        if plain:
            yield from ((row, text) for text in _strings(record.values()))
        elif "image" not in record and not _tensors(record):
            yield row, text_of(record, row, template, tokenizer)


def _tensors(record: Mapping[str, Any]) -> bool:
    return any(hasattr(value, "shape") for value in record.values())


def _strings(values: Iterable[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, list | dict):
            yield from _strings(value.values() if isinstance(value, dict) else value)
