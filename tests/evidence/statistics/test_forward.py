"""Forward statistics against direct computation in float64, on several kinds of module."""

import pytest
import torch
import transformers
from _tiny import (
    alone,
    batches,
    bert,
    deepseek,
    gpt2,
    live,
    llama,
    mixtral,
    noisy,
    seen,
    sequences,
    vit,
)

from mergewise.errors import EvidenceError, NonFiniteError
from mergewise.evidence import collect

ALL = "input_moments,output_moments,input_gram"


def close(found, expected, rtol=2e-5):
    scale = float(expected.abs().max()) + 1e-12
    assert (found.double() - expected).abs().max() <= rtol * scale


def check(evidence, tensor, inputs, outputs):
    """All three statistics of one tensor against rows of inputs and outputs."""
    rows = {"input_moments": inputs, "output_moments": outputs}
    for statistic, x in rows.items():
        sums = evidence.sums(statistic, tensor)
        close(sums["sum"], x.sum(0))
        close(sums["sum_abs"], x.abs().sum(0))
        close(sums["sum_squares"], x.square().sum(0))
        assert evidence.counts(statistic, tensor) == {"tokens": len(x)}
    close(evidence.sums("input_gram", tensor)["gram"], inputs.T @ inputs)


@pytest.mark.parametrize("tensor", [
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.1.self_attn.o_proj.weight",
    "model.layers.1.mlp.down_proj.weight",
    "lm_head.weight",
])  # fmt: skip
def test_llama_with_padding_equals_each_sequence_alone(tensor, tmp_path):
    module, texts = llama(), sequences(vocab=259)
    found = collect(ALL, live(module), batches(texts, 4, extra=3), tmp_path / "x.evd")
    check(found, tensor, *seen(module, tensor.removesuffix(".weight"), alone(texts)))


def test_gpt2_conv1d_and_tied_head(tmp_path):
    module, texts = gpt2(), sequences()
    found = collect(ALL, live(module), batches(texts, 3), tmp_path / "x.evd")
    for path in ("transformer.h.0.attn.c_attn", "transformer.h.0.mlp.c_proj"):
        check(found, f"{path}.weight", *seen(module, path, alone(texts)))
    # the head and the embedding are one tensor, described as the matrix that it is in the head
    check(found, "transformer.wte.weight", *seen(module, "lm_head", alone(texts)))
    assert "lm_head.weight" not in found.tensors("input_gram")


def test_bert_counts_pooled_features_once_an_example(tmp_path):
    module, texts = bert(), sequences()
    found = collect(ALL, live(module), batches(texts, 4), tmp_path / "x.evd")
    for path in ("bert.encoder.layer.0.output.dense", "bert.pooler.dense", "classifier"):
        check(found, f"{path}.weight", *seen(module, path, alone(texts)))
    assert found.counts("input_gram", "classifier.weight") == {"tokens": len(texts)}
    # position embeddings are looked up once for a batch, and padding has positions too
    positions = "bert.embeddings.position_embeddings.weight"
    assert found.counts("output_moments", positions) == {"tokens": sum(map(len, texts))}


