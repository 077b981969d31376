"""Write a tokenizer with tokens taken out and put in, in the files of its folder."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergewise.checkpoint import parse_object, read_small, shown, stays_inside, where
from mergewise.errors import CheckpointError, IncompatibleModelsError, NotBuiltYetError
from mergewise.vocabulary._join import join_pieces
from mergewise.vocabulary._tokenizer import FILE, Tokenizer, tokenizer_content
from mergewise.vocabulary._tokenizer_json import MAX_FILE, AddedIds

SPECIAL_KEYS = (
    "bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token",
)  # fmt: skip
_FLAGS = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")


def edited_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """The changed files of a tokenizer by name: what is not among them is as in its folder.

    Raises:
        CheckpointError: if the folder's files are broken.
        IncompatibleModelsError: if what is taken out is needed.
        NotBuiltYetError: for ids that this kind of tokenizer cannot have.
    """
    content = edited_content(tokenizer, tokenizer_content(tokenizer.folder))
    check_ids(tokenizer, content)
    files = {FILE: _dump(content)}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        found = _small(tokenizer.folder, name)
        if found is not None:
            files[name] = _dump(_settings(tokenizer, found))
    return files


def edited_content(tokenizer: Tokenizer, content: Mapping[str, Any]) -> dict[str, Any]:
    """What ``tokenizer.json`` is to hold."""
    content = dict(content)
    content["model"] = model = dict(content["model"])
    _take_out(tokenizer, content, model)
    gone = tokenizer.dropped | tokenizer.new.keys()
    kept = [entry for entry in content.get("added_tokens") or [] if entry["content"] not in gone]
    entries = kept + [dict(entry) for entry in tokenizer.new.values()]
    content["added_tokens"] = sorted(entries, key=lambda entry: int(entry["id"]))
    if tokenizer.pieces:
        others = [edited_content(t, tokenizer_content(t.folder)) for t in tokenizer.joined]
        join_pieces(content, tokenizer.pieces, others)
    _number(content, model)
    return content


def _take_out(tokenizer: Tokenizer, content: Mapping[str, Any], model: dict[str, Any]) -> None:
    dropped = tokenizer.dropped
    if not dropped:
        return
    vocab = model["vocab"]
    if isinstance(vocab, list):
        model["vocab"] = [entry for entry in vocab if entry[0] not in dropped]
    else:
        model["vocab"] = {t: n for t, n in vocab.items() if t not in dropped}
    if model.get("merges"):
        model["merges"] = [merge for merge in model["merges"] if not _pieces(merge) & dropped]
    needed = _names(content.get("post_processor")) | {str(model.get("unk_token"))}
    if lost := sorted(needed & dropped):
        raise IncompatibleModelsError(
            f"{where(tokenizer.folder)}: the tokenizer puts {shown(lost[0])} into every text, and "
            "its id is beyond the embedding's rows; take another tokenizer (`tokenizer: {source: "
            "MODEL}`)"
        )


def _pieces(merge: Any) -> set[str]:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return {left, right, left + right}


def _names(part: Any) -> set[str]:
    """Every text in a post-processor, tokens among them."""
    if isinstance(part, str):
        return {part}
    inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    found = set(part) if isinstance(part, dict) else set()
    return found.union(*(_names(item) for item in inner))


def _number(content: Mapping[str, Any], model: dict[str, Any]) -> None:
    """See that each added token gets its id: where counting on would give another, as a piece."""
    vocab = model["vocab"]
    pieces = {entry[0] for entry in vocab} if isinstance(vocab, list) else dict(vocab)
    counter, more = AddedIds(len(pieces)), False
    for entry in content["added_tokens"]:
        token, number = entry["content"], entry["id"]
        known = token in pieces
        if not known and (more or counter.following != {number}):
            if not isinstance(pieces, dict):
                raise NotBuiltYetError(
                    f"the token {shown(token)} would need the id {number}, and a Unigram tokenizer "
                    "has no gaps; use another model's tokenizer"
                )
            pieces[token] = number
            more = True
        counter.add(number, known)
    if isinstance(pieces, dict):
        model["vocab"] = pieces


def check_ids(tokenizer: Tokenizer, content: Mapping[str, Any]) -> None:
    """See that `tokenizers`, if it is installed, reads back what was meant.

    Raises:
        CheckpointError: if it does not load, or an id is another.
    """
    try:
        from tokenizers import Tokenizer as Reader
    except ImportError:
        return
    folder = where(tokenizer.folder)
    try:
        found = Reader.from_str(json.dumps(content)).get_vocab(with_added_tokens=True)
    except Exception as error:  # of whatever type the library raises
        raise CheckpointError(
            f"{folder}: its tokenizer cannot be loaded with the merged vocabulary: {error}; does "
            "the original load?"
        ) from None
    odd = [t for t, n in tokenizer.tokens.items() if found.get(t) != n]
    if odd:
        raise CheckpointError(
            f"{folder}: with the merged vocabulary {len(odd)} tokens would get other ids than "
            f"planned: {', '.join(shown(t, 40) for t in odd[:3])}; is the tokenizer intact?"
        )


def _settings(tokenizer: Tokenizer, given: dict[str, Any]) -> dict[str, Any]:
    """``tokenizer_config.json`` or ``special_tokens_map.json`` of the changed tokenizer."""
    found = copy.deepcopy(given)
    decoder = found.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        kept = {n: e for n, e in decoder.items() if _content(e) not in tokenizer.dropped}
        new = {str(e["id"]): {f: e[f] for f in _FLAGS} for e in tokenizer.new.values()}
        merged = kept | new
        found["added_tokens_decoder"] = dict(sorted(merged.items(), key=lambda p: _int(p[0])))
    for key in SPECIAL_KEYS:
        if _content(found.get(key)) in tokenizer.dropped:
            del found[key]
    more = found.get("additional_special_tokens")
    if isinstance(more, list):
        kept_more = [token for token in more if _content(token) not in tokenizer.dropped]
        found["additional_special_tokens"] = kept_more
    return found


def _content(entry: Any) -> str | None:
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) else None


def _int(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0


def _small(folder: Path, name: str) -> dict[str, Any] | None:
    path = folder / name
    if not path.is_file() or not stays_inside(path, folder):
        return None
    return parse_object(read_small(path, MAX_FILE), path, name)


def _dump(content: Mapping[str, Any]) -> bytes:
    try:
        return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # half of a surrogate pair: only an escape can say it
        return (json.dumps(content, indent=2) + "\n").encode()
