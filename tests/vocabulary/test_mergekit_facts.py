"""What mergekit's own tests say of tokenizers, as black-box facts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import load
from small_vocabularies import added, like, model, plain, tokenizer_json

from mergewise.engine import merge

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
CHATML = ("<|im_start|>", "<|im_end|>")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A base of 64 tokens, a model of 64 rows whose tokenizer names 128, and a chat model."""
    base = model(tmp_path / "base", tokenizer_json(plain(64)), 64)
    unused = tokenizer_json([*plain(64), *(f"_unused_{i}" for i in range(64))])
    model(tmp_path / "padded", unused, 64, like(base, 64, 1))
    model(tmp_path / "chat", tokenizer_json(plain(64), CHATML), 66, like(base, 66, 2))
    return tmp_path


def run(root: Path, **parts: Any) -> Path:
    models = [{"model": str(root / n), "parameters": {"weight": 1 / 3}}
              for n in ("base", "padded", "chat")]  # fmt: skip
    document = {"merge_method": "linear", "models": models, "base_model": str(root / "base")}
    merge(document | parts, root / "out")
    return root / "out"


def vocabulary(out: Path) -> dict[str, int]:
    tokenizers = pytest.importorskip("tokenizers")
    found: dict[str, int] = tokenizers.Tokenizer.from_file(str(out / "tokenizer.json")).get_vocab()
    return found


def config(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "config.json").read_text())
    return found


def test_union_has_all_tokens_with_rows(root: Path) -> None:
    out = run(root, tokenizer_source="union")
    tokens = vocabulary(out)
    assert len(tokens) == 66 and config(out)["vocab_size"] == 66
    assert {"_tok_10", *CHATML} <= tokens.keys() and "_unused_0" not in tokens
    chat, merged = load(root / "chat"), load(out)
    for name in (EMBEDDING, HEAD):
        assert merged[name].shape[0] == 66
        assert torch.allclose(merged[name][64:], chat[name][64:], atol=1e-6)


@pytest.mark.parametrize("parts", [{"tokenizer_source": "base"}, {"tokenizer": {"source": "base"}}])
def test_base_keeps_the_bases_tokens(root: Path, parts: dict[str, Any]) -> None:
    out = run(root, **parts)
    assert len(vocabulary(out)) == 64 and config(out)["vocab_size"] == 64
    states = [load(root / n) for n in ("base", "padded", "chat")]
    wanted = sum(state[EMBEDDING][:64] for state in states) / 3
    assert torch.allclose(load(out)[EMBEDDING], wanted, atol=1e-6)
    original = root / "base" / "tokenizer.json"
    assert (out / "tokenizer.json").read_bytes() == original.read_bytes()


def test_the_tokenizer_of_a_model(root: Path) -> None:
    out = run(root, tokenizer_source=str(root / "chat"))
    assert vocabulary(out)["<|im_end|>"] == 65 and config(out)["vocab_size"] == 66


def test_forced_tokens_are_the_sources_in_every_model(root: Path) -> None:
    source = {"source": str(root / "chat"), "force": True}
    out = run(
        root, tokenizer={"source": "base", "tokens": {"_tok_10": source, "<|im_end|>": source}}
    )
    chat, merged, found = load(root / "chat"), load(out), vocabulary(out)
    assert found["<|im_end|>"] == 64 and len(found) == 65
    for name in (EMBEDDING, HEAD):
        assert torch.allclose(merged[name][10], chat[name][10], atol=1e-6)
        assert torch.allclose(merged[name][64], chat[name][65], atol=1e-6)


@pytest.mark.parametrize("which", [{"token": "<|im_end|>"}, {"token_id": 65}])
def test_a_token_under_another_name(root: Path, which: dict[str, Any]) -> None:
    source = {"kind": "model_token", "model": str(root / "chat"), **which}
    out = run(root, tokenizer={"source": "base", "tokens": {"<|eot|>": {"source": source}}})
    row = vocabulary(out)["<|eot|>"]
    assert torch.allclose(load(out)[HEAD][row], load(root / "chat")[HEAD][65], atol=1e-6)


def test_a_token_of_zeros(root: Path) -> None:
    tokens = {"<|new|>": {"source": {"kind": "zero"}}}
    out = run(root, tokenizer={"source": "union", "tokens": tokens})
    assert not load(out)[EMBEDDING][vocabulary(out)["<|new|>"]].any()


def test_padding_to_a_multiple(root: Path) -> None:
    out = run(root, tokenizer={"source": "union", "pad_to_multiple_of": 16})
    merged = load(out)
    assert config(out)["vocab_size"] == 80 and len(vocabulary(out)) == 66
    assert merged[EMBEDDING].shape[0] == merged[HEAD].shape[0] == 80
    # further rows: the mean row of each model, so of the result
    assert torch.allclose(merged[HEAD][66:], merged[HEAD][:66].mean(0), atol=1e-6)


def test_the_order_of_ids_does_not_matter(root: Path) -> None:
    base = load(root / "base")
    tokens = [*plain(64)[:3], *reversed(plain(64)[3:])]
    order = [0, 1, 2, *range(63, 2, -1)]
    state = {n: t[order] if n in (EMBEDDING, HEAD) else t for n, t in base.items()}
    model(root / "chat", tokenizer_json(tokens), 64, state)
    model(root / "padded", tokenizer_json(plain(64)), 64, base)
    out = run(root, tokenizer_source="base")
    for name, tensor in load(out).items():
        assert torch.allclose(tensor, base[name], atol=1e-6), name


def test_settings_of_added_tokens_that_disagree_are_told(root: Path) -> None:
    data = tokenizer_json(plain(64))
    data["added_tokens"].append(added("<|im_start|>", 64, special=False))
    model(root / "padded", data, 65, like(load(root / "base"), 65, 5))
    result = merge(
        {
            "merge_method": "linear",
            "models": [{"model": str(root / n), "parameters": {"weight": 0.5}}
                       for n in ("padded", "chat")],
            "tokenizer_source": "union",
        },
        root / "out",
    )  # fmt: skip
    assert any("other settings" in warning for warning in result.warnings)
