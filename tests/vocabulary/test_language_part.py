"""A vision-language model whose language part meets a language model of another vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import torch
import transformers as t
from small_models import load
from small_parts import TEXT, llava
from small_vocabularies import plain, tokenizer_json, write_tokenizer

from mergewise.engine import merge
from mergewise.errors import MergewiseError
from mergewise.plan import build_plan

HEAD, INSIDE = "lm_head.weight", "language_model.lm_head.weight"
IMAGE = "<image>"


def tokens_of(vlm: bool) -> dict[str, Any]:
    """60 tokens; in the vision-language model the 40th is that of an image."""
    pieces = plain(60)
    if vlm:
        pieces[40] = IMAGE
    else:
        pieces[3:] = [*reversed(pieces[4:]), "<|end|>"]
    return tokenizer_json(pieces)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("language-part")
    torch.manual_seed(0)
    llava(2).save_pretrained(root / "vlm")
    write_tokenizer(root / "vlm", tokens_of(True))
    for name in ("lm", "other"):
        config = t.LlamaConfig(**TEXT | {"eos_token_id": 59}, num_hidden_layers=2)
        t.LlamaForCausalLM(config).save_pretrained(root / name)
        write_tokenizer(root / name, tokens_of(False))
    return root


def document(root: Path, **parts: Any) -> dict[str, Any]:
    vlm = {"model": str(root / "vlm"), "parameters": {"weight": 0.5}}
    both = [vlm, {"model": str(root / "lm"), "parameters": {"weight": 0.5}}]
    modules = {"text_decoder": {"models": both}, "rest": {"models": [vlm]}}
    return {"merge_method": "linear", "modules": modules, **parts}


def test_a_config_does_not_lose_its_image_token(root: Path) -> None:
    """Written as null, the config could not be loaded."""
    with pytest.raises(MergewiseError, match=r"image_token_index 40 .* list its token '<image>'"):
        build_plan(document(root, tokenizer_source=str(root / "lm")))


def test_the_image_token_is_listed(root: Path, tmp_path: Path) -> None:
    tokens = {IMAGE: {"source": str(root / "vlm")}}
    tokenizer = {"source": str(root / "lm"), "tokens": tokens}
    merge(document(root, tokenizer=tokenizer), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["image_token_index"] == 60 and config["text_config"]["vocab_size"] == 64
    # begin and end are those of the tokenizer's model, where the config states them
    assert config["text_config"]["eos_token_id"] == 59 and "eos_token_id" not in config
    made, vlm = load(tmp_path / "out"), load(root / "vlm")
    assert torch.equal(made[INSIDE][60], vlm[INSIDE][40])
    model, info = t.LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(info.values()) and model.config.image_token_index == 60


def test_a_token_of_a_model_that_has_other_names(root: Path, tmp_path: Path) -> None:
    """`other` is named under `tokens` alone: nothing else matches its names with the others'."""
    renamed = {"kind": "model_token", "model": str(root / "other"), "token": "<|end|>"}
    tokenizer = {"source": "base", "tokens": {"<|new|>": {"source": renamed}}}
    merge(document(root, tokenizer=tokenizer), tmp_path / "out")
    made, other = load(tmp_path / "out"), load(root / "other")
    assert torch.equal(made[INSIDE][60], other[HEAD][59])


def test_the_language_parts_configs_are_compared(root: Path) -> None:
    plan = build_plan(document(root, tokenizer_source="base"))
    assert not [text for text in plan.warnings if "in config" in text]
    config = json.loads((root / "other" / "config.json").read_text())
    changed = config | {"num_attention_heads": 8}
    (root / "other" / "config.json").write_text(json.dumps(changed))
    recipe = document(root, tokenizer_source="base")
    recipe["modules"]["text_decoder"]["models"][1]["model"] = str(root / "other")
    told = [warning for warning in build_plan(recipe).warnings if "in config" in warning]
    (root / "other" / "config.json").write_text(json.dumps(config))
    assert len(told) == 1 and "num_attention_heads;" in told[0]


def test_ids_that_a_config_can_lack_are_told(root: Path, tmp_path: Path) -> None:
    config = json.loads((root / "lm" / "config.json").read_text()) | {"sep_token_id": 59}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for file in (root / "lm").iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    write_tokenizer(tmp_path / "two", tokenizer_json(plain(50)))
    merged = [{"model": str(tmp_path / n), "parameters": {"weight": 0.5}} for n in ("one", "two")]
    plan = build_plan({"merge_method": "linear", "models": merged,
                       "tokenizer_source": str(tmp_path / "two")})  # fmt: skip
    told = [warning for warning in plan.warnings if "config.json" in warning]
    assert len(told) == 1 and "sep_token_id 59 ('<|end|>') is not in" in told[0]
    assert plan.output.config is not None and plan.output.config["sep_token_id"] is None


def test_models_that_meet_in_a_module_are_told_how(root: Path) -> None:
    models = [{"model": str(root / n), "parameters": {"weight": 0.5}} for n in ("lm", "vlm")]
    with pytest.raises(MergewiseError, match=r"lm is a language model alone.*`modules: {text_dec"):
        build_plan({"merge_method": "linear", "models": models, "tokenizer_source": "union"})
