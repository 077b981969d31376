"""Cut a text into the pieces of a tokenizer, as it would within a longer text."""

from __future__ import annotations

import json
from typing import Any

from mergewise.checkpoint import where
from mergewise.errors import CheckpointError, MissingExtraError
from mergewise.vocabulary._match import Lexicon
from mergewise.vocabulary._tokenizer import tokenizer_content


class Cutter:
    """Cuts fragments of text, without what a tokenizer does to whole texts (normalising, splitting
    into words, a space in front).

    Args:
        stored: rows of the model; tokens beyond are not used.

    Raises:
        MissingExtraError: without `tokenizers`.
        CheckpointError: if the tokenizer does not load.
    """

    def __init__(self, lexicon: Lexicon, stored: int) -> None:
        self._lexicon = lexicon
        self._known = {t: n for t, n in lexicon.tokenizer.tokens.items() if n < stored}
        model = dict(tokenizer_content(lexicon.tokenizer.folder)["model"])
        model.pop("dropout", None)  # it would cut at random
        self._unknown = self._known.get(str(model.get("unk_token")))
        if isinstance(model.get("unk_id"), int):
            self._unknown = model["unk_id"]
        self._kind = lexicon.spelling.kind
        self._model = _reader(lexicon, model)

    def cut(self, text: bytes) -> list[int]:
        """Rows of the pieces of a text, in order; none where nothing is known of it."""
        piece = self._lexicon.spelling.piece(text)
        if piece is None:
            return self._bytes(text)
        if not piece:
            return []
        if self._kind == "continuing":
            return self._by_marks(piece)
        found = [self._known.get(token.value, -1) for token in self._model.tokenize(piece)]
        return [row for row in found if row >= 0 and row != self._unknown]

    def _bytes(self, text: bytes) -> list[int]:
        found = [self._known.get(f"<0x{byte:02X}>") for byte in text]
        return [row for row in found if row is not None]

    def _by_marks(self, piece: str) -> list[int]:
        """The longest piece first, as WordPiece does; here it may begin within a word."""
        mark = self._lexicon.spelling.mark
        inside = piece.startswith(mark) and piece != mark
        rest, found = piece[len(mark) :] if inside else piece, []
        prefix = mark if inside else ""
        while rest:
            ends = (end for end in range(len(rest), 0, -1) if prefix + rest[:end] in self._known)
            end = next(ends, 0)
            if not end:
                return []
            found.append(self._known[prefix + rest[:end]])
            rest, prefix = rest[end:], mark
        return found


def _reader(lexicon: Lexicon, model: dict[str, Any]) -> Any:
    try:
        from tokenizers import Tokenizer as Reader
    except ImportError:
        raise MissingExtraError("hf", "tokenizers", "cutting tokens into pieces") from None
    try:
        return Reader.from_str(json.dumps({"version": "1.0", "model": model})).model
    except Exception as error:  # of whatever type the library raises
        raise CheckpointError(
            f"{where(lexicon.tokenizer.folder)}: its tokenizer cannot be loaded: {error}; does "
            "the original load?"
        ) from None
