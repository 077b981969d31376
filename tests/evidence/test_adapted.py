"""A base with an adapter as a model that runs."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from small_adapters import lora
from small_models import load

import mergewise
from mergewise.checkpoint import fingerprint, open_reference
from mergewise.errors import CheckpointError, NotBuiltYetError
from mergewise.evidence import collect, fingerprint_of, open_model

transformers = pytest.importorskip("transformers")
Q, EMBEDDING = "model.layers.0.self_attn.q_proj", "model.embed_tokens"
CASES: dict[str, dict[str, Any]] = {
    "plain": {"modules": [Q, "lm_head"], "alpha": 9},
    "dora": {"modules": [Q], "use_dora": True},
    "whole": {"modules": [Q], "whole": {"model.norm.weight": torch.full((16,), 2.0)}},
    "embedding": {"modules": [], "embedded": [EMBEDDING]},
    "embedding, kept tied": {
        "modules": [], "embedded": [EMBEDDING], "ensure_weight_tying": True,
    },
}  # fmt: skip


def base_of(folder: Path, tied: bool) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_it_runs_as_the_merged_model_does(case: str, tied: bool, tmp_path: Path) -> None:
    base = base_of(tmp_path / "base", tied)
    state = load(base)
    state.setdefault("lm_head.weight", state[f"{EMBEDDING}.weight"])
    adapter = lora(tmp_path / "adapter", state, **CASES[case])
    model = {"model": f"{base}+{adapter}", "parameters": {"weight": 1}}
    mergewise.merge({"merge_method": "linear", "models": [model]}, tmp_path / "out", device="cpu")
    ids = torch.randint(0, 40, (2, 7))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, merged, plain = (
            open_model(path).module(input_ids=ids).logits
            for path in (f"{base}+{adapter}", tmp_path / "out", base)
        )
    assert torch.allclose(found, merged, atol=1e-5)
    assert not torch.allclose(found, plain, atol=1e-3)


def test_what_is_remembered_of_it(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base", False)
    adapter = lora(tmp_path / "adapter", load(base), [Q])
    before = fingerprint_of(f"{base}+{adapter}")
    assert before != fingerprint_of(base)
    lora(adapter, load(base), [Q], alpha=7)
    assert fingerprint_of(f"{base}+{adapter}") != before


def test_evidence_is_of_the_adapted_model(tmp_path: Path) -> None:
    """What is collected on a model in memory is not taken for its base's."""
    base = base_of(tmp_path / "base", False)
    adapter = lora(tmp_path / "adapter", load(base), [Q])
    ids = torch.arange(6).reshape(1, 6)
    found = {}
    for place in (str(base), f"{base}+{adapter}"):
        model = open_model(place)
        assert model.reference == place
        out = tmp_path / f"{len(found)}.safetensors"
        found[place] = collect("input_gram", model, [{"input_ids": ids}], out).record.model
        assert found[place]["weights"] == [fingerprint(f) for f in open_reference(place).files]
    assert found[str(base)] != found[f"{base}+{adapter}"]


def test_what_does_not_run_it_says_so(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base", False)
    adapter = lora(tmp_path / "adapter", load(base), [Q])
    with pytest.raises(NotBuiltYetError, match="not run from disk yet"):
        open_model(f"{base}+{adapter}", offload=True)
    state = {**load(base), "extra.weight": torch.zeros(4, 4)}
    from safetensors.torch import save_file

    save_file(state, base / "model.safetensors", metadata={"format": "pt"})
    other = lora(tmp_path / "other", state, ["extra"])
    with pytest.raises(CheckpointError, match=r"not in LlamaForCausalLM \(extra.weight\)"):
        open_model(f"{base}+{other}")
