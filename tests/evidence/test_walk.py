"""Walking a model layer by layer: whatever its kind, what a layer sees is what it would see in the
whole model with the weights of that moment."""

import pytest
import torch
import transformers

from mergewise.errors import EvidenceError
from mergewise.evidence.models._call import Fed, call
from mergewise.evidence.models._live import LiveModel
from mergewise.evidence.models._sites import sites_of
from mergewise.evidence.models._walk import Walk

torch.set_num_threads(1)
SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
DECODER = SMALL | {"intermediate_size": 24, "num_key_value_heads": 1, "max_position_embeddings": 32}
ENCODER = SMALL | {"intermediate_size": 24}


def llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**DECODER))


def gemma2():
    config = transformers.Gemma2Config(**DECODER, head_dim=8, sliding_window=4)
    return transformers.Gemma2ForCausalLM(config)


def gpt2():
    config = transformers.GPT2Config(n_embd=16, n_layer=3, n_head=2, vocab_size=40)
    return transformers.GPT2LMHeadModel(config)


def bert():
    config = transformers.BertConfig(**ENCODER, max_position_embeddings=32)
    return transformers.BertForSequenceClassification(config)


def mixtral():
    config = transformers.MixtralConfig(**DECODER, num_local_experts=4)
    return transformers.MixtralForCausalLM(config)


def t5():
    config = transformers.T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2
    )
    return transformers.T5ForConditionalGeneration(config)


def vit():
    config = transformers.ViTConfig(**ENCODER | {"image_size": 12, "patch_size": 4})
    return transformers.ViTForImageClassification(config)


def resnet():
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3
    )
    return transformers.ResNetForImageClassification(config)


class Mlp(torch.nn.Module):
    """Layers with something between them."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(6, 6) for _ in range(3))

    def forward(self, pixel_values):
        x = pixel_values.flatten(1)
        for layer in self.layers:
            x = torch.relu(layer(x)) + 0.5 * x
        return x


KINDS = {
    "llama": llama, "gemma2": gemma2, "gpt2": gpt2, "bert": bert, "mixtral": mixtral, "t5": t5,
    "vit": vit, "resnet": resnet, "mlp": Mlp,
}  # fmt: skip
CHAINED = {"llama", "gemma2", "gpt2", "bert", "mixtral", "vit"}


def made(kind):
    torch.manual_seed(0)
    return LiveModel(kind, KINDS[kind]().eval())


def fed(**inputs):
    size = len(next(iter(inputs.values())))
    return Fed(inputs, inputs.get("attention_mask"), None, tuple((i,) for i in range(size)), size)


def batches(kind):
    torch.manual_seed(1)
    if kind in ("vit", "resnet", "mlp"):
        shape = (3, 2, 3) if kind == "mlp" else (3, 3, 12, 12)
        return [fed(pixel_values=torch.randn(shape)) for _ in range(2)]
    found = []
    for length in (7, 5):
        mask = torch.ones(3, length, dtype=torch.int64)
        mask[1, 3:] = 0
        parts = {"input_ids": torch.randint(3, 40, (3, length)), "attention_mask": mask}
        if kind == "t5":
            parts["decoder_input_ids"] = torch.randint(3, 40, (3, 4))
        found.append(fed(**parts))
    return found


def change(module, seed):
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in module.parameters():
            value.add_(torch.randn(value.shape, generator=draw), alpha=0.3)


def output_in_whole(model, module, one):
    """What a module gives when the whole model is run."""
    seen = []
    handle = module.register_forward_hook(lambda m, a, output: seen.append(output))
    with torch.no_grad():
        call(model, one.inputs)
    handle.remove()
    return seen[-1]


def first(output):
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("others", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_sees_what_replaced_layers_before_it_give(kind, others):
    model, data = made(kind), batches(kind)
    walk = Walk(model, sites_of(model.module), data, others)
    for k, layer in enumerate(walk.layers):
        walk.enter(k)
        for one, run in walk.calls():
            wanted = first(output_in_whole(model, layer.module, one))
            assert torch.allclose(first(run()), wanted, atol=1e-6), layer.path
        change(layer.module, k)


def test_a_numbered_part_of_a_head_is_a_layer_of_its_own():
    model = made("resnet")
    walk = Walk(model, sites_of(model.module), batches("resnet"))
    paths = [layer.path for layer in walk.layers]
    assert paths == ["resnet.encoder.stages.0", "resnet.encoder.stages.1", "classifier.1"]
    assert walk.chained == [False, True, False]


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"resnet"}))
def test_layers_in_the_order_of_running_and_chained_where_possible(kind):
    model, data = made(kind), batches(kind)
    walk = Walk(model, sites_of(model.module), data)
    paths = [layer.path for layer in walk.layers]
    stacks = list(dict.fromkeys(path.rpartition(".")[0] for path in paths))
    assert paths == [f"{s}.{i}" for s in stacks for i in range(len(paths) // len(stacks))]
    assert walk.chained == [False, *[kind in CHAINED] * (len(paths) - 1)]


def test_what_lies_behind_is_walked_if_wanted():
    model = made("bert")
    walk = Walk(model, sites_of(model.module), batches("bert"), others=True)
    assert [layer.path for layer in walk.layers[3:]] == ["bert.pooler.dense", "classifier"]
    assert walk.layers[-1].tensors == {"classifier.weight"}
    assert "bert.encoder.layer.1.output.dense.bias" in walk.layers[1].tensors


def test_a_chain_runs_every_layer_twice():
    model, data = made("llama"), batches("llama")
    walk = Walk(model, sites_of(model.module), data)
    count = []
    for layer in walk.layers:
        layer.module.register_forward_hook(lambda *_: count.append(1))
    for k in range(3):
        walk.enter(k)
        for _, run in walk.calls():
            run()
    # all layers are given what the first is given, so that capturing runs none of them; then each
    # is run, and all but the last once more for the next one
    assert len(count) == len(data) * (3 + 2)


def test_layers_that_are_given_other_masks_are_reached():
    """Gemma 2 has sliding windows in every other layer."""
    model, data = made("gemma2"), batches("gemma2")
    walk = Walk(model, sites_of(model.module), data)
    count = []
    for layer in walk.layers:
        layer.module.register_forward_hook(lambda *_: count.append(1))
    walk.enter(0)
    assert len(count) == len(data)


def test_a_layer_may_be_run_again_and_entered_again():
    model, data = made("llama"), batches("llama")
    walk = Walk(model, sites_of(model.module), data)
    walk.enter(1)
    before = [run() for _, run in walk.calls()]
    walk.enter(1)
    assert all(torch.equal(a, run()) for a, (_, run) in zip(before, walk.calls(), strict=True))


def test_models_that_cannot_be_walked_are_named():
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one = torch.nn.Linear(6, 6)

        def forward(self, pixel_values):
            return self.one(pixel_values.flatten(1))

    class Again(Mlp):
        def forward(self, pixel_values):
            return self.layers[0](super().forward(pixel_values))

    class Idle(Mlp):
        def forward(self, pixel_values):
            return pixel_values.sum()

    for cls, what in ((Plain, "no repeated layers"), (Again, "layers.0 2 times"),
                      (Idle, "none of 3 layers ran")):  # fmt: skip
        model = LiveModel("odd", cls())
        with pytest.raises(EvidenceError, match=what):
            Walk(model, sites_of(model.module), batches("mlp"))
    with torch.device("meta"):
        model = LiveModel("far", Mlp())
    with pytest.raises(EvidenceError, match="--offload"):
        Walk(model, sites_of(model.module), batches("mlp"))
