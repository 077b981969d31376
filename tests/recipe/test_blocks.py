"""Block weights of Stable Diffusion UNets: which number which tensor gets."""

from __future__ import annotations

import pytest

from mergewise.errors import RecipeError
from mergewise.methods import get_method
from mergewise.recipe import load_recipe, settings_for
from mergewise.recipe._blocks import PRESETS

SD1 = ["BASE", *(f"IN{i:02d}" for i in range(12)), "M00", *(f"OUT{i:02d}" for i in range(12))]
SDXL = ["BASE", *(f"IN{i:02d}" for i in range(9)), "M00", *(f"OUT{i:02d}" for i in range(9)), "VAE"]
# from the published table
GRAD_V = "1,0.9166666667,0.8333333333,0.75,0.6666666667,0.5833333333,0.5,0.4166666667,0.3333333333"
HALF = [0.0, 0.00506365740740741, 0.0196759259259259, 0.04296875, 0.0740740740740741]

LDM = {
    "model.diffusion_model.time_embed.0.weight": "BASE",
    "model.diffusion_model.label_emb.0.0.weight": "BASE",
    "model.diffusion_model.input_blocks.0.0.weight": "IN00",
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_out.0.weight": "IN01",
    "model.diffusion_model.input_blocks.8.0.in_layers.2.weight": "IN08",
    "model.diffusion_model.middle_block.1.norm.weight": "M00",
    "model.diffusion_model.output_blocks.0.0.out_layers.3.weight": "OUT00",
    "model.diffusion_model.output_blocks.8.1.conv.weight": "OUT08",
    "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight": "BASE",
    "conditioner.embedders.1.model.transformer.resblocks.3.ln_1.weight": "BASE",
}
LARGE = {
    "model.diffusion_model.input_blocks.10.0.weight": "IN10",
    "model.diffusion_model.input_blocks.11.0.weight": "IN11",
    "model.diffusion_model.output_blocks.10.0.weight": "OUT10",
}
DIFFUSERS = {
    "conv_in.weight": "IN00",
    "down_blocks.0.resnets.0.conv1.weight": "IN01",
    "down_blocks.0.attentions.1.proj_in.weight": "IN02",
    "down_blocks.0.downsamplers.0.conv.weight": "IN03",
    "down_blocks.2.resnets.1.conv1.weight": "IN08",
    "mid_block.attentions.0.proj_in.weight": "M00",
    "up_blocks.0.resnets.0.conv1.weight": "OUT00",
    "up_blocks.0.upsamplers.0.conv.weight": "OUT02",
    "up_blocks.2.attentions.1.proj_in.weight": "OUT07",
    "time_embedding.linear_1.weight": "BASE",
    "add_embedding.linear_1.weight": "BASE",
}
PIPELINE = {
    **{f"unet/{name}": block for name, block in DIFFUSERS.items()},
    "text_encoder/text_model.encoder.layers.0.mlp.fc1.weight": "BASE",
}
VAES = [
    "first_stage_model.encoder.conv_in.weight",
    "vae/encoder.conv_in.weight",
    "vae/encoder.down_blocks.0.resnets.0.conv1.weight",
    "vae/decoder.mid_block.attentions.0.to_q.weight",
    "vae/decoder.conv_norm_out.weight",
]


def weight(name: str, written: str) -> tuple[float, str]:
    text = (
        "merge_method: task_arithmetic\nbase_model: a\n"
        f"models: [{{model: b, parameters: {{weight: {written}}}}}]\n"
    )
    stage = load_recipe(text).output
    module = stage.modules[0]
    slice_ = module.slices[0]
    names = [name] * len(slice_.sources)
    method = get_method(stage.method)
    values, origins = settings_for(stage, method, module, slice_, 0.0, name, names)
    return values["weight"][0], origins["weight"][0]


def numbers(blocks: list[str]) -> str:
    return "{blocks: [" + ", ".join(f"0.{i:02d}" for i in range(len(blocks))) + "]}"


@pytest.mark.parametrize("blocks", [SD1, SDXL], ids=["sd1", "sdxl"])
@pytest.mark.parametrize("name, block", {**LDM, **DIFFUSERS, **PIPELINE}.items())
def test_every_name_has_the_number_of_its_block(blocks: list[str], name: str, block: str) -> None:
    value, origin = weight(name, numbers(blocks))
    assert blocks[round(100 * value)] == block
    assert origin.endswith(f"block {block}")


