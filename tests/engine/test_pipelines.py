"""Diffusers pipelines: opened as one checkpoint, merged, written as a pipeline."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import mergewise
from mergewise.checkpoint import inspect_checkpoint, open_checkpoint
from mergewise.errors import CheckpointError, RecipeError
from mergewise.plan import build_plan

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")


def parts(seed: int):
    torch.manual_seed(seed)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2,
        cross_attention_dim=8, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4)
    config = transformers.CLIPTextConfig(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=6,
    )  # fmt: skip
    return {"unet": unet, "vae": vae, "text_encoder": transformers.CLIPTextModel(config)}


def tokenizer(folder: Path):
    from tokenizers import Tokenizer, models

    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}
    fast = Tokenizer(models.BPE(vocab=words, merges=[], unk_token="<|endoftext|>"))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast, unk_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


def pipeline(seed: int):
    return diffusers.StableDiffusionPipeline(
        **parts(seed), tokenizer=None, scheduler=diffusers.DDIMScheduler(), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed, name in enumerate("ab"):
            pipe = pipeline(seed)
            pipe.save_pretrained(folder / name)
            (folder / name / "unet" / "notes.exe").write_text("not copied")
            index = json.loads((folder / name / "model_index.json").read_text())
            index["tokenizer"] = ["transformers", "PreTrainedTokenizerFast"]
            (folder / name / "model_index.json").write_text(json.dumps(index))
            tokenizer(folder).save_pretrained(folder / name / "tokenizer")
    return folder


def recipe(folder: Path, part: str = "", weight: object = 0.25) -> dict[str, object]:
    return {
        "merge_method": "task_arithmetic",
        "base_model": str(folder / "a" / part),
        "models": [{"model": str(folder / "b" / part), "parameters": {"weight": weight}}],
    }


def state(folder: Path, part: str) -> dict[str, torch.Tensor]:
    (file,) = (folder / part).glob("*.safetensors")
    return load_file(file)


def close(found, a, b, alpha=0.25):
    assert found.keys() == a.keys()
    for name, tensor in found.items():
        wanted = a[name] + alpha * (b[name] - a[name]) if a[name].is_floating_point() else a[name]
        torch.testing.assert_close(tensor, wanted)


def test_a_pipeline(saved, tmp_path):
    summary = inspect_checkpoint(saved / "a")
    assert summary.architecture == "StableDiffusionPipeline"
    assert {t.name.split("/")[0] for t in summary.tensors} == {"unet", "vae", "text_encoder"}
    result = mergewise.merge(recipe(saved), tmp_path / "out")
    assert sorted(result.files) == [
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    for part in ("unet", "vae", "text_encoder"):
        close(*(state(f, part) for f in (tmp_path / "out", saved / "a", saved / "b")))
    files = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*")}
    assert {"model_index.json", "unet/config.json", "scheduler/scheduler_config.json"} <= files
    assert "tokenizer/tokenizer.json" in files and "README.md" in files
    assert "unet/notes.exe" not in files and "config.json" not in files
    assert not any(".mergewise" in name for name in files)


def test_it_runs_as_the_merge_in_memory(saved, tmp_path):
    mergewise.merge(recipe(saved), tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
        wanted, other = pipeline(0), pipeline(1)
    for part in ("unet", "vae", "text_encoder"):
        ours, one, two = (getattr(p, part).state_dict() for p in (pipe, wanted, other))
        mixed = {n: torch.lerp(t, two[n], 0.25) if t.is_floating_point() else t
                 for n, t in one.items()}  # fmt: skip
        getattr(wanted, part).load_state_dict(mixed)
        assert ours.keys() == mixed.keys()
    inputs = (torch.randn(1, 4, 8, 8), torch.tensor([3]), torch.randn(1, 5, 8))
    with torch.no_grad():
        torch.testing.assert_close(pipe.unet(*inputs).sample, wanted.unet(*inputs).sample)
        latent = torch.randn(1, 4, 4, 4)
        torch.testing.assert_close(pipe.vae.decode(latent).sample, wanted.vae.decode(latent).sample)


def test_shards_and_indexes_of_components(saved, tmp_path):
    result = mergewise.merge(recipe(saved), tmp_path / "out", shard_size=8000)
    assert sum(name.startswith("unet/diffusion_pytorch_model-0") for name in result.files) > 1
    assert (tmp_path / "out/unet/diffusion_pytorch_model.safetensors.index.json").is_file()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unet = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "out" / "unet")
    close(unet.state_dict(), state(saved / "a", "unet"), state(saved / "b", "unet"))
    again = mergewise.merge(recipe(saved), tmp_path / "out", overwrite=True)
    assert len(again.files) == 3
    assert len(list((tmp_path / "out").rglob("*.safetensors"))) == 3
    assert not list((tmp_path / "out").rglob("*.index.json"))


def test_killed_while_publishing(saved, tmp_path, monkeypatch):
    """What was moved already is found in its component's folder by the next run."""
    from mergewise.engine import _publish

    def fail(*_):
        raise OSError("no more")

    monkeypatch.setattr(_publish, "_move_small", fail)
    with pytest.raises(mergewise.errors.OutputError, match="no more"):
        mergewise.merge(recipe(saved), tmp_path / "out")
    assert not (tmp_path / "out" / "model_index.json").exists()
    monkeypatch.undo()
    assert mergewise.merge(recipe(saved), tmp_path / "out").resumed == 3
    assert (tmp_path / "out" / "model_index.json").exists()


