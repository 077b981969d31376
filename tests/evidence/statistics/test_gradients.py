"""Sums of gradients against other ways to the same numbers."""

import pytest
import torch
from _gradient_models import (
    class_loss,
    collect_into,
    collected,
    examples,
    gradient,
    next_token_loss,
    same,
    settings,
    texts,
    tiny_bert,
    tiny_llama,
    values,
)
from torch import nn

from mergewise.errors import EvidenceError, NonFiniteError
from mergewise.evidence._objective import Example
from mergewise.evidence.models._live import LiveModel
from mergewise.evidence.statistics._base import Pass
from mergewise.evidence.statistics._gradients import run_examples
from mergewise.evidence.statistics._sums import MemorySums
from mergewise.evidence.statistics.fisher import Fisher
from mergewise.evidence.statistics.gradient_weight import GradientWeight
from mergewise.evidence.statistics.output_gradient_gram import OutputGradientGram

TEXTS = texts()
LABELS = [0, 2, 1, 2]


def total(gradients, by=lambda g: g.square()):
    """Sum over examples of a function of each gradient."""
    return {name: sum(by(g[name]) for g in gradients) for name in gradients[0]}


@pytest.mark.parametrize("tied", [False, True])
def test_empirical_fisher_of_a_language_model(tied):
    model = tiny_llama(tied).double()
    sums = collected(Fisher(), model, examples(TEXTS), labels="data")
    direct = [gradient(model, next_token_loss(ids)) for ids in TEXTS]
    same(sums, "squares", total(direct))
    assert ("lm_head.weight" in direct[0]) is not tied
    assert set(sums.counts["model.norm.weight"].items()) == {("examples", 4)}
    means = Fisher().finalise(
        {"squares": sums.get("model.norm.weight", "squares")}, {"examples": 4}
    )
    torch.testing.assert_close(means["fisher"], total(direct)["model.norm.weight"] / 4)


def test_empirical_fisher_of_a_classifier_in_training_mode_with_dropout():
    model = tiny_bert().double()
    assert model.training
    sums = collected(Fisher(), model, examples(TEXTS, LABELS), labels="data")
    assert model.training and model.bert.encoder.training
    model.eval()
    direct = [gradient(model, class_loss(i, y)) for i, y in zip(TEXTS, LABELS, strict=True)]
    same(sums, "squares", total(direct))


def test_a_squared_batch_gradient_is_another_thing_and_says_so():
    model = tiny_llama().double()
    sums = collected(Fisher(), model, examples(TEXTS), labels="data", per="batch", batch_size=3)
    direct = [gradient(model, next_token_loss(ids)) for ids in TEXTS]
    batches = [{n: sum(g[n] for g in part) / len(part) for n in direct[0]}
               for part in (direct[:3], direct[3:])]  # fmt: skip
    same(sums, "squares", total(batches))
    assert dict(sums.counts["lm_head.weight"]) == {"batches": 2}
    assert Fisher().finalise({"squares": torch.ones(2)}, {"batches": 2}).keys() == {"batch_squares"}


def test_gradient_times_weight():
    model = tiny_llama().double()
    kept = "product,absolute,square,gradient,gradient_absolute,channels"
    rows = examples(TEXTS)
    sums = collected(GradientWeight(), model, rows, keep=kept, reduction="sum")
    direct = [gradient(model, next_token_loss(ids)) for ids in TEXTS]
    weights = dict(model.named_parameters())
    products = [{n: g[n] * weights[n].detach() for n in g} for g in direct]
    same(sums, "product", total(products, lambda v: v))
    same(sums, "absolute", total(products, torch.abs))
    same(sums, "square", total(products))
    same(sums, "gradient", total(direct, lambda v: v))
    same(sums, "gradient_absolute", total(direct, torch.abs))
    matrices = [{n: v.sum(0) for n, v in p.items() if v.dim() == 2} for p in products]
    same(sums, "channels", total(matrices))


def test_the_sum_over_an_input_channel_is_the_gradient_of_a_mask_on_it():
    model = tiny_llama().double()
    name = "model.layers.1.mlp.down_proj.weight"
    sums = collected(
        GradientWeight(), model, examples(TEXTS), keep="channels", reduction="sum", tensors=name
    )
    found = torch.zeros(12, dtype=torch.float64)
    for ids in TEXTS:
        mask = torch.ones(12, dtype=torch.float64, requires_grad=True)
        layer = model.model.layers[1].mlp.down_proj
        hook = layer.register_forward_pre_hook(lambda m, args, mask=mask: (args[0] * mask,))
        loss = next_token_loss(ids)(model)
        hook.remove()
        found += torch.autograd.grad(loss, mask)[0] ** 2
    same(sums, "channels", {name: found})


