"""Layers, embeddings and heads from names, checked against models that transformers builds."""

import pytest

from mergewise.checkpoint import (
    find_layers,
    head_and_embedding,
    is_embedding_like,
    is_post_layer,
    is_pre_layer,
    layer_count,
    layer_index,
    layer_prefix,
    main_layers,
    renumber,
    tied_head,
    with_layers,
)
from mergewise.errors import CheckpointError, NotBuiltYetError


@pytest.mark.parametrize(
    ("name", "prefix", "index", "renumbered"),
    [
        (
            "model.layers.3.mlp.up_proj.weight",
            "model.layers.",
            3,
            "model.layers.7.mlp.up_proj.weight",
        ),
        ("transformer.h.11.ln_1.bias", "transformer.h.", 11, "transformer.h.7.ln_1.bias"),
        (
            "encoder.layer.0.output.dense.bias",
            "encoder.layer.",
            0,
            "encoder.layer.7.output.dense.bias",
        ),
        ("model.layers.3.experts.5.w1", "model.layers.", 3, "model.layers.7.experts.5.w1"),
        (
            "encoder.block.1.layer.0.q.weight",
            "encoder.block.",
            1,
            "encoder.block.7.layer.0.q.weight",
        ),
        ("0.weight", "", 0, "7.weight"),
        ("blocks.2", "blocks.", 2, "blocks.7"),
        ("model.norm.weight", None, None, "model.norm.weight"),
        ("conv1.weight", None, None, "conv1.weight"),
        ("a.007.b", None, None, "a.007.b"),
        ("a.²", None, None, "a.²"),
        ("a." + "9" * 5000, None, None, "a." + "9" * 5000),
    ],
)
def test_names(name, prefix, index, renumbered):
    assert layer_prefix(name) == prefix
    assert layer_index(name) == index
    assert renumber(name, 7) == renumbered


def test_groups_of_a_mixture_of_experts():
    names = [f"model.layers.{i}.experts.{j}.w" for i in range(3) for j in range(8)]
    names += ["visual.blocks.0.w", "visual.blocks.2.w", "model.norm.weight"]
    main, visual = find_layers(names)
    assert (main.prefix, main.count, main.tensors) == ("model.layers.", 3, 24)
    assert main.suffixes == tuple(f"experts.{j}.w" for j in range(8))
    assert (visual.count, visual.indices) == (3, (0, 2))
    assert main_layers(names) == main
    assert main_layers(["a", "b"]) is None