def test_one_component_alone(saved, tmp_path):
    result = mergewise.merge(recipe(saved, "unet"), tmp_path / "out")
    assert result.files == ("diffusion_pytorch_model.safetensors",)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["_class_name"] == "UNet2DConditionModel" and "torch_dtype" not in config
    unet = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "out")
    close(unet.state_dict(), state(saved / "a", "unet"), state(saved / "b", "unet"))


def test_block_weights(saved, tmp_path):
    numbers = [0.0] * 26
    numbers[13] = 1.0
    mergewise.merge(recipe(saved, weight={"blocks": numbers}), tmp_path / "out")
    a, b = state(saved / "a", "unet"), state(saved / "b", "unet")
    for name, tensor in state(tmp_path / "out", "unet").items():
        torch.testing.assert_close(tensor, (b if name.startswith("mid_block.") else a)[name])
    close(state(tmp_path / "out", "vae"), state(saved / "a", "vae"), state(saved / "b", "vae"), 0)


def test_stages(saved, tmp_path):
    text = (
        "name: first\nmerge_method: linear\nparameters: {weight: 1}\n"
        f"models: [{{model: {saved}/a}}, {{model: {saved}/b}}]\n---\n"
        "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: first}]\n"
    )
    mergewise.merge(text, tmp_path / "out")
    pair = state(saved / "a", "vae"), state(saved / "b", "vae")
    close(state(tmp_path / "out", "vae"), *pair, 0.5)


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    for name in "ab":
        shutil.copytree(saved / name, tmp_path / "in" / name)
    return tmp_path / "in"