def test_removing_a_small_task_vector_changes_the_loss_by_its_product_with_the_gradient():
    model = tiny_llama().double()
    sums = collected(GradientWeight(), model, examples(TEXTS), keep="gradient", reduction="sum")
    name = "model.layers.0.self_attn.v_proj.weight"
    parameter = model.get_parameter(name)
    step = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)).double() * 1e-3

    def loss_at(sign):
        with torch.no_grad():
            parameter.add_(step, alpha=sign)
            value = sum(next_token_loss(ids)(model) for ids in TEXTS)
            parameter.sub_(step, alpha=sign)
        return float(value)

    slope = float((sums.get(name, "gradient") * step).sum())
    assert (loss_at(1) - loss_at(-1)) / 2 == pytest.approx(slope, rel=1e-3)


def test_the_mean_over_tokens_divides_each_example_by_its_own_number():
    model = tiny_llama().double()
    sums = collected(Fisher(), model, examples(TEXTS), labels="data", reduction="mean")
    direct = [gradient(model, next_token_loss(ids)) for ids in TEXTS]
    scaled = [{n: v / (len(ids) - 1) for n, v in g.items()}
              for g, ids in zip(direct, TEXTS, strict=True)]  # fmt: skip
    same(sums, "squares", total(scaled))


def test_token_labels_of_minus_100_are_not_predicted():
    model = tiny_llama().double()
    ids = TEXTS[2]
    labels = torch.tensor([-100, -100, -100, *ids[3:]])
    example = Example({"input_ids": torch.tensor([ids])}, labels)
    sums = collected(Fisher(), model, [example], labels="data")
    whole, prompt = (gradient(model, next_token_loss(part)) for part in (ids, ids[:3]))
    same(sums, "squares", {n: (whole[n] - prompt[n]).square() for n in whole})


def output_gradients(model, name, loss):
    """Gradients for a layer's outputs, through a zero that is added to them."""
    layer, held = model.get_submodule(name), []

    def add(module, inputs, output):
        held.append(torch.zeros_like(output, requires_grad=True))
        return output + held[-1]

    hook = layer.register_forward_hook(add)
    value = loss(model)
    hook.remove()
    found = torch.autograd.grad(value, held)[0]
    return found.reshape(-1, found.shape[-1])


@pytest.mark.parametrize("diagonal", [False, True])
def test_output_gradient_gram(diagonal):
    model = tiny_llama().double()
    sums = collected(OutputGradientGram(), model, examples(TEXTS), labels="data", diagonal=diagonal)
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    expected = {}
    for name in layers:
        rows = torch.cat([output_gradients(model, name, next_token_loss(ids)) for ids in TEXTS])
        expected[f"{name}.weight"] = rows.square().sum(0) if diagonal else rows.T @ rows
    same(sums, "squares" if diagonal else "gram", expected)
    assert dict(sums.counts["lm_head.weight"]) == {"tokens": sum(map(len, TEXTS)), "examples": 4}


