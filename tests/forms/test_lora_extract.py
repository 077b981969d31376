"""Extraction: what is put into a model as a LoRA comes out, and the errors told are the errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_adapters import dense, lora
from small_models import State, contents, llama_config, llama_shapes, load, near, random_state, save

import mergewise
from mergewise.errors import (
    IncompatibleModelsError,
    MergewiseError,
    NonFiniteError,
    OutputError,
)
from mergewise.forms import extract_lora
from mergewise.forms._svd import Rank, recompressed, truncated

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    shapes = llama_shapes()
    state = random_state(shapes, 0, torch.float32)
    return save(tmp_path / "base", state, llama_config(shapes, torch_dtype="float32"))


def applied(base: Path, adapter: Path, out: Path) -> State:
    model = {"model": f"{base}+{adapter}", "parameters": {"weight": 1}}
    mergewise.merge({"merge_method": "linear", "models": [model]}, out, device="cpu")
    return load(out)


def test_a_lora_comes_out_as_it_went_in(base: Path, tmp_path: Path) -> None:
    state = load(base)
    whole = {"model.norm.weight": torch.full((16,), 1.5)}
    given = lora(tmp_path / "given", state, [Q, DOWN, "lm_head"], rank=3, whole=whole)
    wanted = {n: t.float() for n, t in dense(state, given).items()}
    tuned = save(tmp_path / "tuned", wanted, llama_config(llama_shapes()))
    made = extract_lora(tuned, base, tmp_path / "out", rank=5)
    assert {(layer.name, layer.rank <= 5) for layer in made.layers} == {
        (f"{name}.weight", True) for name in (Q, DOWN, "lm_head")
    }
    assert made.error < 1e-5 and made.whole == ("model.norm.weight",)
    assert made.unchanged == len(state) - 4
    found = applied(base, tmp_path / "out", tmp_path / "again")
    for name, tensor in found.items():
        assert torch.allclose(tensor, wanted[name], atol=2e-6), name
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["model.norm"]
    assert config["target_modules"] == ["lm_head", Q, DOWN]


def test_energy_decides_the_rank_and_errors_are_true(base: Path, tmp_path: Path) -> None:
    tuned = save(tmp_path / "tuned", near(load(base), 1, scale=0.1), llama_config(llama_shapes()))
    for energy in (0.5, 0.9, 1.0):
        out = tmp_path / str(energy)
        made = extract_lora(tuned, base, out, energy=energy, rest="skip")
        assert made.skipped and not made.whole
        found, state, wanted = applied(base, out, tmp_path / f"{energy}m"), load(base), load(tuned)
        for layer in made.layers:
            delta = (wanted[layer.name] - state[layer.name]).double()
            lost = (wanted[layer.name] - found[layer.name]).double()
            assert layer.change == pytest.approx(float(delta.norm()), rel=1e-4)
            assert float(lost.norm() / delta.norm()) == pytest.approx(layer.error, abs=1e-4)
            assert layer.error**2 <= 1 - energy + 1e-5
            if energy < 1:  # one direction fewer would not do
                s = torch.linalg.svdvals(delta.flatten(1))
                assert float(s[: layer.rank - 1].square().sum()) < energy * float(delta.norm()) ** 2


def test_both_a_rank_and_an_energy(base: Path, tmp_path: Path) -> None:
    tuned = save(tmp_path / "tuned", near(load(base), 1), llama_config(llama_shapes()))
    made = extract_lora(tuned, base, tmp_path / "out", rank=2, energy=0.999)
    assert {layer.rank for layer in made.layers} == {2}


@pytest.mark.parametrize("shape", [(300, 700), (700, 300), (400, 400)])
def test_a_randomised_svd_is_near_the_best(shape: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(n, 200, generator=draw)).Q for n in shape)
    s = torch.arange(1, 201).float().pow(-0.7)
    matrix = u * s @ v.T
    b, a = truncated(matrix, Rank(most=20))
    best = float(s[20:].norm())
    assert (len(a), b.shape[1]) == (20, 20)
    assert best <= float((matrix - b @ a).norm()) < 1.01 * best
    b, a = truncated(matrix, Rank(energy=0.8))
    kept = float((b @ a).norm() ** 2 / matrix.norm() ** 2)
    assert kept + 1e-4 >= 0.8 and len(a) < 60
    assert torch.allclose(b.norm(dim=0), a.norm(dim=1), rtol=1e-3)


def test_products_are_cut_without_being_made() -> None:
    draw = torch.Generator().manual_seed(1)
    b, a = torch.randn(50, 9, generator=draw), torch.randn(9, 40, generator=draw)
    for most in (1, 4, 9, 30):
        new_b, new_a = recompressed(b, a, Rank(most=most))
        s = torch.linalg.svdvals(b @ a)
        best = float(s[most:9].norm())
        assert float((b @ a - new_b @ new_a).norm()) == pytest.approx(best, rel=1e-3, abs=1e-3)
        assert len(new_a) == min(most, 9)


def test_weights_stored_inputs_first(tmp_path: Path) -> None:
    shapes = {
        "h.0.attn.c_attn.weight": (16, 48),
        "h.0.attn.c_attn.bias": (48,),
        "h.0.attn.c_proj.weight": (16, 16),
        "h.0.attn.c_proj.bias": (16,),
    }
    state = random_state(shapes, 0, torch.float32)
    base, tuned = save(tmp_path / "base", state), save(tmp_path / "tuned", near(state, 1))
    made = extract_lora(tuned, base, tmp_path / "out", rank=16)
    assert made.error < 1e-5 and len(made.whole) == 2
    found = applied(base, tmp_path / "out", tmp_path / "again")
    assert all(torch.allclose(found[n], t, atol=1e-5) for n, t in load(tuned).items())
    a = load(tmp_path / "out")["base_model.model.h.0.attn.c_attn.lora_A.weight"]
    assert a.shape == (16, 16)


def test_embeddings_and_convolutions(tmp_path: Path) -> None:
    shapes = {"wte.weight": (40, 8), "conv.weight": (6, 4, 3, 3)}
    state = random_state(shapes, 0, torch.float32)
    base, tuned = save(tmp_path / "base", state), save(tmp_path / "tuned", near(state, 1))
    extract_lora(tuned, base, tmp_path / "out", energy=1.0)
    assert "base_model.model.wte.lora_embedding_A" in load(tmp_path / "out")
    found = applied(base, tmp_path / "out", tmp_path / "again")
    assert all(torch.allclose(found[n], t, atol=1e-5) for n, t in load(tuned).items())


def test_refusals_write_nothing(base: Path, tmp_path: Path) -> None:
    state, config, out = load(base), llama_config(llama_shapes()), tmp_path / "out"
    tuned = save(tmp_path / "tuned", near(state, 1), config)
    for wrong, words in (
        ({}, "--rank 16 .rank=16., --energy 0.9"),
        ({"rank": 0}, "from 1 on"),
        ({"energy": 1.5}, "at most 1"),
        ({"rank": 2, "rest": "all"}, "whole or skip"),
        ({"rank": 2, "dtype": "int8"}, "no type of factors"),
    ):
        with pytest.raises(MergewiseError, match=words):
            extract_lora(tuned, base, out, **wrong)
    with pytest.raises(MergewiseError, match="no weight matrix differs"):
        extract_lora(base, base, out, rank=2)
    fewer = save(tmp_path / "fewer", {n: t for n, t in state.items() if "norm" not in n}, config)
    with pytest.raises(IncompatibleModelsError, match="in one of the models only"):
        extract_lora(fewer, base, out, rank=2)
    grown = state | {"model.embed_tokens.weight": torch.zeros(44, 16)}
    with pytest.raises(IncompatibleModelsError, match=r"shape \[44, 16\]"):
        extract_lora(save(tmp_path / "grown", grown, config), base, out, rank=2)
    broken = near(state, 1)
    broken[f"{Q}.weight"][0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=Q):
        extract_lora(save(tmp_path / "broken", broken, config), base, out, rank=2)
    assert not out.exists()
    before = contents(tuned)
    with pytest.raises(OutputError, match="choose an empty folder"):
        extract_lora(tuned, base, tuned, rank=2, overwrite=True)
    assert contents(tuned) == before
    extract_lora(tuned, base, out, rank=2)
    with pytest.raises(OutputError, match="--overwrite"):
        extract_lora(tuned, base, out, rank=3)
    assert extract_lora(tuned, base, out, rank=3, overwrite=True).layers[0].rank == 3


def test_a_head_of_its_own_is_not_lost(base: Path, tmp_path: Path) -> None:
    """The base has one tensor for head and embedding, and the fine-tuned model two."""
    state, shapes = load(base), llama_shapes()
    embedding = state["model.embed_tokens.weight"]
    tied = {n: t for n, t in state.items() if n != "lm_head.weight"}
    config = llama_config(shapes, tie_word_embeddings=True)
    start = save(tmp_path / "tied", tied, config)
    apart = {**near(tied, 1), "lm_head.weight": embedding + 1}
    tuned = save(tmp_path / "apart", apart, llama_config(shapes, tie_word_embeddings=False))
    with pytest.raises(IncompatibleModelsError, match=r"lm_head\.weight of .* is not its model"):
        extract_lora(tuned, start, tmp_path / "out", rank=2)
    assert not (tmp_path / "out").exists()
    apart["lm_head.weight"] = apart["model.embed_tokens.weight"].clone()
    same = save(tmp_path / "same", apart, config)
    assert extract_lora(same, start, tmp_path / "out", rank=2).layers


def test_the_same_bytes_again(base: Path, tmp_path: Path) -> None:
    tuned = save(tmp_path / "tuned", near(load(base), 1), llama_config(llama_shapes()))
    for out in ("one", "two"):
        extract_lora(tuned, base, tmp_path / out, rank=4)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize("tied", [False, True])
def test_peft_reads_what_was_extracted(tied: bool, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, attention_bias=True, tie_word_embeddings=tied,
    )  # fmt: skip
    kind = transformers.LlamaForCausalLM
    kind(config).save_pretrained(tmp_path / "base")
    tuned = kind.from_pretrained(tmp_path / "base")
    for name, parameter in tuned.named_parameters():
        if not (tied and "embed" in name):
            parameter.data.add_(0.02 * torch.randn_like(parameter))
    tuned.save_pretrained(tmp_path / "tuned")
    made = extract_lora(tmp_path / "tuned", tmp_path / "base", tmp_path / "out", energy=1.0)
    assert any("bias" in name for name in made.whole) and any("norm" in n for n in made.whole)
    loaded = kind.from_pretrained(tmp_path / "base")
    adapted = peft.PeftModel.from_pretrained(loaded, tmp_path / "out").eval()
    ids = torch.randint(0, 64, (2, 7))
    with torch.no_grad():
        wanted, found = tuned.eval()(input_ids=ids).logits, adapted(input_ids=ids).logits
    assert torch.allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("kind", [torch.int64, torch.float8_e4m3fn, torch.bool])
def test_changes_that_an_adapter_cannot_hold_are_named(kind: torch.dtype, tmp_path: Path) -> None:
    state = {"a.weight": torch.randn(8, 8), "table": torch.ones(300).to(kind)}
    base = save(tmp_path / "base", state)
    tuned = {"a.weight": state["a.weight"] + 1, "table": state["table"].clone()}
    folder = save(tmp_path / "same", tuned)
    assert extract_lora(folder, base, tmp_path / "out", rank=2).layers[0].rank == 1
    tuned["table"][299] = 0
    folder = save(tmp_path / "other", tuned)
    with pytest.raises(IncompatibleModelsError, match=r"table: .* and they differ"):
        extract_lora(folder, base, tmp_path / "no", rank=2)
    assert not (tmp_path / "no").exists()
