"""A model's tokenizer: which token has which id, and where its files lie."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergewise.checkpoint import parse_object, read_small, stays_inside, where
from mergewise.errors import CheckpointError
from mergewise.vocabulary._convert import SLOW_FILES, converted
from mergewise.vocabulary._tokenizer_json import (
    MAX_FILE,
    model_kind,
    model_pieces,
    parse_tokenizer,
    read_added,
)

FILE = "tokenizer.json"


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """The tokenizer of a folder, perhaps with tokens taken out and put in.

    Attributes:
        folder: where its files lie.
        tokens: ids by token.
        added: the added tokens' settings (``special``, ``lstrip``, ...) by content.
        kind: ``BPE``, ``Unigram``, ``WordPiece`` or ``WordLevel``.
        dropped: tokens of the folder's file that this one does not have.
        new: tokens that the folder's file does not have, or not as added tokens, with their
            settings and ids.
        pieces: ids of pieces that the folder's file does not have.
        joined: the tokenizers that they come from.
        fingerprint: a hash of the folder's file.
    """

    folder: Path
    tokens: Mapping[str, int]
    added: Mapping[str, Mapping[str, Any]]
    kind: str = "BPE"
    dropped: frozenset[str] = frozenset()
    new: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pieces: Mapping[str, int] = field(default_factory=dict)
    joined: tuple[Tokenizer, ...] = ()
    fingerprint: str = ""

    @property
    def edited(self) -> bool:
        """Whether it is another than its folder's."""
        return bool(self.dropped or self.new or self.pieces)

    @property
    def put_in(self) -> int:
        """How many tokens its folder's does not have, or not as added tokens."""
        return len(self.new.keys() | self.pieces.keys())

    def digest(self) -> str:
        """A hash of everything its files depend on."""
        parts = [self.fingerprint, repr(sorted(self.dropped)), repr(sorted(self.new.items()))]
        parts += [repr(sorted(self.pieces.items())), *(other.digest() for other in self.joined)]
        return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a model folder; None if there is none.

    Read from ``tokenizer.json``. Without it, what there is (``tokenizer.model``, ``vocab.txt``,
    ``vocab.json`` and ``merges.txt``) is converted by `transformers`.

    Raises:
        CheckpointError: if a file is broken, or a link that leaves the folder.
        MissingExtraError: if it has to be converted and `transformers` is not installed.
    """
    data = tokenizer_bytes(folder)
    if data is None:
        return None
    path = folder / FILE
    content = parse_tokenizer(data, path)
    pieces = model_pieces(content, path)
    added = read_added(content, pieces, path)
    tokens = pieces | {token: int(entry["id"]) for token, entry in added.items()}
    digest = hashlib.sha256(data).hexdigest()
    return Tokenizer(folder, tokens, added, model_kind(content), fingerprint=digest)


def tokenizer_bytes(folder: Path) -> bytes | None:
    """The ``tokenizer.json`` of a folder, or what its older files amount to; see `read_tokenizer`.

    Raises:
        CheckpointError, MissingExtraError: likewise.
    """
    path = folder / FILE
    if path.exists() or path.is_symlink():
        return _read(path, folder)
    if any((folder / name).is_file() for name in SLOW_FILES):
        for name in SLOW_FILES:
            if (folder / name).is_symlink() and not stays_inside(folder / name, folder):
                raise CheckpointError(f"{where(folder / name)}: a link that leaves the folder")
        return converted(folder)
    return None


def tokenizer_content(folder: Path) -> dict[str, Any]:
    """The folder's tokenizer as the mapping that ``tokenizer.json`` holds; raises likewise."""
    data = tokenizer_bytes(folder)
    if data is None:
        raise CheckpointError(f"{where(folder)}: no tokenizer here; tokenizer.json expected")
    return parse_object(data, folder / FILE, "tokenizer")


def fingerprint_of(folder: Path) -> str | None:
    """A hash of what decides on the ids, without understanding it; None without a tokenizer.

    Raises:
        CheckpointError: if a file cannot be read, or is too large to be a vocabulary.
    """
    names = (
        [FILE] if (folder / FILE).is_file() else [n for n in SLOW_FILES if (folder / n).is_file()]
    )
    if not names:
        return None
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode() + read_small(folder / name, MAX_FILE))
    return digest.hexdigest()


def _read(path: Path, folder: Path) -> bytes:
    if not stays_inside(path, folder):
        raise CheckpointError(
            f"{where(path)}: a link that leaves the folder, or leads nowhere; copy the file itself"
        )
    return read_small(path, MAX_FILE)
