"""Which text stands behind a token: tokenizers write spaces and bytes in different ways.

GPT-2's byte-level BPE maps every byte to a printable character (a space is ``Ġ``), sentencepiece
writes a space as ``▁`` and may have pieces ``<0x0A>`` for single bytes, BERT's WordPiece marks
pieces that continue a word with ``##``. The same text is compared, not the same letters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from mergewise.vocabulary._tokenizer_json import model_kind

_SPACE = "▁"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")

Kind = Literal["bytes", "space", "continuing", "plain"]


@cache
def byte_letters() -> tuple[str, ...]:
    """The character of each byte in byte-level BPE.

    Printable bytes stand for themselves, the others take the characters from 256 on, in order.
    """
    shown = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return tuple(chr(byte if byte in shown else next(others)) for byte in range(256))


@cache
def _bytes_of_letters() -> dict[str, int]:
    return {letter: byte for byte, letter in enumerate(byte_letters())}


@dataclass(frozen=True)
class Spelling:
    """How a tokenizer writes text into its pieces.

    Attributes:
        kind: ``bytes`` (a letter for each byte), ``space`` (``▁`` for a space), ``continuing``
            (a mark on pieces within words), or ``plain``.
        mark: of pieces that continue a word.
    """

    kind: Kind
    mark: str = ""

    def text(self, piece: str) -> bytes:
        """What a piece stands for; a space before it, where it begins a word."""
        if self.kind == "bytes":
            letters = _bytes_of_letters()
            if all(letter in letters for letter in piece):
                return bytes(letters[letter] for letter in piece)
        if self.kind == "space":
            piece = piece.replace(_SPACE, " ")
        if self.kind == "continuing":
            inside = piece.startswith(self.mark) and piece != self.mark
            piece = piece[len(self.mark) :] if inside else f" {piece}"
        return piece.encode("utf-8", "surrogatepass")

    def piece(self, text: bytes) -> str | None:
        """How this tokenizer would write a text as one piece; None if it cannot."""
        if self.kind == "bytes":
            return "".join(byte_letters()[byte] for byte in text)
        try:
            found = text.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return None
        if self.kind == "space":
            return found.replace(" ", _SPACE)
        if self.kind == "continuing":
            return found[1:] if found.startswith(" ") else self.mark + found
        return found


def lone_byte(piece: str) -> int | None:
    """The byte that a piece such as ``<0x0A>`` stands for."""
    found = _BYTE.fullmatch(piece)
    return int(found[1], 16) if found else None


def spelling_of(content: Mapping[str, Any]) -> Spelling:
    """How a tokenizer spells, as its ``tokenizer.json`` says.

    Args:
        content: checked before, by `read_tokenizer`.
    """
    steps = [
        step
        for key in ("normalizer", "pre_tokenizer", "decoder")
        for step in _steps(content.get(key))
    ]
    if any(step.get("type") == "ByteLevel" for step in steps):
        return Spelling("bytes")
    if any(step.get("type") == "Metaspace" or _SPACE in _texts(step) for step in steps):
        return Spelling("space")
    if model_kind(content) == "WordPiece":
        mark = content["model"].get("continuing_subword_prefix", "##")
        return Spelling("continuing", str(mark))
    return Spelling("plain")


def _steps(part: Any) -> Iterator[Mapping[str, Any]]:
    """A step, or the steps of a sequence."""
    if not isinstance(part, dict):
        return
    yield part
    for key in ("normalizers", "pretokenizers", "decoders"):
        inner = part.get(key)
        for step in inner if isinstance(inner, list) else ():
            yield from _steps(step)


def _texts(step: Mapping[str, Any]) -> tuple[Any, ...]:
    pattern = step.get("pattern")
    inner = pattern.get("String") if isinstance(pattern, dict) else pattern
    return tuple(t for t in (inner, step.get("content"), step.get("prepend")) if isinstance(t, str))
