"""Pieces of other tokenizers made pieces of one: with their merges, or their scores.

As added tokens they would be cut out of a text before it is split: "ting" out of "sitting", and a
tokenizer that puts a space before what it is given (Llama 2's, Unigram, WordPiece) would put one
into the word. As pieces they are found where the tokenizer they come from finds them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mergewise.checkpoint import shown
from mergewise.errors import NotBuiltYetError
from mergewise.vocabulary._tokenizer_json import model_kind

_SPELLING = ("continuing_subword_prefix", "end_of_word_suffix")
Content = Mapping[str, Any]


def join_pieces(
    content: dict[str, Any], pieces: Mapping[str, int], others: Sequence[Content]
) -> None:
    """Put pieces into the model of a ``tokenizer.json``.

    BPE gets those merges of the others that make one of the pieces, behind its own: a text is
    first split as before, and then put together further. Unigram gets the pieces' scores. Pieces
    of another kind of tokenizer get neither, so that hardly a text has them.

    Args:
        content: of the file; its ``model`` and the list of its added tokens are replaced.
        pieces: ids by piece.
        others: contents of the tokenizers that they come from, the first coming first.

    Raises:
        NotBuiltYetError: for ids that a Unigram tokenizer cannot have.
    """
    model = content["model"]
    if isinstance(model["vocab"], list):
        model["vocab"] = _scored(content, pieces, others)
        return
    # added tokens among the pieces: a loader that counts ids by the pieces has no gap to fill
    last = max(pieces.values(), default=-1)
    between = {e["content"]: e["id"] for e in content["added_tokens"] if e["id"] < last}
    vocab = between | model["vocab"] | dict(pieces)
    model["vocab"] = dict(sorted(vocab.items(), key=lambda pair: int(pair[1])))
    if model_kind(content) == "BPE":
        alike = [other["model"] for other in others if _spelled_alike(other, content)]
        merges = [tuple(_pair(merge)) for merge in model.get("merges") or []]
        new = _new_merges(alike, pieces, model["vocab"])
        model["merges"] = [list(pair) for pair in dict.fromkeys((*merges, *new))]


def _new_merges(
    models: Sequence[Content], pieces: Mapping[str, int], vocab: Mapping[str, int]
) -> Iterator[tuple[str, str]]:
    for model in models:
        prefix = model.get("continuing_subword_prefix") or ""
        for left, right in map(_pair, model.get("merges") or []):
            made = left + right.removeprefix(prefix)
            if made in pieces and left in vocab and right in vocab:
                yield left, right


def _spelled_alike(other: Content, content: Content) -> bool:
    a, b = other["model"], content["model"]
    return model_kind(other) == "BPE" and all(
        (a.get(k) or "") == (b.get(k) or "") for k in _SPELLING
    )


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right


def _scored(
    content: Content, pieces: Mapping[str, int], others: Sequence[Content]
) -> list[list[Any]]:
    """Unigram's list, in which the place is the id; what has no score gets the lowest there is."""
    vocab = [list(entry) for entry in content["model"]["vocab"]]
    least = min((score for _, score in vocab), default=0.0)
    known: dict[str, float] = {}
    for other in others:
        if isinstance(other["model"]["vocab"], list):
            known = dict(other["model"]["vocab"]) | known
    last = max(pieces.values(), default=-1)
    names = {e["id"]: e["content"] for e in content["added_tokens"] if e["id"] < last}
    names |= {number: piece for piece, number in pieces.items()}
    for number in range(len(vocab), last + 1):
        if number not in names:
            raise NotBuiltYetError(
                f"the piece {shown(names[last])} would need the id {last}, and a Unigram tokenizer "
                "has no gaps; use another model's tokenizer"
            )
        vocab.append([names[number], known.get(names[number], least)])
    return vocab
