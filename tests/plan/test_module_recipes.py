"""What a recipe may say of modules: names, parameters, stages, adapters, evidence; refusals."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_adapters import dense, lora
from small_evidence import write_means
from small_models import assert_same, load
from small_parts import gemma3, made, reload, t5, whisper
from test_module_slices import only, passthrough, slices

from mergewise import merge, plan
from mergewise.checkpoint import find_modules, module_called
from mergewise.errors import RecipeError
from mergewise.methods import get_method
from mergewise.recipe import load_recipe

TEXT, VISION = "language_model.model.layers.", "vision_tower.encoder.layers."


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("gemma3")
    return made(gemma3, root / "a", 1, 3), made(gemma3, root / "b", 2, 3)


def refusal(document: dict[str, Any]) -> str:
    with pytest.raises(RecipeError) as caught:
        plan(document)
    return str(caught.value)


TEXT_AND_HEAD = "model.layers.0.a model.layers.1.a lm_head.weight"
T5_SIDES = "encoder.block.0.a encoder.block.1.a decoder.block.0.a decoder.block.1.a"
WHISPER = (
    "model.encoder.layers.0.a model.encoder.layers.0.b model.decoder.layers.0.a "
    "model.decoder.layers.0.b model.decoder.embed_tokens.weight"
)
VISION_ALONE = "vision_model.layers.0.a vision_model.layers.1.a visual_projection.weight"
QWEN3_VL = (
    "model.language_model.layers.0.a model.language_model.layers.0.b model.visual.blocks.0.a "
    "model.visual.deepstack_merger_list.0.norm.weight lm_head.weight"
)
AUDIO = (
    "audio_tower.layers.0.a multi_modal_projector.linear.weight language_model.model.layers.0.a "
    "language_model.model.layers.0.b"
)
THREE = {"text_decoder": 3, "vision_tower": 1, "multi_modal_projector": 1}


@pytest.mark.parametrize(
    ("text", "modules"),
    [
        (TEXT_AND_HEAD, {"default": 3}),
        (f"{TEXT_AND_HEAD} visual.blocks.0.a visual.merger.mlp.0.weight", THREE),
        (QWEN3_VL, THREE),
        (VISION_ALONE, {"default": 3}),
        (f"{T5_SIDES} shared.weight lm_head.weight", {"encoder": 2, "decoder": 2, "shared": 2}),
        (f"{WHISPER} proj_out.weight", {"encoder": 2, "decoder": 4}),
        ("model.decoder.layers.0.a model.decoder.layers.1.a", {"default": 2}),
        ("bert.encoder.layer.0.a bert.encoder.layer.1.a cls.decoder.weight", {"default": 3}),
        ("bert.layer.0.a bert.layer.1.a vocab_projector.weight", {"default": 3}),
        (AUDIO, {"audio_tower": 1, "multi_modal_projector": 1, "text_decoder": 2}),
        ("a b", {"default": 2}),
    ],
)
def test_modules_from_names(text: str, modules: dict[str, int]) -> None:
    names = text.split()
    found = find_modules(names)
    assert {name: len(module.tensors) for name, module in found.items()} == modules
    assert sorted(n for module in found.values() for n in module.tensors) == sorted(names)


@pytest.mark.parametrize(
    "name", ["text_decoder", "language_model", "model.layers", "model.layers."]
)
def test_other_names_of_a_module(name: str) -> None:
    found = find_modules(["model.layers.0.a", "model.layers.1.a", "visual.blocks.0.a"])
    called = module_called(name, found)
    assert called is not None and called.name == "text_decoder"
    assert module_called("encoder", found) is None


def test_every_part_must_come_from_somewhere(pair: tuple[Path, Path]) -> None:
    a, _ = pair
    text = refusal(passthrough(modules={"text_decoder": only(a)}))
    assert "nothing is said of `multi_modal_projector` (2 tensors such as multi_modal_" in text
    assert "`vision_tower` (2 layers, vision_tower.encoder.layers.*)" in text
    assert f"`rest: {{models: [{{model: {a}}}]}}` for all of them" in text


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        ({"text_decodr": "A", "rest": "A"}, "no module 'text_decodr'; did you mean `text_decod"),
        ({"text_decoder": "A", "language_model": "A", "rest": "A"}, "are the same part"),
        ({"rest": "S"}, "modules.rest: `models` expected"),
        ({"multi_modal_projector": "S", "rest": "A"}, "no repeated layers found in `multi_modal"),
        ({"text_decoder": "T", "rest": "A"}, r"has 3 layers in text_decoder \(0 to 2\)"),
        ({"vision_tower": "T", "rest": "A"}, r"has 2 layers in vision_tower \(0 to 1\)"),
    ],
)  # fmt: skip
def test_refusals(modules: dict[str, str], words: str, pair: tuple[Path, Path]) -> None:
    a, b = pair
    said = {"A": only(a), "S": {"slices": slices((a, 0, 1))}, "T": {"slices": slices((b, 0, 4))}}
    with pytest.raises(RecipeError, match=words):
        plan(passthrough(modules={name: said[what] for name, what in modules.items()}))


def test_an_encoder_decoder_needs_modules(tmp_path: Path) -> None:
    a = made(t5, tmp_path / "a", 1, 2)
    text = refusal(passthrough(slices=slices((a, 0, 1))))
    assert "several parts with layers" in text and "`modules: {encoder: {slices: ...}" in text


def test_slices_of_a_vision_language_model_are_of_its_language_part(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """All that stands beside comes from the first slice, as the embedding does."""
    a, b = pair
    merge(passthrough(slices=slices((a, 0, 2), (b, 1, 3))), tmp_path / "out")
    found, one, two = load(tmp_path / "out"), load(a), load(b)
    assert torch.equal(found[f"{VISION}1.mlp.fc1.weight"], one[f"{VISION}1.mlp.fc1.weight"])
    assert torch.equal(found[f"{TEXT}3.mlp.up_proj.weight"], two[f"{TEXT}2.mlp.up_proj.weight"])
    assert reload(tmp_path / "out").config.vision_config.num_hidden_layers == 2


def test_parameters_of_modules_and_a_base_alone(pair: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = pair
    document = {
        "merge_method": "task_arithmetic", "base_model": str(a),
        "modules": {
            "text_decoder": {"models": [{"model": str(b)}], "parameters": {"weight": [0, 1]}},
            "vision_tower": {"models": [{"model": str(b)}], "parameters": {"weight": 0.25}},
            "rest": only(a),
        },
    }  # fmt: skip
    merge(document, tmp_path / "out")
    found, one, two = load(tmp_path / "out"), load(a), load(b)
    for prefix, layer, weight in [(TEXT, 0, 0), (TEXT, 1, 0.5), (TEXT, 2, 1), (VISION, 1, 0.25)]:
        name = next(
            n for n in found if n.startswith(f"{prefix}{layer}.") and n.endswith("k_proj.weight")
        )
        assert torch.allclose(found[name], one[name] + weight * (two[name] - one[name]))
    projector = "multi_modal_projector.mm_input_projection_weight"
    assert torch.equal(found[projector], one[projector])
    reason = plan(document).output.tensors[projector].reason
    assert reason == f"the recipe names only {a} here"


def test_a_slice_of_the_base_alone(tmp_path: Path) -> None:
    """As mergekit has it: task vectors of nothing."""
    a, b = made("llama", tmp_path / "a", 1, 3), made("llama", tmp_path / "b", 2, 3)
    spans = slices((a, 0, 2), (b, 2, 3))
    document = {"merge_method": "ties", "base_model": str(a), "slices": spans,
                "parameters": {"weight": 1}}  # fmt: skip
    merge(document, tmp_path / "out")
    name = "model.layers.{}.mlp.up_proj.weight"
    assert torch.equal(load(tmp_path / "out")[name.format(1)], load(a)[name.format(1)])
    document["slices"] = slices((a, 0, 3))
    assert "takes at least 1 model besides the base, got 0" in refusal(document)


def test_a_stage_and_an_adapter_in_modules(pair: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = pair
    modules = [f"{TEXT}{i}.self_attn.q_proj" for i in range(3)]
    adapter = lora(tmp_path / "adapter", load(a), modules)
    first = {"name": "mixed", "merge_method": "linear", "parameters": {"weight": 0.5},
             "models": [{"model": str(a)}, {"model": str(b)}]}  # fmt: skip
    tuned = f"{a}+{adapter}"
    parts = {
        "text_decoder": {
            "slices": [
                {"sources": [{"model": "mixed", "layer_range": [0, 2]}]},
                {"sources": [{"model": tuned, "layer_range": [1, 3]}]},
            ]
        },
        "rest": {"models": [{"model": "mixed"}]},
    }

    text = yaml.safe_dump_all([first, passthrough(modules=parts)])
    merge(load_recipe(text), tmp_path / "out")
    found, one, two = load(tmp_path / "out"), load(a), load(b)
    changed = dense(one, adapter)
    q = "self_attn.q_proj.weight"
    mean = (one[f"{TEXT}1.{q}"] + two[f"{TEXT}1.{q}"]) / 2
    assert torch.allclose(found[f"{TEXT}1.{q}"], mean)
    assert torch.allclose(found[f"{TEXT}3.{q}"].double(), changed[f"{TEXT}2.{q}"], atol=1e-6)
    assert reload(tmp_path / "out").config.text_config.num_hidden_layers == 4


def test_a_stage_put_together_of_modules_is_a_source(tmp_path: Path) -> None:
    a, b = made(whisper, tmp_path / "a", 1, 2), made(whisper, tmp_path / "b", 2, 2)
    first = passthrough(
        name="longer",
        modules={"decoder": {"slices": slices((a, 0, 2), (b, 0, 2))}, "encoder": only(b)},
    )
    last = passthrough(
        modules={
            "decoder": {"slices": [{"sources": [{"model": "longer", "layer_range": [1, 4]}]}]},
            "encoder": {"models": [{"model": "longer"}]},
        }
    )
    merge(yaml.safe_dump_all([first, last]), tmp_path / "out")
    found = reload(tmp_path / "out")
    assert (found.config.encoder_layers, found.config.decoder_layers) == (2, 3)
    name = "model.decoder.layers.{}.fc1.weight"
    assert torch.equal(load(tmp_path / "out")[name.format(1)], load(b)[name.format(0)])


def test_evidence_in_modules(pair: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = pair
    files = [tmp_path / f"{name}.safetensors" for name in "ab"]
    names = [f"{TEXT}{i}.mlp.up_proj.weight" for i in range(3)]
    for k, (file, model) in enumerate(zip(files, pair, strict=True)):
        shape = load(model)[names[0]].shape
        means = {name: torch.full(shape, 3.0**k) for name in names}
        write_means(file, get_method("fisher"), {"fisher": means})
    models = [{"model": str(m), "evidence": str(f)} for m, f in zip(pair, files, strict=True)]
    spans = [{"sources": [{**m, "layer_range": [1, 3]} for m in models]}]
    document: dict[str, Any] = {
        "merge_method": "fisher",
        "parameters": {"normalize": False},
        "modules": {"text_decoder": {"slices": spans}, "rest": only(a)},
    }
    assert "a: fisher reads fisher of every model" in refusal(document)
    document["modules"]["rest"] = {"models": models[:1]}
    merge(document, tmp_path / "out")
    found, one, two = load(tmp_path / "out"), load(a), load(b)
    assert torch.allclose(found[names[0]], (one[names[1]] + 3 * two[names[1]]) / 4, atol=1e-6)
    assert_same({k: v for k, v in found.items() if k.startswith("vision")},
                {k: v for k, v in one.items() if k.startswith("vision")})  # fmt: skip


def test_the_example_in_the_documents(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).parents[2] / "docs/slices.md").read_text()
    [recipe] = [block for block in re.findall(r"```yaml\n(.*?)```", text, re.S) if "gemma" in block]
    for name, folder in zip(("gemma-a", "gemma-b"), pair, strict=True):
        (tmp_path / name).symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    merge(recipe, "out")
    config = reload(Path("out")).config
    assert (config.text_config.num_hidden_layers, len(config.text_config.layer_types)) == (5, 5)
    found, one, two = load(Path("out")), load(pair[0]), load(pair[1])
    name = f"{VISION}0.mlp.fc1.weight"
    assert torch.allclose(found[name], (one[name] + two[name]) / 2)
