"""Models whose weights stay on disk give the same logits and the same statistics."""

import json

import pytest
import torch
from _tiny import (
    assert_close,
    batches,
    bert,
    deepseek,
    gpt2,
    llama,
    mixtral,
    noisy,
    sequences,
    vit,
)
from safetensors.torch import load_file, save_file

from mergewise.errors import CheckpointError, EvidenceError
from mergewise.evidence import LiveModel, collect, open_model


def gpt_oss():
    import transformers

    config = transformers.GptOssConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=40, num_local_experts=3, num_experts_per_tok=2,
        head_dim=8, max_position_embeddings=64,
    )  # fmt: skip
    return noisy(transformers.GptOssForCausalLM(config))


def inputs(role):
    draw = torch.Generator().manual_seed(0)
    if role == "image_classifier":
        return {"pixel_values": torch.randn(2, 3, 12, 12, generator=draw)}
    return batches(sequences(3), 3)[0]


@pytest.mark.parametrize(("make", "role"), [
    (llama, "causal_lm"),
    (gpt2, "causal_lm"),  # tied head, Conv1D
    (mixtral, "causal_lm"),  # experts packed from several tensors
    (deepseek, "causal_lm"),  # a buffer that is stored
    (gpt_oss, "causal_lm"),  # experts stored packed
    (bert, "text_classifier"),
    (bert, "body"),  # without the prefix of the file's names
    (vit, "image_classifier"),  # renamed by the library
])  # fmt: skip
def test_logits_are_the_same(make, role, tmp_path):
    made = make()
    for name, buffer in made.named_buffers():
        if name.endswith("bias") and buffer.is_floating_point():
            buffer.copy_(torch.linspace(0, 1, buffer.numel()))
    made.save_pretrained(tmp_path)
    whole, offloaded = (
        open_model(tmp_path, role, dtype="float32", offload=offload) for offload in (False, True)
    )
    with torch.no_grad():
        # twice: weights that were dropped come back
        found = [m.module(**inputs(role))[0] for m in (whole, offloaded, offloaded)]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert all(p.is_meta for p in offloaded.module.parameters())
    assert offloaded.device == torch.device("cpu")


@pytest.mark.parametrize("make", [gpt2, mixtral])
def test_statistics_are_the_same(make, tmp_path):
    make().save_pretrained(tmp_path / "model")
    calls, found = batches(sequences(), 3), []
    for name, offload in (("a", False), ("b", True)):
        names = "input_moments,output_moments,input_gram"
        found.append(
            collect(names, tmp_path / "model", calls, tmp_path / name, offload=offload,
                    dtype="float32")
        )  # fmt: skip
    assert_close(*found, rtol=1e-6)
    assert found[0].record.model == found[1].record.model
    assert found[0].record.uncovered == found[1].record.uncovered


def test_bfloat16_weights_stay_bfloat16(tmp_path):
    llama().bfloat16().save_pretrained(tmp_path)
    models = [open_model(tmp_path, offload=offload) for offload in (False, True)]
    with torch.no_grad():
        one, two = (m.module(**inputs("causal_lm")).logits for m in models)
    assert one.dtype == torch.bfloat16 and torch.equal(one, two)


def test_a_checkpoint_that_lacks_a_tensor(tmp_path):
    llama().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        open_model(tmp_path, offload=True)


def test_a_config_of_another_model(tmp_path):
    llama().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 32}))
    with pytest.raises(CheckpointError, match="shape"):
        open_model(tmp_path, offload=True)


def test_gradients_of_an_offloaded_model_are_refused(tmp_path):
    llama().save_pretrained(tmp_path / "model")
    calls = batches(sequences(), 3)
    with pytest.raises(EvidenceError, match="whole model in memory"):
        collect("fisher", tmp_path / "model", calls, tmp_path / "x.evd", offload=True)
    opened = open_model(tmp_path / "model", offload=True)
    assert isinstance(opened, LiveModel)
    with pytest.raises(EvidenceError, match="offload"):
        collect("fisher", opened, calls, tmp_path / "x.evd")
    assert not (tmp_path / "x.evd").exists()