class Convolutional(nn.Module):
    """In-place activations and a layer used twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3)
        self.twice, self.head = nn.Linear(27, 27), nn.Linear(27, 4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, image):
        hidden = self.relu(self.norm(self.relu(self.conv(image)))).flatten(1)
        return self.head(self.relu(self.twice(self.relu(self.twice(hidden)))))


def test_output_gradients_of_convolutions_and_layers_used_twice():
    torch.manual_seed(2)
    model = Convolutional().double().eval()
    image, label = torch.randn(1, 2, 4, 4).double(), 3
    rows = [Example({"image": image}, label)]
    sums = collected(OutputGradientGram(), model, rows, labels="data")
    conv = model.conv(image).detach().requires_grad_()
    first = model.twice(model.norm(conv.relu()).relu().flatten(1))
    second = model.twice(first.relu())
    logits = model.head(second.relu())
    loss = nn.functional.cross_entropy(logits, torch.tensor([label]))
    g = torch.autograd.grad(loss, [conv, first, second, logits])
    by_position = g[0].movedim(1, -1).reshape(-1, 3)
    expected = {
        "conv.weight": by_position.T @ by_position,
        "twice.weight": g[1].T @ g[1] + g[2].T @ g[2],
        "head.weight": g[3].T @ g[3],
    }
    same(sums, "gram", expected)
    assert sums.counts["conv.weight"]["tokens"] == 9
    assert sums.counts["twice.weight"]["tokens"] == 2


def test_several_statistics_in_one_pass_are_what_each_is_alone():
    model = tiny_llama().double()
    statistics = [
        (Fisher(), {}), (Fisher(), {"labels": "data"}), (GradientWeight(), {}),
        (OutputGradientGram(), {"labels": "model"}),
    ]  # fmt: skip
    runs = [(s, Pass(settings(s, **o), model, MemorySums(True))) for s, o in statistics]
    seen = run_examples(LiveModel("tiny", model), examples(TEXTS), runs)
    # fisher and the Gram matrices share theirs
    assert (seen.examples, seen.tokens, seen.backward) == (4, sum(map(len, TEXTS)), 12)
    for (statistic, options), (_, run) in zip(statistics, runs, strict=True):
        alone = collected(statistic, model, examples(TEXTS), **options)
        assert alone.held() == run.sums.held() and alone.counts == run.sums.counts
        keys = alone.held()
        for key in keys:
            torch.testing.assert_close(alone.get(*key), run.sums.get(*key), rtol=1e-5, atol=1e-8)


def test_only_the_tensors_asked_for():
    model = tiny_llama()
    sums = collected(Fisher(), model, examples(TEXTS), tensors="*.q_proj.weight, lm_head.*")
    layers = [f"model.layers.{i}.self_attn.q_proj.weight" for i in (0, 1)]
    assert sorted(values(sums, "squares")) == ["lm_head.weight", *layers]


def test_the_module_is_left_as_it_was():
    model = tiny_llama().to(torch.bfloat16)
    model.lm_head.weight.requires_grad_(False)
    model.model.norm.weight.grad = torch.ones(8, dtype=torch.bfloat16)
    before = {
        n: (t.clone(), t.dtype) for n, t in [*model.named_parameters(), *model.named_buffers()]
    }
    with torch.no_grad():
        sums = collected(Fisher(), model, examples(TEXTS), labels="data")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        assert tensor.dtype == before[name][1] and torch.equal(tensor, before[name][0])
    assert not model.lm_head.weight.requires_grad and model.model.norm.weight.requires_grad
    assert torch.equal(model.model.norm.weight.grad, torch.ones(8, dtype=torch.bfloat16))
    assert not any(m._forward_hooks for m in model.modules())
    # arithmetic in float32 all the same
    exact = model.double()
    direct = [gradient(exact, next_token_loss(ids)) for ids in TEXTS]
    for name, value in total(direct).items():
        torch.testing.assert_close(sums.get(name, "squares").double(), value, rtol=1e-3, atol=1e-6)


def test_a_loss_of_ones_own():
    torch.manual_seed(3)
    model = nn.Linear(3, 2).double()
    points = torch.randn(5, 3).double()

    def squared(module, example):
        return module(example.inputs["input"]).square().sum()

    rows = [Example({"input": p[None]}) for p in points]
    sums = MemorySums(True)
    collect_into(sums, Fisher(), model, rows, loss=squared, labels="data")
    direct = [gradient(model, lambda call, p=p: call(p[None]).square().sum()) for p in points]
    same(sums, "squares", total(direct))
    with pytest.raises(EvidenceError, match="set `labels: data`"):
        collect_into(sums, Fisher(), model, rows, loss=squared, labels="model")


def test_refusals_come_before_the_pass():
    def run(model, statistic, rows=(), **options):
        return collect_into(MemorySums(), statistic, model, rows, **options)

    def never():
        pytest.fail("an example was read")
        yield

    model = tiny_llama()
    with pytest.raises(EvidenceError, match=r"no tensor of the model .* matches none"):
        run(model, Fisher(), never(), tensors="nothing*")
    with pytest.raises(EvidenceError, match="'squared' is no sum"):
        run(model, GradientWeight(), never(), keep="product,squared")
    with pytest.raises(EvidenceError, match="go together"):
        run(model, Fisher(), never(), per="batch")
    with pytest.raises(EvidenceError, match="offloaded"):
        run(model.to("meta"), Fisher(), never())
    with pytest.raises(EvidenceError, match="empty"):
        run(tiny_llama(), Fisher(), [Example({"input_ids": torch.tensor([[1]])})])
    with pytest.raises(EvidenceError, match="no loss is known for LlamaModel"):
        run(tiny_llama().model, Fisher(), never())


def test_a_loss_that_is_not_finite_is_named():
    model = tiny_llama()
    nn.init.constant_(model.lm_head.weight, float("nan"))
    with pytest.raises(NonFiniteError, match=r"example \(0,\).*nan"):
        collected(Fisher(), model, examples(TEXTS), labels="data")
