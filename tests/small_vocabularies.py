"""Small models with tokenizers: which token has which id is chosen by the test."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from small_models import State, llama_config, llama_shapes, near, random_state, save

SPECIALS = ("<s>", "</s>", "<unk>")


def added(token: str, number: int, special: bool = True, **flags: Any) -> dict[str, Any]:
    entry = {"id": number, "content": token, "single_word": False, "lstrip": False}
    return {**entry, "rstrip": False, "normalized": False, "special": special, **flags}


def tokenizer_json(
    pieces: Sequence[str] | Mapping[str, int],
    extra: Iterable[str] = (),
    merges: Sequence[Sequence[str]] = (),
    **parts: Any,
) -> dict[str, Any]:
    """A BPE without pre-tokenizer; `extra` are special tokens after the pieces."""
    vocab = dict(pieces) if isinstance(pieces, Mapping) else {t: i for i, t in enumerate(pieces)}
    known = [added(t, vocab[t]) for t in SPECIALS if t in vocab]
    more = [added(t, len(vocab) + i) for i, t in enumerate(extra)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": known + more,
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [list(merge) for merge in merges],
        },
        **parts,
    }


def ids_of(data: Mapping[str, Any]) -> dict[str, int]:
    """Ids by token as the file states them."""
    found = dict(data["model"]["vocab"])
    return found | {entry["content"]: entry["id"] for entry in data["added_tokens"]}


def plain(count: int = 64) -> list[str]:
    """Three specials and single tokens, ``_tok_3`` on."""
    return [*SPECIALS, *(f"_tok_{i}" for i in range(3, count))]


def write_tokenizer(folder: Path, data: Mapping[str, Any], **config: Any) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False), "utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>",
                "eos_token": "</s>", "unk_token": "<unk>", **config}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def model(
    folder: Path,
    data: Mapping[str, Any],
    rows: int,
    state: State | None = None,
    *,
    seed: int = 0,
    head: bool = True,
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> State:
    """A small Llama of `rows` rows with a tokenizer; returns its tensors."""
    shapes = llama_shapes(vocab=rows, head=head)
    state = random_state(shapes, seed, dtype) if state is None else state
    named = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    save(folder, state, llama_config(shapes, torch_dtype="float32", **{**named, **config}))
    write_tokenizer(folder, data)
    return state


def like(base: State, rows: int, seed: int) -> State:
    """An expert of `base` with another number of rows: the common ones near, others new."""
    state = near(base, seed)
    draw = torch.Generator().manual_seed(seed)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in state:
            old = state[name]
            new = torch.randn(rows, old.shape[1], generator=draw).to(old.dtype)
            new[: min(rows, len(old))] = old[:rows]
            state[name] = new
    return state


def permuted(state: State, order: Sequence[int]) -> State:
    """The same model with row i in place ``order[i]``."""
    where = torch.tensor(order)
    out = dict(state)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in state:
            out[name] = torch.empty_like(state[name])
            out[name][where] = state[name]
    return out


def shuffled(count: int, seed: int) -> list[int]:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order