@pytest.mark.parametrize("name, block", LARGE.items())
def test_the_innermost_blocks_of_sd1(name: str, block: str) -> None:
    assert SD1[round(100 * weight(name, numbers(SD1))[0])] == block


@pytest.mark.parametrize(
    "name",
    ["model.diffusion_model.out.2.weight", "conv_out.weight", "unet/conv_norm_out.bias"],
)
def test_the_last_layer_is_in_the_last_block(name: str) -> None:
    assert SD1[round(100 * weight(name, numbers(SD1))[0])] == "OUT11"
    assert SDXL[round(100 * weight(name, numbers(SDXL))[0])] == "OUT08"


@pytest.mark.parametrize("name", VAES)
def test_the_vae(name: str) -> None:
    assert SD1[round(100 * weight(name, numbers(SD1))[0])] == "BASE"
    assert SDXL[round(100 * weight(name, numbers(SDXL))[0])] == "VAE"


def test_presets_are_those_of_the_published_table() -> None:
    assert all(len(values) == 25 for values in PRESETS.values())
    published = [float(x) for x in GRAD_V.split(",")]
    assert PRESETS["GRAD_V"][:9] == pytest.approx(published, abs=1e-9)
    assert PRESETS["GRAD_A"] == pytest.approx([1 - x for x in PRESETS["GRAD_V"]])
    assert PRESETS["SMOOTHSTEP"][:5] == pytest.approx(HALF, abs=1e-12)
    assert PRESETS["COSINE"][3] == pytest.approx(0.961939766255643)
    ones = {name: [i for i, x in enumerate(PRESETS[name]) if x == 1] for name in PRESETS}
    assert ones["WRAP08"] == [0, 1, 2, 3, 21, 22, 23, 24]
    assert ones["OUT07"] == list(range(18, 25)) and ones["OUT12"] == list(range(13, 25))
    assert ones["RING08_SOFT"] == [6, 7, 8, 16, 17, 18]
    assert ones["RING08_5"] == [6, 7, 8, 9, 15, 16, 17, 18]
    assert ones["RING10_3"] == [6, 7, 8, 9, 10, 14, 15, 16, 17, 18]
    assert [i for i, x in enumerate(PRESETS["MID12_50"]) if x == 0.5] == list(range(5, 19))


def test_presets_and_texts() -> None:
    name = "model.diffusion_model.input_blocks.3.0.op.weight"
    assert weight(name, "{blocks: GRAD_V, base: 0.2}")[0] == 0.75
    assert weight(name, "{blocks: reverse-smoothstep, base: 0}")[0] == pytest.approx(0.95703125)
    assert weight("first_stage_model.x", "{blocks: GRAD_V, base: 0.2}")[0] == 0.2
    listed = ",".join(str(i / 100) for i in range(26))
    assert weight(name, f"{{blocks: '{listed}'}}")[0] == 0.04


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("{blocks: GRAD_V}", "add `base`"),
        ("{blocks: GRAD_W, base: 0}", "GRAD_W.*did you mean `grad_v`"),
        ("{blocks: [0.1, 0.2]}", r"26 numbers \(SD1\) or 21 \(SDXL\).*got 2"),
        ("{blocks: [" + ", ".join("0" * 26) + "], base: 1}", "got 26 besides `base`"),
        ("{blocks: [a, b]}", "expected, got text"),
        ("{blocks: {a: 1}}", "got a mapping"),
        ("{blocks: }", "expected"),
        ("{blocks: GRAD_V, base: x}", "a number expected"),
        ("{blocks: GRAD_V, base: 0, filter: x}", "`blocks` and `base` expected"),
    ],
)
def test_mistakes(written: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        weight("x", written)


def test_numbers_out_of_a_parameters_range() -> None:
    text = (
        "merge_method: ties\nbase_model: a\n"
        "models: [{model: b, parameters: {weight: 1, density: {blocks: GRAD_V, base: 2}}}]\n"
    )
    with pytest.raises(RecipeError, match="density"):
        load_recipe(text)


def test_blocks_are_no_part_of_mergekits_dialect() -> None:
    text = (
        "merge_method: slerp\nbase_model: a\nmodels: [{model: b}]\n"
        "parameters: {t: {blocks: WRAP08, base: 0}}\n"
    )
    assert load_recipe(text).output.native
