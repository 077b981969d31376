"""Slices and modules, end to end: the result loads whole and equals one put together by hand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import assert_same, load
from small_parts import assembled, gemma3, logits, made, reload, stacked, states, t5

from mergewise import merge, plan
from mergewise.errors import RecipeError


def slices(*spans: tuple[Path, int, int]) -> list[dict[str, Any]]:
    return [{"sources": [{"model": str(m), "layer_range": [a, b]}]} for m, a, b in spans]


def passthrough(**form: Any) -> dict[str, Any]:
    return {"merge_method": "passthrough", **form}


def only(model: Path) -> dict[str, Any]:
    return {"models": [{"model": str(model)}]}


def check(out: Path, by_hand: dict[str, torch.Tensor], config: Any, folder: Path) -> Any:
    """The folder holds these tensors, loads whole, and computes what they say."""
    assert_same(load(out), by_hand)
    model = reload(out)
    assert torch.equal(logits(model), logits(assembled(by_hand, config, folder)))
    return model


PREFIXES = {
    "llama": "model.layers.", "tied llama": "model.layers.", "gpt2": "transformer.h.",
    "bert": "bert.encoder.layer.", "gemma3": "language_model.model.layers.",
    "llava": "language_model.model.layers.",
}  # fmt: skip


@pytest.mark.parametrize("kind", PREFIXES)
def test_layers_of_models_of_different_depth(kind: str, tmp_path: Path) -> None:
    """Stacked, swapped and repeated; the embedding is the first model's, the norm the last's."""
    a, b = made(kind, tmp_path / "a", 1, 3), made(kind, tmp_path / "b", 2, 5)
    spans = slices((a, 0, 2), (b, 3, 5), (b, 3, 5), (a, 2, 3), (b, 4, 5))
    merge(passthrough(slices=spans), tmp_path / "out")
    one, other = states(a, b)
    order = [(one, 0), (one, 1), (other, 3), (other, 4), (other, 3), (other, 4), (one, 2)]
    rest = dict(one)
    behind = ("norm.weight", "lm_head.weight", "ln_f.weight", "ln_f.bias")
    for name in one:
        if name.startswith("cls.") or (
            name.endswith(behind) and not name.startswith(("vision", "multi", "bert.emb"))
            and ".layers." not in name
        ):  # fmt: skip
            rest[name] = other[name]
    by_hand = stacked(PREFIXES[kind], [*order, (other, 4)], rest)
    config = copy.deepcopy(reload(a).config)
    text = getattr(config, "text_config", config)
    text.num_hidden_layers = 8
    if hasattr(text, "layer_types") and text.layer_types:
        text.layer_types = ["sliding_attention"] * 8
    check(tmp_path / "out", by_hand, config, tmp_path / "hand")


@pytest.mark.parametrize("kind", ["t5", "whisper", "bart"])
@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_one_side_of_an_encoder_decoder(kind: str, side: str, tmp_path: Path) -> None:
    a, b = made(kind, tmp_path / "a", 1, 3), made(kind, tmp_path / "b", 2, 3)
    other_side = {"encoder": "decoder", "decoder": "encoder"}[side]
    modules: dict[str, Any] = {
        side: {"slices": slices((a, 0, 2), (b, 1, 3), (a, 2, 3))}, other_side: only(b)
    }  # fmt: skip
    if kind != "whisper":
        modules["shared"] = only(a)
    merge(passthrough(modules=modules), tmp_path / "out")
    one, two = states(a, b)
    stem = "" if kind == "t5" else "model."
    layers = {"t5": "block."}.get(kind, "layers.")
    before = ("embed_positions", "embed_tokens", "layernorm_embedding", "conv")
    rest = {n: two[n] if n.startswith(f"{stem}{other_side}.") else v for n, v in one.items()}
    # behind the last slice's layers there is a's norm again: a is first and last
    prefix = f"{stem}{side}.{layers}"
    by_hand = stacked(prefix, [(one, 0), (one, 1), (two, 1), (two, 2), (one, 2)], rest)
    assert any(part in name for name in by_hand for part in before) or kind == "t5"
    config = copy.deepcopy(reload(a).config)
    key = {"t5": {"encoder": "num_layers", "decoder": "num_decoder_layers"}[side]}
    setattr(config, key.get(kind, f"{side}_layers"), 5)
    found = check(tmp_path / "out", by_hand, config, tmp_path / "hand").config
    sides = [getattr(found, k) for k in _COUNTS[kind]]
    assert sides == ([5, 3] if side == "encoder" else [3, 5])


_COUNTS = {
    "t5": ("num_layers", "num_decoder_layers"),
    "whisper": ("encoder_layers", "decoder_layers"),
    "bart": ("encoder_layers", "decoder_layers"),
}


def test_t5_keeps_its_position_biases_in_the_first_layer(tmp_path: Path) -> None:
    a, b = made(t5, tmp_path / "a", 1, 2, 4), made(t5, tmp_path / "b", 2, 2, 4)
    modules = {"decoder": {"slices": slices((b, 1, 4), (a, 0, 2))}, "rest": only(a)}
    merge(passthrough(modules=modules), tmp_path / "out")
    one, two = states(a, b)
    bias = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    by_hand = stacked("decoder.block.", [(two, 1), (two, 2), (two, 3), (one, 0), (one, 1)], one)
    moved = bias.replace("block.0", "block.3")
    by_hand[bias] = two[bias]
    del by_hand[moved]
    config = copy.deepcopy(reload(a).config)
    config.num_decoder_layers = 5
    check(tmp_path / "out", by_hand, config, tmp_path / "hand")


@pytest.mark.parametrize("kind", ["gemma3", "llava"])
def test_modules_of_a_vision_language_model(kind: str, tmp_path: Path) -> None:
    a, b = made(kind, tmp_path / "a", 1, 3), made(kind, tmp_path / "b", 2, 3)
    text = {"slices": slices((a, 0, 2), (b, 1, 3))}
    modules = {"language_model": text, "vision_tower": only(b), "multi_modal_projector": only(a)}
    merge(passthrough(modules=modules), tmp_path / "out")
    one, two = states(a, b)
    behind = ("language_model.model.norm.weight", "language_model.lm_head.weight")
    rest = {n: two[n] if n.startswith("vision_tower") or n in behind else v for n, v in one.items()}
    order = [(one, 0), (one, 1), (two, 1), (two, 2)]
    by_hand = stacked("language_model.model.layers.", order, rest)
    config = copy.deepcopy(reload(a).config)
    config.text_config.num_hidden_layers = 4
    if kind == "gemma3":
        config.text_config.layer_types = ["sliding_attention"] * 4
    model = check(tmp_path / "out", by_hand, config, tmp_path / "hand")
    assert model.config.vision_config.num_hidden_layers == 2


def test_a_vision_tower_of_another_depth(tmp_path: Path) -> None:
    a, b = (
        made(gemma3, tmp_path / "a", 1, 2, vision=2),
        made(gemma3, tmp_path / "b", 2, 2, vision=3),
    )
    merge(passthrough(modules={"vision_tower": only(b), "rest": only(a)}), tmp_path / "out")
    one, two = states(a, b)
    by_hand = {n: v for n, v in one.items() if not n.startswith("vision")}
    by_hand |= {n: v for n, v in two.items() if n.startswith("vision")}
    check(tmp_path / "out", by_hand, reload(b).config, tmp_path / "hand")


def test_a_language_model_goes_into_a_vision_language_model(tmp_path: Path) -> None:
    """Its names are those of the language tower without a prefix."""
    vlm, llm = made("llava", tmp_path / "vlm", 1, 3), made("llama", tmp_path / "llm", 2, 3)
    document = {
        "merge_method": "task_arithmetic", "base_model": str(llm),
        "modules": {
            "text_decoder": {"models": [{"model": str(vlm), "parameters": {"weight": 0.5}}]},
            "rest": only(vlm),
        },
        "parameters": {"weight": 1},
    }  # fmt: skip
    document["modules"]["rest"] = {"models": [{"model": str(vlm)}]}
    with pytest.raises(RecipeError, match="llm has no vision_tower"):
        plan(document)
    document |= {"merge_method": "linear", "base_model": None}
    document["modules"]["text_decoder"]["models"].append(
        {"model": str(llm), "parameters": {"weight": 0.5}}
    )
    merge({k: v for k, v in document.items() if v}, tmp_path / "out")
    one, two = states(vlm, llm)
    text = "language_model."
    by_hand = {
        n: (v + two[n.removeprefix(text)]) / 2 if n.startswith(text) else v for n, v in one.items()
    }
    check(tmp_path / "out", by_hand, reload(vlm).config, tmp_path / "hand")
