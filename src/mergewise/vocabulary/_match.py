"""Which row of one model stands for which token of another model's tokenizer."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mergewise.checkpoint import parse_object, read_small, stays_inside
from mergewise.vocabulary._edit import SPECIAL_KEYS
from mergewise.vocabulary._spelling import Spelling, lone_byte, spelling_of
from mergewise.vocabulary._tokenizer import Tokenizer, tokenizer_content
from mergewise.vocabulary._tokenizer_json import MAX_FILE

Level = Literal["exact", "byte", "prefix"]


@dataclass(frozen=True, eq=False)
class Lexicon:
    """A tokenizer, and what its tokens stand for.

    Attributes:
        roles: token by role (``bos_token``, ``eos_token``, ...).
    """

    tokenizer: Tokenizer
    spelling: Spelling
    roles: Mapping[str, str] = field(default_factory=dict)

    def text(self, token: str) -> bytes:
        """What a token stands for; added tokens are texts as they are written."""
        if token in self.tokenizer.added:
            return token.encode("utf-8", "surrogatepass")
        return self.spelling.text(token)

    def is_special(self, token: str) -> bool:
        """Whether it is one that no text contains."""
        entry = self.tokenizer.added.get(token)
        return bool(entry and entry.get("special")) or token in self.roles.values()


def read_lexicon(tokenizer: Tokenizer) -> Lexicon:
    """A tokenizer with what its folder says of its spelling and special tokens.

    Raises:
        CheckpointError: if a file is broken.
    """
    spelling = spelling_of(tokenizer_content(tokenizer.folder))
    return Lexicon(tokenizer, spelling, roles_of(tokenizer))


def roles_of(tokenizer: Tokenizer) -> dict[str, str]:
    """Its special tokens by role (``eos_token``), as its folder's files say; raises likewise."""
    roles: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        roles |= _roles(tokenizer.folder, name)
    return {role: token for role, token in roles.items() if token in tokenizer.tokens}


def _roles(folder: Path, name: str) -> dict[str, str]:
    path = folder / name
    if not path.is_file() or not stays_inside(path, folder):
        return {}
    found: dict[str, Any] = parse_object(read_small(path, MAX_FILE), path, name)
    given = {key: found.get(key) for key in SPECIAL_KEYS}
    plain = {k: v.get("content") if isinstance(v, dict) else v for k, v in given.items()}
    return {key: token for key, token in plain.items() if isinstance(token, str)}


@dataclass(frozen=True, eq=False)
class Match:
    """The rows that a model has for another vocabulary's tokens.

    Attributes:
        rows: by output row, the model's row; negative for none.
        how: by output row that has one: ``exact``, ``role``, ``byte`` or ``prefix``.
        missing: output rows with a token that have none, ascending.
    """

    rows: array[int]
    how: Mapping[int, str]
    missing: tuple[int, ...]

    @property
    def shared(self) -> list[tuple[int, int]]:
        """(output row, the model's row) of the tokens that both have."""
        return [(row, self.rows[row]) for row, how in sorted(self.how.items()) if how == "exact"]


def match(mine: Lexicon, theirs: Lexicon, count: int, stored: int, level: Level) -> Match:
    """Find a row of `mine` for every token of `theirs`.

    A token is matched by its string, if both spell alike or it is an added token; by the text that
    it stands for; by its role, such as the end of a sequence. With ``byte`` also by its bytes
    (``<0x0A>`` and a line break), with ``prefix`` then by the longest token of `mine` that its
    text begins with, a space alone excepted.

    Args:
        count: rows of the output.
        stored: rows of the model; tokens beyond are not used.
    """
    known = {t: n for t, n in mine.tokenizer.tokens.items() if n < stored}
    finder = _Finder(mine, theirs, known, level)
    rows = array("i", [-1]) * count
    how: dict[int, str] = {}
    for token, row in theirs.tokenizer.tokens.items():
        found = finder.find(token)
        if found is not None:
            rows[row], how[row] = found
    missing = sorted(n for n in theirs.tokenizer.tokens.values() if n not in how)
    return Match(rows, how, tuple(missing))


class _Finder:
    def __init__(self, mine: Lexicon, theirs: Lexicon, known: dict[str, int], level: Level) -> None:
        self.mine, self.theirs, self.known, self.level = mine, theirs, known, level
        self.alike = mine.spelling == theirs.spelling
        special = {t for t in known if mine.is_special(t)}
        plain = {t: n for t, n in known.items() if t not in special}
        bytes_of_mine = {t: b for t in plain if (b := _lone(mine, t)) is not None}
        self.texts: dict[bytes, int] = {}
        for token, row in plain.items():
            if token not in bytes_of_mine:
                self.texts.setdefault(mine.text(token), row)
        self.bytes = dict(self.texts)
        for token, byte in bytes_of_mine.items():
            self.bytes.setdefault(bytes((byte,)), plain[token])
        self.longest = max(map(len, self.texts), default=0)

    def find(self, token: str) -> tuple[int, str] | None:
        """The row, and how it was found."""
        theirs, special = self.theirs, self.theirs.is_special(token)
        added = token in theirs.tokenizer.added or token in self.mine.tokenizer.added
        byte = _lone(theirs, token)
        same_string = self.alike or added or byte is not None
        if token in self.known and same_string:
            return self.known[token], "exact"
        if special:
            return self._by_role(token)
        text = theirs.text(token) if byte is None else bytes((byte,))
        if byte is None and text in self.texts:
            return self.texts[text], "exact"
        if self.level != "exact" and text in self.bytes:
            return self.bytes[text], "byte"
        return self._by_prefix(text) if self.level == "prefix" else None

    def _by_role(self, token: str) -> tuple[int, str] | None:
        for role, name in self.theirs.roles.items():
            mine = self.mine.roles.get(role)
            if name == token and mine in self.known:
                return self.known[str(mine)], "role"
        return None

    def _by_prefix(self, text: bytes) -> tuple[int, str] | None:
        for end in range(min(len(text) - 1, self.longest), 0, -1):
            if text[:end].strip(b" ") and text[:end] in self.texts:
                return self.texts[text[:end]], "prefix"
        return None


def _lone(lexicon: Lexicon, token: str) -> int | None:
    """The byte of a byte piece; byte-level tokenizers have none that are written so."""
    return None if lexicon.spelling.kind == "bytes" else lone_byte(token)
