"""IA3 adapters merged with one another: weighted sums, means and negations of vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from small_adapters import PREFIX, lora, write
from small_models import llama_config, llama_shapes, load, random_state, save

import mergewise
from mergewise.cli import cli
from mergewise.errors import (
    CheckpointError,
    IncompatibleModelsError,
    MergewiseError,
    NonFiniteError,
    NotBuiltYetError,
)
from mergewise.forms import merge_adapters

K, DOWN = "model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj"
BASE = random_state(llama_shapes(), 0, torch.float32)


def ia3(folder: Path, modules: list[str], seed: int, **vectors: torch.Tensor) -> Path:
    draw = torch.Generator().manual_seed(seed)
    state = {}
    for module in modules:
        outputs, inputs = BASE[f"{module}.weight"].shape
        shape = (1, inputs) if module == DOWN else (outputs, 1)
        state[f"{PREFIX}{module}.ia3_l"] = 1 + 0.2 * torch.randn(shape, generator=draw)
    config = {"peft_type": "IA3", "target_modules": modules, "feedforward_modules": [DOWN]}
    return write(folder, state | vectors, config)


def vector(folder: Path, module: str = K) -> torch.Tensor:
    return load(folder)[f"{PREFIX}{module}.ia3_l"]


def test_it_is_what_task_arithmetic_makes_of_the_models(tmp_path: Path) -> None:
    adapters = [ia3(tmp_path / "a", [K, DOWN], 1), ia3(tmp_path / "b", [K], 2)]
    base = save(tmp_path / "base", BASE, llama_config(llama_shapes()))
    weights = [1.0, -0.4]
    merge_adapters(adapters, tmp_path / "out", weights=weights)

    def merged(models: list[Path], out: str, each: list[float]) -> dict[str, torch.Tensor]:
        document = {
            "merge_method": "task_arithmetic",
            "base_model": str(base),
            "models": [
                {"model": f"{base}+{model}", "parameters": {"weight": weight}}
                for model, weight in zip(models, each, strict=True)
            ],
            "out_dtype": "float32",
        }
        mergewise.merge(document, tmp_path / out, device="cpu")
        return load(tmp_path / out)

    wanted = merged(adapters, "dense", weights)
    found = merged([tmp_path / "out"], "once", [1.0])
    assert not torch.equal(wanted[f"{DOWN}.weight"], BASE[f"{DOWN}.weight"])
    for name, tensor in wanted.items():
        assert torch.allclose(found[name], tensor, atol=1e-6), name


def test_means_and_negations(tmp_path: Path) -> None:
    a, b = ia3(tmp_path / "a", [K], 1), ia3(tmp_path / "b", [K], 2)
    made = merge_adapters([a, b], tmp_path / "mean")
    torch.testing.assert_close(vector(tmp_path / "mean"), (vector(a) + vector(b)) / 2)
    assert made.error == 0 and [layer.name for layer in made.layers] == [f"{K}.ia3_l"]
    merge_adapters([a], tmp_path / "not", weights=[-1])
    torch.testing.assert_close(vector(tmp_path / "not"), 2 - vector(a))
    merge_adapters([tmp_path / "not"], tmp_path / "again", weights=[-1])
    torch.testing.assert_close(vector(tmp_path / "again"), vector(a))
    merge_adapters([a, a], tmp_path / "nothing", weights=[1, -1])
    assert torch.equal(vector(tmp_path / "nothing"), torch.ones(8, 1))


def test_the_command(tmp_path: Path) -> None:
    a, b = ia3(tmp_path / "a", [K, DOWN], 1), ia3(tmp_path / "b", [DOWN], 2)
    asked = ["lora", "merge", str(a), str(b), "--weights", "0.3,0.7", "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(cli, asked)
    assert result.exit_code == 0, result.output
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["peft_type"] == "IA3" and config["feedforward_modules"] == [DOWN]
    wanted = 0.3 * vector(a, DOWN) + 0.7 * vector(b, DOWN)
    torch.testing.assert_close(vector(tmp_path / "out", DOWN), wanted)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 4}, "rank: of LoRA"),
        ({"energy": 0.9}, "energy: of LoRA"),
        ({"method": "ties", "rank": 4}, "method, rank: of LoRA"),
        ({"method": "ties"}, "merge the models BASE"),
        ({"space": "factor"}, "space: of LoRA"),
        ({"space": "factor", "negate_b": True}, "negate_b"),
        ({"space": "units", "rank": 3}, "space, rank: of LoRA"),
        ({"weights": [1.0]}, "2 finite numbers"),
    ],
)
def test_options_of_lora_are_refused(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    adapters = [ia3(tmp_path / x, [K], ord(x)) for x in "ab"]
    with pytest.raises(MergewiseError, match=words):
        merge_adapters(adapters, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_adapters_that_do_not_fit(tmp_path: Path) -> None:
    good, name = ia3(tmp_path / "good", [K], 1), f"{PREFIX}{K}.ia3_l"
    bad = tmp_path / "bad"
    for shape, kind, words in (
        ((1, 16), IncompatibleModelsError, r"different shapes, \[\[8, 1\], \[1, 16\]\]"),
        ((8,), CheckpointError, r"ia3_l \[outputs, 1\].* got ia3_l \[8\]"),
        ((8, 2), CheckpointError, "fetch the adapter again"),
    ):
        with pytest.raises(kind, match=words):
            merge_adapters([good, ia3(bad, [], 2, **{name: torch.ones(shape)})], tmp_path / "out")
    with pytest.raises(NonFiniteError, match="bad holds NaN"):
        wrong = ia3(bad, [], 2, **{name: torch.full((8, 1), torch.nan)})
        merge_adapters([good, wrong], tmp_path / "out")
    whole = ia3(tmp_path / "whole", [K], 3, **{f"{PREFIX}model.norm.weight": torch.ones(16)})
    with pytest.raises(NotBuiltYetError, match="whole tensors"):
        merge_adapters([good, whole], tmp_path / "out")
    with pytest.raises(IncompatibleModelsError, match="IA3, LORA"):
        merge_adapters([good, lora(tmp_path / "lora", BASE, [K])], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_dora_is_refused_with_what_to_do(tmp_path: Path) -> None:
    adapters = [lora(tmp_path / x, BASE, [K], use_dora=True, seed=ord(x)) for x in "ab"]
    with pytest.raises(NotBuiltYetError, match=r"a DoRA.*BASE\+ADAPTER by a recipe.*form"):
        merge_adapters(adapters, tmp_path / "out")
    base = save(tmp_path / "base", BASE, llama_config(llama_shapes()))
    models = [{"model": f"{base}+{adapter}", "parameters": {"weight": 0.5}} for adapter in adapters]
    document = {
        "merge_method": "task_arithmetic", "models": models, "base_model": str(base),
        "form": {"name": "adapter", "rank": 16},
    }  # fmt: skip
    mergewise.merge(document, tmp_path / "out", device="cpu")
    merged = dict(document)
    del merged["form"]
    mergewise.merge(merged, tmp_path / "dense", device="cpu")
    on_top = [{"model": f"{base}+{tmp_path / 'out'}", "parameters": {"weight": 1.0}}]
    mergewise.merge({"merge_method": "linear", "models": on_top}, tmp_path / "once", device="cpu")
    found, wanted = load(tmp_path / "once"), load(tmp_path / "dense")
    assert torch.allclose(found[f"{K}.weight"], wanted[f"{K}.weight"], atol=1e-5)


def test_peft_runs_it(tmp_path: Path) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    base = save(tmp_path / "base", BASE, llama_config(llama_shapes()))
    models, tokens = [], torch.tensor([[1, 5, 9, 3]])
    given = peft.IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
    )
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = peft.get_peft_model(
            transformers.AutoModelForCausalLM.from_pretrained(base, dtype="float32"), given
        )
        for name, parameter in model.named_parameters():
            if "ia3" in name:
                parameter.data.add_(0.3 * torch.randn_like(parameter))
        model.save_pretrained(tmp_path / f"peft{seed}")
        models.append(tmp_path / f"peft{seed}")
    merge_adapters(models, tmp_path / "out", weights=[0.7, -0.5])
    found = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(base, dtype="float32"), tmp_path / "out"
    ).eval()
    document = {
        "merge_method": "task_arithmetic", "base_model": str(base),
        "models": [
            {"model": f"{base}+{model}", "parameters": {"weight": weight}}
            for model, weight in zip(models, (0.7, -0.5), strict=True)
        ],
    }  # fmt: skip
    mergewise.merge(document, tmp_path / "dense", device="cpu")
    dense = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "dense", dtype="float32"
    ).eval()
    with torch.no_grad():
        torch.testing.assert_close(found(tokens).logits, dense(tokens).logits, atol=1e-5, rtol=1e-4)
        plain = transformers.AutoModelForCausalLM.from_pretrained(base, dtype="float32").eval()
        assert not torch.allclose(plain(tokens).logits, dense(tokens).logits, atol=1e-3)
