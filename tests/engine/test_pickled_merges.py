"""Merges of PyTorch files give the bytes that the same merges of safetensors give."""

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from small_models import llama_config, llama_shapes

import mergewise
from mergewise.cli import cli
from mergewise.errors import RecipeError


def states(names=("base", "a", "b")):
    shapes = llama_shapes()
    return {
        name: {k: torch.randn(s, generator=torch.Generator().manual_seed(i)).half()
               for k, s in shapes.items()}
        for i, name in enumerate(names)
    }  # fmt: skip


@pytest.fixture
def both(tmp_path):
    """The same three models as safetensors and as PyTorch files of several kinds."""
    found = states()
    for name, state in found.items():
        save_file(state, tmp_path / f"{name}.safetensors")
    torch.save(found["base"], tmp_path / "base.bin")
    torch.save({"state_dict": found["a"], "epoch": 1}, tmp_path / "a.bin")
    torch.save(found["b"], tmp_path / "b.bin", _use_new_zipfile_serialization=False)
    return tmp_path


def recipe(folder, ending, method="ties"):
    models = [
        {"model": str(folder / f"{n}.{ending}"), "parameters": {"weight": 0.7, "density": 0.4}}
        for n in "ab"
    ]
    return {
        "merge_method": method, "base_model": str(folder / f"base.{ending}"), "models": models
    }  # fmt: skip


@pytest.mark.parametrize("method", ["ties", "dare_ties", "breadcrumbs"])
def test_the_bytes_are_the_same(both, tmp_path, method):
    mergewise.merge(recipe(both, "safetensors", method), tmp_path / "x")
    with mergewise.allow(pickle=True):
        result = mergewise.merge(recipe(both, "bin", method), tmp_path / "y")
    files = [tmp_path / out / "model.safetensors" for out in "xy"]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert any("ignored: epoch" in warning for warning in result.warnings)


def test_a_recipe_cannot_allow_it(both, tmp_path):
    with pytest.raises(RecipeError, match="--allow-pickle"):
        mergewise.merge(recipe(both, "bin"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_any_model_of_torch(tmp_path):
    """State dicts of a network that no library knows, buffers and tied weights among them."""

    def network(seed):
        torch.manual_seed(seed)
        net = torch.nn.Sequential(
            torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Flatten(),
            torch.nn.Linear(12, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 4),
        )  # fmt: skip
        net[5].weight = net[4].weight
        return net

    nets = [network(seed) for seed in (1, 2)]
    for i, net in enumerate(nets):
        torch.save(net.state_dict(), tmp_path / f"{i}.pt")
    models = [{"model": str(tmp_path / f"{i}.pt")} for i in (0, 1)]
    document = {"merge_method": "linear", "parameters": {"weight": 1}, "models": models}
    with mergewise.allow(pickle=True):
        mergewise.merge(document, tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in nets[0].state_dict().items():
        other = nets[1].state_dict()[name]
        mean = (tensor + other) / 2 if tensor.is_floating_point() else tensor
        torch.testing.assert_close(merged[name], mean, rtol=0, atol=1e-6)
    nets[0].load_state_dict(merged, strict=True)


def test_on_the_command_line(both, tmp_path):
    import yaml

    (tmp_path / "r.yml").write_text(yaml.safe_dump(recipe(both, "bin")))
    run = CliRunner().invoke
    refused = run(cli, ["plan", str(tmp_path / "r.yml")])
    assert refused.exit_code == 2 and "--allow-pickle" in refused.output
    assert run(cli, ["plan", "--allow-pickle", str(tmp_path / "r.yml")]).exit_code == 0
    assert run(cli, ["inspect", "--allow-pickle", str(both / "b.bin")]).exit_code == 0
    done = run(cli, ["merge", "--allow-pickle", str(tmp_path / "r.yml"), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output


def test_a_model_that_transformers_saved_as_bin(tmp_path):
    import json

    transformers = pytest.importorskip("transformers")
    config = llama_config(llama_shapes())
    for name, state in states(("a", "b")).items():
        folder = tmp_path / name
        folder.mkdir()
        torch.save(state, folder / "pytorch_model.bin")
        (folder / "config.json").write_text(json.dumps(config))
    document = {
        "merge_method": "linear", "parameters": {"weight": 1},
        "models": [{"model": str(tmp_path / name)} for name in "ab"],
    }  # fmt: skip
    with mergewise.allow(pickle=True):
        mergewise.merge(document, tmp_path / "out")
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    found = states(("a", "b"))
    name = "model.layers.1.mlp.up_proj.weight"
    mean = ((found["a"][name].float() + found["b"][name].float()) / 2).half()
    assert torch.equal(model.state_dict()[name], mean)