def test_vit_patches_are_in_the_order_of_the_weight(tmp_path):
    module = vit()
    images = torch.randn(5, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    calls = [{"pixel_values": images[:3]}, {"pixel_values": images[3:]}]
    found = collect(ALL, live(module), calls, tmp_path / "x.evd")
    tensor = "vit.embeddings.patch_embeddings.projection.weight"
    weight = module.vit.embeddings.patch_embeddings.projection.weight.detach().flatten(1)
    squares = images.unfold(2, 4, 4).unfold(3, 4, 4)
    patches = squares.permute(0, 2, 3, 1, 4, 5).reshape(-1, 48).double()
    bias = module.vit.embeddings.patch_embeddings.projection.bias.detach().double()
    check(found, tensor, patches, patches @ weight.double().T + bias)
    # tensors have the names of the file, not those of the library's version
    inner = "vit.encoder.layer.0.attention.attention.query.weight"
    check(found, inner, *seen(module, "vit.layers.0.attention.q_proj", calls))


class Convolutions(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(2, 4, 3, padding=1, stride=2)
        self.norm = torch.nn.BatchNorm2d(4)
        self.second = torch.nn.Conv2d(4, 6, (1, 3), dilation=(1, 2), padding="same")
        self.head = torch.nn.Linear(6, 3)

    def forward(self, image):
        hidden = self.second(self.norm(self.first(image)).relu())
        return self.head(hidden.mean(dim=(2, 3)))


def test_a_convolution_is_a_matrix_times_its_patches(tmp_path):
    module = noisy(Convolutions())
    image = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(2))
    found = collect(ALL, live(module), [{"image": image}], tmp_path / "x.evd")
    with torch.no_grad():
        first = module.first(image)
        second = module.second(module.norm(first).relu())
    for name, layer, result in (("first", module.first, first), ("second", module.second, second)):
        weight = layer.weight.detach().flatten(1).double()
        outputs = result.movedim(1, -1).flatten(0, 2).double()
        gram = found.sums("input_gram", f"{name}.weight")["gram"].double()
        total = found.sums("input_moments", f"{name}.weight")["sum"].double()
        # through the weight, so that a wrong order of patches would show
        centred = outputs - layer.bias.detach().double()
        close(weight @ gram @ weight.T, centred.T @ centred)
        close(weight @ total, centred.sum(0))
        close(found.sums("output_moments", f"{name}.weight")["sum"], outputs.sum(0))
    close(found.sums("input_moments", "norm.weight")["sum"], first.double().sum((0, 2, 3)))
    assert found.counts("input_moments", "head.weight") == {"tokens": 3}


class Branches(torch.nn.Module):
    """Two convolutions of one image, alike in shape and unlike in what they look at."""

    def __init__(self):
        super().__init__()
        self.near = torch.nn.Conv2d(2, 3, 3, padding=1)
        self.far = torch.nn.Conv2d(2, 3, 3, padding=2, dilation=2)

    def forward(self, image):
        return self.near(image) + self.far(image)


def test_convolutions_of_one_image_have_patches_of_their_own(tmp_path):
    module = noisy(Branches())
    image = torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    found = collect("input_gram", live(module), [{"image": image}], tmp_path / "x.evd")
    for name, spread in (("near", 1), ("far", 2)):
        patches = torch.nn.functional.unfold(image.double(), 3, dilation=spread, padding=spread)
        rows = patches.movedim(1, -1).flatten(0, 1)
        close(found.sums("input_gram", f"{name}.weight")["gram"], rows.T @ rows)


class InPlace(torch.nn.Module):
    """A residual that is added to its input where it lies."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, values, attention_mask):
        values = values.clone()
        values += self.first(values)
        return self.second(values)


def test_a_tensor_changed_in_place_is_read_again(tmp_path):
    module = noisy(InPlace())
    values = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    batch = {"values": values, "attention_mask": mask}
    found = collect("input_moments", live(module), [batch], tmp_path / "x.evd")
    with torch.no_grad():
        rows = (values + module.first(values))[mask.bool()].double()
    close(found.sums("input_moments", "second.weight")["sum"], rows.sum(0))


def test_means_and_norms(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False))
    rows = torch.tensor([[1.0, -2.0], [3.0, 2.0]])
    found = collect("input_moments,input_gram", live(module), [{"input": rows}], tmp_path / "x.evd")
    values = found.values("input_moments", "0.weight")
    assert values["mean"].tolist() == [2.0, 0.0]
    assert values["mean_abs"].tolist() == [2.0, 2.0]
    assert values["rms"].tolist() == pytest.approx([5**0.5, 2.0])
    assert values["norm"].tolist() == pytest.approx([10**0.5, 8**0.5])
    assert found.values("input_gram", "0.weight")["gram"].tolist() == [[5.0, 2.0], [2.0, 4.0]]


def test_each_expert_of_a_mixture_under_the_names_on_disk(tmp_path):
    module, texts = mixtral(), sequences()
    names = f"{ALL},router_usage"
    found = collect(names, live(module), batches(texts, 4), tmp_path / "x.evd")
    block = module.model.layers[1].mlp
    start = "model.layers.1.block_sparse_moe"
    _, normed = seen(module, "model.layers.1.post_attention_layernorm", alone(texts))
    logits = normed @ block.gate.weight.detach().double().T
    probability = logits.softmax(-1)
    top = probability.topk(2)
    weights = top.values / top.values.sum(-1, keepdim=True)
    for expert in range(4):
        routed = (top.indices == expert).any(-1)
        x = normed[routed]
        both = block.experts.gate_up_proj[expert].detach().double()
        gate, up = x @ both[:24].T, x @ both[24:].T
        inner = torch.nn.functional.silu(gate) * up
        down = inner @ block.experts.down_proj[expert].detach().double().T
        check(found, f"{start}.experts.{expert}.w1.weight", x, gate)
        check(found, f"{start}.experts.{expert}.w3.weight", x, up)
        check(found, f"{start}.experts.{expert}.w2.weight", inner, down)
        usage = found.sums("router_usage", f"{start}.gate.weight")
        assert int(usage["chosen"][expert]) == int(routed.sum())
        given = weights[top.indices == expert].sum()
        assert float(usage["weight"][expert]) == pytest.approx(float(given), rel=1e-5)
    close(usage["probability"], probability.sum(0))
    values = found.values("router_usage", f"{start}.gate.weight")
    assert float(values["load"].sum()) == pytest.approx(1)
    assert float(values["frequency"].sum()) == pytest.approx(2)
    check(found, f"{start}.gate.weight", normed, logits)


def test_a_router_with_groups_and_sigmoid_scores(tmp_path):
    module, texts = deepseek(), sequences()
    found = collect("router_usage", live(module), batches(texts, 3), tmp_path / "x.evd")
    (tensor,) = found.tensors("router_usage")
    assert tensor == "model.layers.1.mlp.gate.weight"
    gate, counted = module.model.layers[1].mlp.gate, torch.zeros(4)
    hidden, _ = seen(module, "model.layers.1.mlp.gate", alone(texts))
    logits, _, chosen = gate(hidden.float())
    counted.index_add_(0, chosen.flatten(), torch.ones(chosen.numel()))
    sums = found.sums("router_usage", tensor)
    assert sums["chosen"].tolist() == counted.tolist()
    scores = logits.detach().sigmoid()
    close(sums["probability"], (scores / scores.sum(-1, keepdim=True)).double().sum(0))


def test_cross_covariance_of_two_models(tmp_path):
    one, two, texts = llama(0), llama(1), sequences(vocab=259)
    found = collect(
        "cross_covariance,input_moments", live(one), batches(texts, 4), tmp_path / "x.evd",
        other=live(two), options={"cross_covariance": {"within": True, "max_channels": 64}},
    )  # fmt: skip
    tensor = "model.layers.1.mlp.up_proj.weight"
    a, b = (seen(m, "model.layers.1.mlp.up_proj", alone(texts))[1] for m in (one, two))
    values = found.values("cross_covariance", tensor)
    both = torch.cat([a, b], 1).T
    close(values["covariance"], torch.cov(both, correction=0)[:24, 24:], 1e-4)
    close(values["covariance_a"], torch.cov(a.T, correction=0), 1e-4)
    close(values["correlation"], torch.corrcoef(both)[:24, 24:], 1e-4)
    assert "lm_head.weight" not in found.tensors("cross_covariance")
    assert "lm_head.weight" in found.tensors("input_moments")
    assert found.record.statistics["cross_covariance"].other["fingerprint"]


def test_a_model_with_itself_is_perfectly_correlated(tmp_path):
    module = live(llama())
    calls = batches(sequences(vocab=259), 6)
    found = collect("cross_covariance", module, calls, tmp_path / "x.evd", other=module)
    values = found.values("cross_covariance", "model.layers.0.mlp.gate_proj.weight")
    close(values["correlation"].diagonal(), torch.ones(24).double(), 1e-5)
    close(values["covariance"], values["covariance"].T, 1e-6)


def test_two_models_that_do_not_fit_are_refused(tmp_path):
    calls = batches(sequences(vocab=40), 2)
    with pytest.raises(EvidenceError, match="the same modules"):
        collect("cross_covariance", live(llama()), calls, tmp_path / "x", other=live(gpt2()))
    assert not list(tmp_path.iterdir())


def test_not_a_number_is_reported_with_its_place(tmp_path):
    module = llama()
    with torch.no_grad():
        module.model.layers[1].mlp.up_proj.weight[3, 2] = torch.nan
    calls = batches(sequences(vocab=259), 2)
    with pytest.raises(NonFiniteError, match=r"model\.layers\.1\.mlp"):
        collect("input_moments", live(module), calls, tmp_path / "x.evd")


def test_a_causal_convolution_leaves_padding_out(tmp_path):
    config = transformers.MambaConfig(
        hidden_size=8, state_size=4, num_hidden_layers=1, vocab_size=40, expand=2, conv_kernel=3
    )
    module, texts = noisy(transformers.MambaForCausalLM(config)), sequences()
    one = collect("input_moments", live(module), batches(texts, 6, extra=2), tmp_path / "a.evd")
    two = collect("input_moments", live(module), alone(texts), tmp_path / "b.evd")
    for tensor in two.tensors("input_moments"):
        assert one.counts("input_moments", tensor) == two.counts("input_moments", tensor), tensor
        sums = [e.sums("input_moments", tensor)["sum"] for e in (one, two)]
        close(sums[0], sums[1], 1e-4)
