"""The output's tokenizer: one model's, with tokens of others, and such as a recipe lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mergewise.checkpoint import shown
from mergewise.errors import IncompatibleModelsError
from mergewise.vocabulary._tokenizer import Tokenizer
from mergewise.vocabulary._tokenizer_json import MAX_ID

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def within(tokenizer: Tokenizer, rows: int) -> Tokenizer:
    """The tokenizer without tokens that have no row: those whose id is `rows` or more."""
    beyond = frozenset(token for token, number in tokenizer.tokens.items() if number >= rows)
    if not beyond:
        return tokenizer
    return replace(
        tokenizer,
        tokens={t: n for t, n in tokenizer.tokens.items() if t not in beyond},
        added={t: entry for t, entry in tokenizer.added.items() if t not in beyond},
        dropped=tokenizer.dropped | (beyond - tokenizer.new.keys() - tokenizer.pieces.keys()),
        new={t: entry for t, entry in tokenizer.new.items() if t not in beyond},
        pieces={t: n for t, n in tokenizer.pieces.items() if t not in beyond},
    )


def union(start: Tokenizer, others: Sequence[tuple[str, Tokenizer]]) -> tuple[Tokenizer, list[str]]:
    """`start` with every token of `others` that it lacks, and warnings about contradictions.

    New tokens get the ids after the highest, in the order of `others` and their ids. What another
    model has as an added token (a special one, say) is one in the result too; of several
    settings the first are kept. Pieces of other models become pieces; see `join_pieces`.
    """
    out, warnings = start, []
    for label, other in others:
        odd = [
            t
            for t in other.added
            if t in out.added and _flags(out.added[t]) != _flags(other.added[t])
        ]
        if odd:
            warnings.append(
                f"{label}: {len(odd)} added tokens have other settings than in the models before "
                f"it, which count: {', '.join(shown(t, 40) for t in odd[:3])}"
            )
        lacks = sorted(set(other.tokens) - set(out.tokens), key=other.tokens.__getitem__)
        if other.kind != out.kind and any(t not in other.added for t in lacks):
            warnings.append(
                f"{label}: its tokenizer is {other.kind}, the output's {out.kind}: its pieces get "
                "rows, but texts are split without most of them"
            )
        entries = {t: other.added.get(t) for t in lacks}
        named = {t: dict(other.added[t]) for t in other.added if t in out.tokens}
        more = {t: e for t, e in named.items() if t not in out.added}
        out = with_tokens(out, entries | more)
        if any(entry is None for entry in entries.values()):
            out = replace(out, joined=(*out.joined, other))
    return out, warnings


def with_tokens(tokenizer: Tokenizer, entries: Mapping[str, Mapping[str, Any] | None]) -> Tokenizer:
    """The tokenizer with these tokens; those without an id get the next ones.

    Args:
        entries: settings (``special``, ``lstrip``, ...) of added tokens by content; None for a
            piece.

    Raises:
        IncompatibleModelsError: if there are too many.
    """
    tokens, new, pieces = dict(tokenizer.tokens), dict(tokenizer.new), dict(tokenizer.pieces)
    following = max(tokens.values(), default=-1) + 1
    for token, entry in entries.items():
        if token not in tokens:
            tokens[token] = following
            following += 1
        if entry is None:
            pieces[token] = tokens[token]
        else:
            new[token] = {**_flags(entry), "content": token, "id": tokens[token]}
    if following >= MAX_ID:
        raise IncompatibleModelsError(f"{following:,} tokens together; fewer than {MAX_ID:,} fit")
    added = {**tokenizer.added, **{t: new[t] for t, entry in entries.items() if entry is not None}}
    return replace(tokenizer, tokens=tokens, added=added, new=new, pieces=pieces)


def listed_entry(token: str, known: Sequence[Tokenizer], renamed: Any = None) -> dict[str, Any]:
    """Settings of a token that a recipe lists: of the first model that has it as an added token.

    Args:
        renamed: settings of the token it is taken from, if it had another name.
    """
    for tokenizer in known:
        if token in tokenizer.added:
            return dict(tokenizer.added[token])
    if renamed:
        return dict(renamed)
    control = token[:1] + token[-1:] in ("<>", "[]")
    return {**_entry(token, None), "special": control}


def _entry(token: str, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Settings of an added token; a plain piece is looked for in the text as it is."""
    return {"content": token, **_flags(given or {"normalized": False})}


def _flags(entry: Mapping[str, Any]) -> dict[str, bool]:
    return {flag: bool(entry.get(flag, False)) for flag in _FLAGS}
