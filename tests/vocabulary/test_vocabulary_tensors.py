"""Tensors with a vocabulary are told from others, by names, shapes and config alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mergewise.vocabulary import vocabulary_tensors

SMALL = {"vocab_size": 517, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "llama": ("LlamaForCausalLM", {}, {"model.embed_tokens.weight", "lm_head.weight"}),
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
             {"transformer.wte.weight"}),
    "gpt_neox": ("GPTNeoXForCausalLM", {}, {"gpt_neox.embed_in.weight"}),
    "bert": ("BertForMaskedLM", {}, {"bert.embeddings.word_embeddings.weight",
                                     "cls.predictions.bias"}),
    "distilbert": ("DistilBertForMaskedLM", {"dim": 32, "hidden_dim": 48, "n_layers": 2,
                                             "n_heads": 4},
                   {"distilbert.embeddings.word_embeddings.weight", "vocab_projector.bias"}),
    "t5": ("T5ForConditionalGeneration", {"d_model": 32, "d_ff": 48, "num_layers": 2, "d_kv": 8,
                                          "num_heads": 4}, {"shared.weight"}),
    "bart": ("BartForConditionalGeneration", {"d_model": 32, "encoder_layers": 1,
                                              "decoder_layers": 1, "encoder_ffn_dim": 48,
                                              "decoder_ffn_dim": 48, "max_position_embeddings": 64},
             {"model.shared.weight", "final_logits_bias"}),
    "mamba": ("MambaForCausalLM", {"state_size": 4}, {"backbone.embeddings.weight"}),
    "falcon": ("FalconForCausalLM", {}, {"transformer.word_embeddings.weight"}),
    "phi": ("PhiForCausalLM", {}, {"model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"}),
    "electra": ("ElectraForMaskedLM", {"embedding_size": 32},
                {"electra.embeddings.word_embeddings.weight", "generator_lm_head.bias"}),
}  # fmt: skip


@pytest.mark.parametrize("kind", CASES)
def test_known_architectures(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    name, more, wanted = CASES[kind]
    config = transformers.AutoConfig.for_model(kind, **(SMALL | more))
    with torch.device("meta"):
        built = getattr(transformers, name)(config)
    shapes = {n: tuple(t.shape) for n, t in built.state_dict().items()}
    found = vocabulary_tensors(shapes, config.to_dict())
    assert found is not None and found.rows == 517
    tied = {n for n in found.axes if n.endswith(("lm_head.weight", "decoder.weight", "bias"))}
    tied |= {n for n in found.axes if "embed_tokens" in n or "vocab_projector" in n}
    assert wanted <= found.axes.keys() <= wanted | tied
    assert all(shapes[n][axis] == 517 for n, axis in found.axes.items())
    assert found.axes.keys() == {n for n, shape in shapes.items() if 517 in shape}


@pytest.mark.parametrize(
    ("shapes", "config", "axes"),
    [
        # a product of sizes that is as large as the vocabulary
        ({"model.embed_tokens.weight": (32768, 6), "model.layers.0.mlp.gate_up": (8, 32768, 6)},
         {"vocab_size": 32768}, {"model.embed_tokens.weight": 0}),
        # positions as many as tokens: only what is called an embedding of tokens counts
        ({"wte.weight": (64, 8), "wpe.weight": (64, 8), "proj.weight": (8, 64)},
         {"vocab_size": 64, "n_positions": 64}, {"wte.weight": 0}),
        # a head that is stored the other way round, and one of an unknown name
        ({"wte.weight": (64, 8), "lm_head.weight": (8, 64), "mlm.out.weight": (64, 8)},
         {"vocab_size": 64, "n_embd": 8},
         {"wte.weight": 0, "lm_head.weight": 1, "mlm.out.weight": 0}),
        # the size is that of the tensors where the config is silent
        ({"model.embed_tokens.weight": (50, 8), "lm_head.weight": (50, 8)}, {},
         {"model.embed_tokens.weight": 0, "lm_head.weight": 0}),
        # nested, as in multimodal models
        ({"language_model.model.embed_tokens.weight": (50, 8), "vision.pos.weight": (49, 8)},
         {"text_config": {"vocab_size": 50}}, {"language_model.model.embed_tokens.weight": 0}),
        # layers that predict further tokens
        ({"model.embed_tokens.weight": (50, 8), "model.layers.3.embed_tokens.weight": (50, 8),
          "model.layers.3.shared_head.head.weight": (50, 8)}, {"vocab_size": 50},
         {"model.embed_tokens.weight": 0, "model.layers.3.embed_tokens.weight": 0,
          "model.layers.3.shared_head.head.weight": 0}),
    ],
)  # fmt: skip
def test_odd_cases(
    shapes: dict[str, tuple[int, ...]], config: dict[str, Any], axes: dict[str, int]
) -> None:
    found = vocabulary_tensors(shapes, config)
    assert found is not None and found.axes == axes


def test_models_without_one() -> None:
    shapes = {"vit.layers.0.weight": (8, 8), "classifier.weight": (10, 8)}
    assert vocabulary_tensors(shapes, {"hidden_size": 8}) is None


def test_a_second_vocabulary_is_not_guessed_at() -> None:
    shapes = {"model.embed_tokens.weight": (50, 8), "model.embed_tokens_per_layer.weight": (48, 16)}
    found = vocabulary_tensors(shapes, {"vocab_size": 50})
    assert found is not None and found.unclear == ("model.embed_tokens_per_layer.weight",)
