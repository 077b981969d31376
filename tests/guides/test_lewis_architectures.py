"""LEWIS on models whose matrices are stored otherwise: a mixture of experts, and GPT-2."""

import pytest
import torch
from _guided_models import nudge, save
from safetensors.torch import load_file

from mergewise.evidence import collect
from mergewise.guides import guide
from mergewise.plan import build_plan

TEXTS = ["a rose is a rose", "by any other name"]


def mixtral():
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(
        MixtralConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, vocab_size=259, num_local_experts=8, num_experts_per_tok=2,
            max_position_embeddings=64, initializer_range=0.3,
        )
    )  # fmt: skip


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=259))


def guided(root, make):
    """A guided recipe of one expert, and evidence and weights by model."""
    for name in ("base", "expert"):
        torch.manual_seed(0)
        module = make()
        if name == "expert":
            nudge(module, 1)
        save(module, root / name)
    evidence = {n: collect("input_moments", root / n, TEXTS, root / f"{n}.evd")
                for n in ("base", "expert")}  # fmt: skip
    document = {
        "merge_method": "ties",
        "base_model": str(root / "base"),
        "models": [{"model": str(root / "expert"), "parameters": {"weight": 1}}],
    }
    weights = {n: load_file(root / n / "model.safetensors") for n in evidence}
    return guide(document, "lewis", evidence, importance="wanda"), evidence, weights


def total(evidence, weights, tensors, turned=False):
    """Root of the summed squares of driven weights, over the tokens that reached them."""
    found, tokens = 0.0, 0
    for name in tensors:
        if ("input_moments", name) not in evidence.entries:
            continue
        s = evidence.sums("input_moments", name)["sum_squares"].double()
        w = weights[name].double()
        found += float(((w if turned else w.T).square() * s[:, None]).sum())
        tokens += evidence.counts("input_moments", name)["tokens"]
    return (found / tokens) ** 0.5


def test_a_mixtures_experts_share_a_density(tmp_path):
    found, evidence, weights = guided(tmp_path, mixtral)
    planned = build_plan(found.recipe).output.tensors
    for layer in range(2):
        names = [n for n in planned if f"layers.{layer}." in n and n.endswith("w2.weight")]
        assert len(names) == 8
        assert len({planned[name].values["density"][0] for name in names}) == 1
        wanted = abs(
            total(evidence["expert"], weights["expert"], names)
            - total(evidence["base"], weights["base"], names)
        )
        row = found.maps[0].values[f"model.layers.{layer}"]
        [change] = [value for name, value in row.items() if name.endswith("w2")]
        assert change == pytest.approx(wanted, rel=1e-9)


def test_weights_stored_the_other_way_round(tmp_path):
    found, evidence, weights = guided(tmp_path, gpt2)
    for layer in range(2):
        row = found.maps[0].values[f"transformer.h.{layer}"]
        assert row.keys() == {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}
        for part, change in row.items():
            name = f"transformer.h.{layer}.{part}.weight"
            wanted = abs(
                total(evidence["expert"], weights["expert"], [name], turned=True)
                - total(evidence["base"], weights["base"], [name], turned=True)
            )
            assert change == pytest.approx(wanted, rel=1e-9)


def test_stacked_experts_without_evidence_are_told(tmp_path):
    from transformers import GptOssConfig, GptOssForCausalLM

    def stacked():
        config = GptOssConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, vocab_size=259, num_local_experts=4,
            num_experts_per_tok=2, max_position_embeddings=64,
        )  # fmt: skip
        return GptOssForCausalLM(config)

    found, _, weights = guided(tmp_path, stacked)
    [warning] = [line for line in found.warnings if "matrices in layers" in line]
    assert "8 matrices in layers" in warning and "get density 1 " in warning
    assert "model.layers.0.mlp.experts.down_proj" in warning
    inside = {n: w.numel() for n, w in weights["expert"].items() if ".layers." in n and w.dim() > 1}
    share = sum(size for n, size in inside.items() if ".experts." in n) / sum(inside.values())
    assert f"with {share:.2%} of their elements" in warning