def build(kind):
    import transformers as t

    small = {"vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind == "gpt2":
        config = t.GPT2Config(vocab_size=40, n_embd=8, n_layer=2, n_head=2)
        return t.GPT2LMHeadModel(config)
    if kind == "t5":
        config = t.T5Config(vocab_size=40, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2)
        return t.T5ForConditionalGeneration(config)
    if kind == "bert":
        return t.BertForMaskedLM(t.BertConfig(**small, intermediate_size=8))
    config = t.LlamaConfig(**small, intermediate_size=8, tie_word_embeddings=kind == "tied")
    return t.LlamaForCausalLM(config)


@pytest.mark.parametrize(
    ("kind", "prefix", "pre", "post", "tied"),
    [
        ("tied", "model.layers.", 1, 1, ("lm_head.weight", "model.embed_tokens.weight")),
        ("untied", "model.layers.", 1, 2, None),
        ("gpt2", "transformer.h.", 2, 2, ("lm_head.weight", "transformer.wte.weight")),
        ("t5", "decoder.block.", 1, 2, ("lm_head.weight", "shared.weight")),
        (
            *("bert", "bert.encoder.layer.", 5, 5),
            ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ),
    ],
)
def test_models_as_saved(tmp_path, kind, prefix, pre, post, tied):
    from mergewise.checkpoint import open_checkpoint

    build(kind).save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    names = set(checkpoint.tensors)
    group = main_layers(names)
    assert (group.prefix, group.count) == (prefix, 2) and layer_count(checkpoint.config) == 2
    assert sum(map(is_pre_layer, names)) == pre
    assert sum(map(is_post_layer, names)) == post
    assert tied_head(names, checkpoint.config) == tied
    vocabulary = {n for n, t in checkpoint.tensors.items() if 40 in t.shape}
    assert {n for n in names if is_embedding_like(n)} - {
        "bert.embeddings.position_embeddings.weight"
    } == vocabulary


HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
CAUSAL = {"architectures": ["LlamaForCausalLM"]}


@pytest.mark.parametrize(
    ("names", "config", "expected"),
    [
        ({EMBEDDING}, CAUSAL, True),
        ({EMBEDDING, HEAD}, CAUSAL, False),
        ({EMBEDDING, HEAD}, {**CAUSAL, "tie_word_embeddings": True}, True),
        ({EMBEDDING}, {**CAUSAL, "tie_word_embeddings": False}, False),
        ({EMBEDDING}, {"architectures": ["LlamaModel"]}, False),
        ({EMBEDDING}, {"architectures": ["LlamaModel"], "tie_word_embeddings": True}, False),
        ({EMBEDDING}, {**CAUSAL, "text_config": {"tie_word_embeddings": False}}, False),
        ({EMBEDDING}, None, False),
        ({"x"}, CAUSAL, False),
    ],
)
def test_when_a_head_is_tied(names, config, expected):
    assert tied_head(names, config) == ((HEAD, EMBEDDING) if expected else None)


def test_pair_with_present_head_is_preferred():
    names = {"model.decoder.embed_tokens.weight", "proj_out.weight"}
    assert head_and_embedding(names) == ("proj_out.weight", "model.decoder.embed_tokens.weight")


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "num_layers"])
def test_layer_count(key):
    config = {key: 4, "layer_types": list("abcd"), "eos_token_id": [1, 2, 3, 4]}
    new = with_layers(config, [0, 3, 3])
    assert new == {key: 3, "layer_types": list("add"), "eos_token_id": [1, 2, 3, 4]}
    assert config[key] == 4


def test_layer_numbers_are_translated():
    config = {"num_hidden_layers": 4, "mlp_only_layers": [1, 3]}
    assert with_layers(config, [3, 0, 1])["mlp_only_layers"] == [0, 2]


def test_nested_text_config():
    config = {"text_config": {"num_hidden_layers": 2}, "vision_config": {"num_hidden_layers": 9}}
    new = with_layers(config, [1])
    assert new["text_config"] == {"num_hidden_layers": 1}
    assert new["vision_config"] == {"num_hidden_layers": 9}


def test_same_layers_change_nothing():
    config = {"num_layers": 2, "is_encoder_decoder": True}
    assert with_layers(config, [0, 1]) == config


def test_refusals():
    with pytest.raises(CheckpointError, match="states no number of layers"):
        with_layers({}, [0])
    with pytest.raises(CheckpointError, match="layer 5 asked for, but num_layers is 2"):
        with_layers({"num_layers": 2}, [5])
    with pytest.raises(NotBuiltYetError, match="encoder-decoder"):
        with_layers({"num_layers": 2, "is_encoder_decoder": True}, [0])
    with pytest.raises(NotBuiltYetError, match="attention_types"):
        with_layers({"num_layers": 2, "attention_types": [[["global"], 3]]}, [0])
    with pytest.raises(NotBuiltYetError, match="depths"):
        with_layers({"num_layers": 2, "depths": [2, 2]}, [0])


def test_named_attention_types():
    config = {"num_layers": 4, "attention_types": [[["global", "local"], 2]]}
    new = with_layers(config, [0, 1, 1])
    assert new == {"num_layers": 3, "attention_types": [[["global", "local", "local"], 1]]}
    listed = {**config, "attention_layers": ["global", "local"] * 2}
    assert with_layers(listed, [1])["attention_layers"] == ["local"]
    assert with_layers(listed, [0, 1, 2, 3, 0])["num_layers"] == 5


def test_a_backbone_gives_its_last_layer():
    config = {"num_layers": 2, "out_features": ["stage2"], "out_indices": [2]}
    assert with_layers(config, [0, 1, 1]) == {"num_layers": 3}
    with pytest.raises(NotBuiltYetError, match="out_features"):
        with_layers({"num_layers": 2, "out_features": ["stage1"]}, [0])
