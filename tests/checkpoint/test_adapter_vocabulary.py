"""Adapters of models whose embeddings were resized, as PEFT saves them, against PEFT's merge."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import State, load
from small_vocabularies import plain, tokenizer_json, write_tokenizer

import mergewise
from mergewise.checkpoint import open_reference
from mergewise.errors import CheckpointError, MergewiseError
from mergewise.evidence import fingerprint_of, open_model
from mergewise.evidence._data import Data
from mergewise.transforms import transform
from mergewise.vocabulary import read_tokenizer

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
BOTH = ["embed_tokens", "lm_head"]
IDS = torch.tensor([[0, 5, 41, 40, 7, 3]])


@dataclass
class Trained:
    """A base, an adapter on it, and the model that PEFT makes of them."""

    base: Path
    adapter: Path
    merged: Any
    ran: torch.Tensor

    @property
    def name(self) -> str:
        return f"{self.base}+{self.adapter}"

    @property
    def state(self) -> State:
        return {k: v.contiguous() for k, v in self.merged.state_dict().items()}


def write_base(folder: Path, tied: bool, rows: int = 40) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=rows, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, tie_word_embeddings=tied, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    write_tokenizer(folder, tokenizer_json(plain(40)))
    return folder


def train(
    folder: Path,
    tied: bool = False,
    rows: int = 44,
    base: Path | None = None,
    tokenizer: tuple[str, ...] | None = ("<|a|>", "<|b|>", "<|c|>"),
    save: bool | str = "auto",
    name: str = "adapter",
    **config: Any,
) -> Trained:
    """Resize, adapt at random, save: what a chat fine-tune leaves behind."""
    folder.mkdir(exist_ok=True)
    base = base or write_base(folder / "base", tied)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(base)
        torch.manual_seed(len(name) + rows)
        model.resize_token_embeddings(rows, mean_resizing=False)
        told = {"target_modules": ["q_proj"], "r": 2, "task_type": "CAUSAL_LM", **config}
        adapted = peft.get_peft_model(model, peft.LoraConfig(init_lora_weights=False, **told))
        for key, value in adapted.named_parameters():
            if ".modules_to_save." in key:
                value.data += torch.randn_like(value) * 0.1
        adapted.save_pretrained(folder / name, save_embedding_layers=save)
        if tokenizer is not None:
            data = tokenizer_json(plain(40), tokenizer)
            write_tokenizer(folder / name, data, chat_template="{{ messages }}<|a|>")
        with torch.no_grad():
            ran = adapted.eval()(input_ids=IDS.clamp(max=rows - 1)).logits
        return Trained(base, folder / name, adapted.merge_and_unload().eval(), ran)


def merge(out: Path, *names: str, **recipe: Any) -> Path:
    models = [{"model": name, "parameters": {"weight": 1}} for name in names]
    mergewise.merge({"merge_method": "linear", "models": models, **recipe}, out, device="cpu")
    return out


def logits_of(place: Path | str) -> torch.Tensor:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: torch.Tensor = open_model(place).module(input_ids=IDS).logits
    return found


CASES: dict[str, dict[str, Any]] = {
    "both trained": {"modules_to_save": BOTH},
    "embedding trained": {"modules_to_save": BOTH[:1]},
    "only resized": {},
    "kept tied": {"modules_to_save": BOTH[:1], "ensure_weight_tying": True},
    "both adapted": {"target_modules": ["q_proj", *BOTH]},
    "fewer rows": {"modules_to_save": BOTH, "rows": 43},
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_merge_is_the_one_of_peft(case: str, tied: bool, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", tied, 48) if case == "fewer rows" else None
    trained = train(tmp_path, tied, base=base, **CASES[case])
    opened = open_reference(trained.name).tensors
    assert all(ref.name == name for name, ref in opened.items())
    rows = opened[EMBEDDING].shape[0]
    out = merge(tmp_path / "out", trained.name)
    config, found = json.loads((out / "config.json").read_text()), load(out)
    for place in (out, trained.name):
        assert torch.allclose(logits_of(place), trained.ran, atol=1e-5), place
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / file).read_bytes() == (trained.adapter / file).read_bytes()
    expected = trained.state
    assert rows == config["vocab_size"] == len(expected[EMBEDDING])
    if case == "both adapted" and tied:
        return  # PEFT merges what both have learned into the one tensor
    assert config["tie_word_embeddings"] == trained.merged.config.tie_word_embeddings
    found.setdefault(HEAD, found[EMBEDDING])
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.allclose(found[key], value, atol=1e-6), key


def test_a_nested_config_gets_the_number(tmp_path: Path) -> None:
    trained = train(tmp_path, modules_to_save=BOTH)
    place = trained.base / "config.json"
    config = json.loads(place.read_text())
    for text in ({"vocab_size": 40}, {}):
        nested = {k: v for k, v in config.items() if k != "vocab_size"} | text
        place.write_text(json.dumps({"model_type": "llava", "text_config": nested}))
        found = open_reference(trained.name).config
        assert found is not None and "vocab_size" not in found
        assert found["text_config"]["vocab_size"] == 44


def test_without_a_tokenizer_it_has_the_base_s(tmp_path: Path) -> None:
    trained = train(tmp_path, modules_to_save=BOTH, tokenizer=None)
    out = merge(tmp_path / "out", trained.name)
    assert (out / "tokenizer.json").read_bytes() == (trained.base / "tokenizer.json").read_bytes()
    assert open_model(trained.name).tokenizer is not None


def test_it_runs_with_its_own_tokenizer(tmp_path: Path) -> None:
    trained = train(tmp_path, modules_to_save=BOTH)
    before = fingerprint_of(trained.name)
    model = open_model(trained.name)
    assert model.tokenizer.convert_tokens_to_ids("<|b|>") == 41
    assert model.module.config.vocab_size == 44
    write_tokenizer(trained.adapter, tokenizer_json(plain(40), ("<|b|>", "<|a|>", "<|c|>")))
    assert fingerprint_of(trained.name) != before


def test_two_with_other_tokens_are_merged_token_by_token(tmp_path: Path) -> None:
    one = train(tmp_path, modules_to_save=BOTH)
    two = train(
        tmp_path, base=one.base, name="other", rows=42, tokenizer=("<|b|>", "<|x|>"),
        modules_to_save=BOTH,
    )  # fmt: skip
    with pytest.raises(MergewiseError, match="tokenizer_source: union"):
        merge(tmp_path / "no", one.name, two.name)
    out = merge(tmp_path / "out", one.name, two.name, tokenizer_source="union")
    found, words = load(out), read_tokenizer(out)
    assert words is not None and set(words.tokens) >= {"<|a|>", "<|b|>", "<|c|>", "<|x|>"}
    mine, theirs = one.state[EMBEDDING], two.state[EMBEDDING]
    row = {t: found[EMBEDDING][words.tokens[t]] for t in ("<|a|>", "<|b|>", "<|x|>", "_tok_9")}
    assert torch.allclose(row["<|b|>"], (mine[41] + theirs[40]) / 2, atol=1e-6)
    assert torch.allclose(row["_tok_9"], (mine[9] + theirs[9]) / 2, atol=1e-6)
    assert torch.allclose(row["<|a|>"], mine[40], atol=1e-6)
    assert torch.allclose(row["<|x|>"], theirs[41], atol=1e-6)


@pytest.mark.parametrize("asked", [{"tokenizer_source": "base"}, {"tokenizer_source": "union"}])
def test_with_its_base(asked: dict[str, str], tmp_path: Path) -> None:
    trained = train(tmp_path, modules_to_save=BOTH)
    out = merge(tmp_path / "out", str(trained.base), trained.name, **asked)
    found, old, new = load(out)[HEAD], load(trained.base)[HEAD], trained.state[HEAD]
    assert len(found) == (40 if asked["tokenizer_source"] == "base" else 43)
    assert torch.allclose(found[:40], (old + new[:40]) / 2, atol=1e-6)
    assert torch.allclose(found[40:], new[40 : len(found)], atol=1e-6)
    config = json.loads((out / "config.json").read_text())
    assert config["vocab_size"] == len(found)


def test_the_same_tokens_with_other_padding(tmp_path: Path) -> None:
    one = train(tmp_path, modules_to_save=BOTH)
    two = train(tmp_path, base=one.base, name="other", rows=48, modules_to_save=BOTH)
    out = merge(tmp_path / "out", one.name, two.name)
    found = load(out)[EMBEDDING]
    mean = (one.state[EMBEDDING][:43] + two.state[EMBEDDING][:43]) / 2
    assert len(found) == 48 and torch.allclose(found[:43], mean, atol=1e-6)


def test_the_template_of_the_adapter_is_found(tmp_path: Path) -> None:
    trained = train(tmp_path, modules_to_save=BOTH)
    out = merge(tmp_path / "out", trained.name, chat_template="auto")
    words = transformers.AutoTokenizer.from_pretrained(out)
    assert words.chat_template == "{{ messages }}<|a|>"


def test_a_transform_of_it_writes_its_tokenizer(tmp_path: Path) -> None:
    trained = train(tmp_path, modules_to_save=BOTH)
    records = [{"text": f"_tok_{i}<|b|>_tok_9"} for i in range(3, 9)]
    transform(
        "surgery", trained.name, tmp_path / "out", data={"t": Data(records)},
        models={"t": trained.name}, rank=2, steps=2,
    )  # fmt: skip
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / file).read_bytes() == (trained.adapter / file).read_bytes()
    assert json.loads((tmp_path / "out/config.json").read_text())["vocab_size"] == 44


def test_no_adapter_of_the_base_is_made_of_it(tmp_path: Path) -> None:
    trained = train(tmp_path, modules_to_save=BOTH)
    form = {"name": "adapter", "rank": 2, "rest": "whole"}
    with pytest.raises(MergewiseError, match="has its base's vocabulary"):
        merge(tmp_path / "out", trained.name, form=form)
    assert not (tmp_path / "out").exists()
    same = train(tmp_path, rows=40, base=trained.base, name="same", modules_to_save=BOTH)
    assert (merge(tmp_path / "out", same.name, form=form) / "adapter_model.safetensors").is_file()


def edit(adapter: Path, **changes: torch.Tensor | None) -> None:
    file = adapter / "adapter_model.safetensors"
    state = {k: v for k, v in load_file(file).items() if ".original_" not in k}
    state = {k: v for k, v in state.items() if ".modules_to_save." not in k}
    names = {"embedding": EMBEDDING, "head": HEAD, "bias": "lm_head.bias"}
    for key, value in changes.items():
        state.pop(f"base_model.model.{names[key]}", None)
        if value is not None:
            state[f"base_model.model.{names[key]}"] = value
    save_file(state, file)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no head": ({"head": None}, "missing in 'lm_head.weight'"),
    "no embedding": ({"embedding": None}, "missing in 'model.embed_tokens.weight'"),
    "two sizes": ({"head": torch.zeros(45, 16)}, "not of one size"),
    "the base's size and another": ({"head": torch.zeros(40, 16)}, "not of one size"),
    "no matrix": ({"head": torch.zeros(())}, "not of one size"),
    "no rows": ({"head": torch.zeros(0, 16)}, "not of one size"),
    "a wide one": ({"head": torch.zeros(44, 17)}, "not of one size"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_missing_and_odd_rows(case: str, tmp_path: Path) -> None:
    trained = train(tmp_path, modules_to_save=BOTH)
    changes, words = REFUSED[case]
    edit(trained.adapter, **changes)
    with pytest.raises(CheckpointError, match=re.escape(words)):
        open_reference(trained.name)


@pytest.mark.parametrize("only", ["head", "embedding"])
def test_one_of_a_tied_pair_stands_for_both(only: str, tmp_path: Path) -> None:
    trained = train(tmp_path, tied=True, modules_to_save=BOTH)
    edit(trained.adapter, **{"embedding" if only == "head" else "head": None})
    opened = open_reference(trained.name)
    assert any("taken for both" in text for text in opened.warnings)
    state = load(merge(tmp_path / "out", trained.name))
    expected = trained.state[HEAD if only == "head" else EMBEDDING]
    assert HEAD not in state and torch.equal(state[EMBEDDING], expected)


def test_other_tensors_with_the_old_rows(tmp_path: Path) -> None:
    trained = train(tmp_path, modules_to_save=BOTH)
    state = load(trained.base) | {"lm_head.bias": torch.zeros(40)}
    save_file(state, trained.base / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing in 'lm_head\.bias'"):
        open_reference(trained.name)
    edit(trained.adapter, bias=torch.ones(44))
    assert open_reference(trained.name).tensors["lm_head.bias"].shape == (44,)
    state["extra_embed.weight"] = torch.zeros(40, 2)
    save_file(state, trained.base / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing in 'extra_embed\.weight'"):
        open_reference(trained.name)