def test_variants(copy, tmp_path):
    for name in "ab":
        for part in ("unet", "vae"):
            (file,) = (copy / name / part).glob("*.safetensors")
            half = {n: t.half() for n, t in load_file(file).items()}
            save_file(half, file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert open_checkpoint(copy / "a").tensors["unet/conv_in.weight"].dtype == "F32"
    with mergewise.allow(variant="fp16"):
        found = open_checkpoint(copy / "a")
        assert found.tensors["unet/conv_in.weight"].dtype == "F16"
        assert open_checkpoint(copy / "a" / "unet").tensors["conv_in.weight"].dtype == "F16"
        assert {r.dtype for n, r in found.tensors.items() if n[:4] == "text"} == {"F32"}
        assert [w for w in found.warnings if "no variant fp16 here" in w]
        assert mergewise.merge(recipe(copy), tmp_path / "out").files[0].count("fp16") == 0
    (copy / "a" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (warning,) = open_checkpoint(copy / "a" / "unet").warnings
    assert "only a variant here; fp16 is read" in warning


def test_a_safety_checker_is_copied(copy, tmp_path):
    for name, number in (("a", 1.0), ("b", 2.0)):
        folder = copy / name / "safety_checker"
        folder.mkdir()
        save_file({"x.weight": torch.full((2,), number)}, folder / "model.safetensors")
        (folder / "config.json").write_text("{}")
        index = json.loads((copy / name / "model_index.json").read_text())
        index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
        (copy / name / "model_index.json").write_text(json.dumps(index))
    mergewise.merge(recipe(copy), tmp_path / "out")
    assert state(tmp_path / "out", "safety_checker")["x.weight"].tolist() == [1, 1]
    index = json.loads((copy / "a" / "model_index.json").read_text())
    index["safety_checker"] = [None, None]
    (copy / "a" / "model_index.json").write_text(json.dumps(index))
    plan = build_plan(recipe(copy))
    assert "no such safety checker" in plan.output.omitted["safety_checker/x.weight"]
    mergewise.merge(plan, tmp_path / "none")
    assert not (tmp_path / "none" / "safety_checker").exists()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"../x": ["a", "b"]}, "the name of a folder"),
        ({"x/y": ["a", "b"]}, "the name of a folder"),
        ({"absent": ["a", "b"]}, "named in model_index.json but missing"),
        ({f"p{i}": ["a", "b"] for i in range(200)}, "components"),
    ],
)
def test_hostile_indexes(copy, edit, message):
    path = copy / "a" / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **edit}))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(copy / "a")


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"a": 1, "a": 2}', "{}", '{"unet": [null, null]}']
)
def test_broken_indexes(copy, text):
    (copy / "a" / "model_index.json").write_text(text)
    with pytest.raises(CheckpointError):
        open_checkpoint(copy / "a")


def test_a_link_that_leaves_the_folder_is_not_copied(copy, tmp_path):
    secret = tmp_path / "secret.json"
    secret.write_text('{"key": 1}')
    (copy / "a" / "scheduler" / "extra.json").symlink_to(secret)
    result = mergewise.merge(recipe(copy), tmp_path / "out")
    assert not (tmp_path / "out" / "scheduler" / "extra.json").exists()
    assert any("a link that leaves the folder" in w for w in result.warnings)


def test_weights_that_are_missing(copy):
    (copy / "a" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"unet: no \.safetensors file"):
        open_checkpoint(copy / "a")


def test_pipelines_of_two_kinds(copy, tmp_path):
    shutil.rmtree(copy / "b" / "text_encoder")
    index = json.loads((copy / "b" / "model_index.json").read_text())
    index["text_encoder"] = [None, None]
    (copy / "b" / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(RecipeError, match="text_encoder/"):
        build_plan(recipe(copy))


def test_metadata_of_single_files_that_stays_true_is_kept(tmp_path):
    from safetensors import safe_open

    kept = {"modelspec.architecture": "stable-diffusion-v1", "modelspec.prediction_type": "epsilon"}
    for name in "ab":
        (tmp_path / name).mkdir()
        metadata = {**kept, "modelspec.title": name, "modelspec.hash_sha256": "0x1"}
        save_file({"x": torch.ones(2)}, tmp_path / name / "model.safetensors", metadata=metadata)
    mergewise.merge(recipe(tmp_path), tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", **kept}


def test_on_the_hub(hub, saved, tmp_path):
    for name in "ab":
        hub.add(f"org/{name}", saved / name)
    shown = inspect_checkpoint("org/a").tensors
    assert shown == inspect_checkpoint(saved / "a").tensors
    document = recipe(saved)
    mergewise.merge(document, tmp_path / "here")
    document = json.loads(json.dumps(document).replace(str(saved), "org"))
    result = mergewise.merge(document, tmp_path / "there")
    for name in result.files:
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
    assert (tmp_path / "there" / "tokenizer" / "tokenizer.json").is_file()


def test_pytorch_files_on_the_hub(hub, tmp_path):
    for seed, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        torch.save({"w": torch.full((2,), float(seed))}, tmp_path / name / "pytorch_model.bin")
        hub.add(f"org/{name}", tmp_path / name)
    document = json.loads(json.dumps(recipe(tmp_path)).replace(str(tmp_path), "org"))
    with pytest.raises(RecipeError, match="--allow-pickle"):
        mergewise.merge(document, tmp_path / "out")
    with mergewise.allow(pickle=True):
        mergewise.merge(document, tmp_path / "out")
    assert state(tmp_path, "out")["w"].tolist() == [0.25, 0.25]
