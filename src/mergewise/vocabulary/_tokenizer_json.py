"""What a ``tokenizer.json`` says of its vocabulary; the file is not trusted.

The format is that of Hugging Face `tokenizers` (0.23 looked at): ``model.vocab`` maps pieces to ids
(for Unigram it is a list of pieces and scores, the id being the place), ``added_tokens`` lists
tokens that are looked for before the text is split.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergewise.checkpoint import parse_object, shown, where
from mergewise.errors import CheckpointError

MAX_ID = 1 << 22
"""Ids stay below this; the largest vocabularies in use have about 260,000 tokens."""

MAX_FILE = 100_000_000
"""Bytes of a tokenizer.json; the largest in use take about 40 million."""
_MAX_CONTAINERS = 4_000_000
_MAX_VALUES = 20_000_000
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def parse_tokenizer(data: bytes, path: Path) -> dict[str, Any]:
    """The content of a tokenizer.json, its vocabulary checked.

    Raises:
        CheckpointError: if it is no such file, or a token's id or form cannot be used.
    """
    if data.count(b"[") + data.count(b"{") > _MAX_CONTAINERS or data.count(b",") > _MAX_VALUES:
        raise CheckpointError(f"{where(path)}: too many values for a tokenizer; is this the file?")
    found = parse_object(data, path, "tokenizer")
    if not isinstance(found.get("model"), dict):
        raise _bad(path, f"`model` must be a mapping, got {shown(found.get('model'), 40)}")
    pieces = model_pieces(found, path)
    read_added(found, pieces, path)
    _check_merges(found["model"].get("merges", []), path)
    return found


def model_kind(data: Mapping[str, Any]) -> str:
    """``BPE``, ``Unigram``, ``WordPiece`` or ``WordLevel``; old files do not say."""
    model = data["model"]
    if isinstance(model.get("type"), str):
        return str(model["type"])
    if isinstance(model.get("vocab"), list):
        return "Unigram"
    return "BPE" if "merges" in model else "WordPiece"


def model_pieces(data: Mapping[str, Any], path: Path) -> dict[str, int]:
    """Ids of the model's own pieces, without added tokens; raises CheckpointError."""
    vocab = data["model"].get("vocab")
    if isinstance(vocab, list):
        return _scored(vocab, path)
    if not isinstance(vocab, dict):
        raise _bad(path, "`model.vocab` must be a mapping of tokens, or a list with scores")
    for token, number in vocab.items():
        _check_id(number, token, path)
    if len(set(vocab.values())) < len(vocab):
        seen: dict[int, str] = {}
        for token, number in vocab.items():
            if seen.setdefault(number, token) != token:
                raise _bad(path, f"{shown(seen[number], 40)} and {shown(token, 40)} have one id")
    return dict(vocab)


def _scored(vocab: list[Any], path: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for entry in vocab:
        pair = isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)
        if not pair or isinstance(entry[1], bool) or not isinstance(entry[1], int | float):
            raise _bad(path, f"[token, score] expected in `model.vocab`, got {shown(entry, 60)}")
        if entry[0] in found:
            raise _bad(path, f"the piece {shown(entry[0], 40)} occurs twice")
        found[entry[0]] = len(found)
    if len(found) >= MAX_ID:
        raise _bad(path, f"{len(found):,} pieces; fewer than {MAX_ID:,} expected")
    return found


def read_added(
    data: Mapping[str, Any], pieces: Mapping[str, int], path: Path
) -> dict[str, dict[str, Any]]:
    """The added tokens by content, each with the id that `tokenizers` gives it.

    One that is also a piece has the piece's id, whatever is written; others are numbered in
    their order, after pieces and tokens before them.

    Raises:
        CheckpointError: for a token of the wrong form, or one that would get another id than the
            file states: models count on one of the two, and it is not known which.
    """
    entries = data.get("added_tokens") or []
    if not isinstance(entries, list):
        raise _bad(path, f"`added_tokens` must be a list, got {shown(entries, 40)}")
    found: dict[str, dict[str, Any]] = {}
    counter = AddedIds(len(pieces))
    for entry in entries:
        token, number = _entry(entry, path)
        if token in found:
            raise _bad(path, f"the added token {shown(token, 40)} occurs twice")
        if token not in pieces and number not in counter.following:
            raise _bad(
                path,
                f"the added token {shown(token, 40)} says id {number}, and would be given "
                f"{min(counter.following)}, the next that is free; save it anew with transformers",
            )
        found[token] = {**entry, "id": pieces.get(token, number)}
        counter.add(found[token]["id"], token in pieces)
    return found


class AddedIds:
    """Which ids `tokenizers` would give to an added token that is no piece.

    The one after the highest of the added tokens, or after the number of pieces. Whether added
    tokens that are pieces count is different between its versions (in 0.23 they do not).
    """

    def __init__(self, pieces: int) -> None:
        self._pieces = pieces
        self._last = [-1, -1]

    @property
    def following(self) -> set[int]:
        return {max(last + 1, self._pieces) for last in self._last}

    def add(self, number: int, is_piece: bool) -> None:
        self._last = [max(self._last[0], number), max(self._last[1], -1 if is_piece else number)]


def _entry(entry: Any, path: Path) -> tuple[str, int]:
    if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
        raise _bad(path, f"an added token must have `id` and `content`, got {shown(entry, 60)}")
    _check_id(entry.get("id"), entry["content"], path)
    for flag in _FLAGS:
        if not isinstance(entry.get(flag, False), bool):
            raise _bad(path, f"{flag} of {shown(entry['content'], 40)} must be true or false")
    if not entry["content"]:
        raise _bad(path, "an added token is empty")
    return entry["content"], entry["id"]


def _check_id(number: Any, token: str, path: Path) -> None:
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < MAX_ID:
        raise _bad(
            path,
            f"the id of {shown(token, 40)} must be a whole number from 0 to {MAX_ID - 1:,}, "
            f"got {shown(number, 40)}",
        )


def _check_merges(merges: Any, path: Path) -> None:
    pair = isinstance(merges, list) and all(
        (isinstance(merge, str) and " " in merge)
        or (isinstance(merge, list) and len(merge) == 2 and all(isinstance(m, str) for m in merge))
        for merge in merges
    )
    if not pair:
        raise _bad(path, "`model.merges` must be a list of pairs of pieces")


def _bad(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(f"{where(path)}: {problem}; the file is damaged, fetch it again")
