"""Transforms of a base with an adapter on top: the result is dense, and says so."""

import json

import pytest
import torch
from _transform_models import images, save, vit
from safetensors.torch import load_file
from small_adapters import lora

import mergewise
from mergewise.errors import OutputError
from mergewise.evidence._data import Data
from mergewise.transforms import transform


@pytest.fixture
def adapted(tmp_path):
    """``base``, ``lora`` and ``dense``, the base with the adapter merged into it."""
    save(vit(0), tmp_path / "base")
    (tmp_path / "base" / "README.md").write_text("---\nlicense: mit\n---\n")
    state = load_file(tmp_path / "base" / "model.safetensors")
    modules = [n.removesuffix(".weight") for n, t in state.items()
               if t.dim() == 2 and "layer" in n][:3]  # fmt: skip
    lora(tmp_path / "lora", state, modules)
    model = {"model": f"{tmp_path / 'base'}+{tmp_path / 'lora'}", "parameters": {"weight": 1}}
    mergewise.merge({"merge_method": "linear", "models": [model]}, tmp_path / "dense", device="cpu")
    return tmp_path


def repaired(root, checkpoint, out):
    experts = {"one": root / "base", "two": checkpoint}
    transform("repair", checkpoint, out, data=Data(images(4)), models=experts)
    return load_file(out / "model.safetensors")


def test_it_is_what_the_dense_model_becomes(adapted):
    on_top = f"{adapted / 'base'}+{adapted / 'lora'}"
    found = repaired(adapted, on_top, adapted / "out")
    expected = repaired(adapted, adapted / "dense", adapted / "expected")
    plain = load_file(adapted / "base" / "model.safetensors")
    assert found.keys() == expected.keys() == plain.keys()
    for name, value in found.items():
        assert torch.allclose(value, expected[name], atol=2e-5), name
    assert any(not torch.allclose(v, plain[n], atol=1e-3) for n, v in found.items())
    configs = [json.loads((adapted / f / "config.json").read_text()) for f in ("base", "out")]
    assert configs[0] == configs[1]
    record = json.loads((adapted / "out" / "mergewise_provenance.json").read_text())
    names = [file["name"] for file in record["inputs"][0]["files"]]
    assert {"model.safetensors", "adapter_model.safetensors"} <= set(names)
    assert "license: other" in (adapted / "out" / "README.md").read_text()  # the adapter's unknown


def test_the_adapters_folder_is_no_output(adapted):
    with pytest.raises(OutputError, match="is the folder of the input"):
        repaired(adapted, f"{adapted / 'base'}+{adapted / 'lora'}", adapted / "lora")
