"""SLTA: weights by submodule from what experts do to outputs."""

import shutil

import pytest
import torch
import yaml
from _guided_models import nudge, save
from safetensors.torch import load_file
from small_language import random_llama

import mergewise
from mergewise.errors import DataError, GuideError, RecipeError
from mergewise.evidence import Data, LiveModel
from mergewise.evidence._inputs import Feeder, Reading
from mergewise.guides import guide
from mergewise.guides._outputs._linearity import fitted, left_over, output_grams
from mergewise.guides._outputs._submodule import Family
from mergewise.plan import build_plan

TEXTS = {"a": ["a rose is a rose", "by any other name", "would smell"], "b": ["1 + 1 = 2", "4 + 4"]}


def gram(*changes):
    """Of one task: inner products of the changes of outputs."""
    d = torch.tensor(changes, dtype=torch.float64)
    return d @ d.T


@pytest.fixture
def given():
    """Data for `guide`."""
    return {name: Data([{"text": text} for text in texts]) for name, texts in TEXTS.items()}


def weights(guided, expert):
    """By tensor, what the plan says."""
    tensors = build_plan(guided.recipe).output.tensors
    return {name: tensor.values["weight"][expert] for name, tensor in tensors.items()}


def test_experts_that_act_on_their_own_data_alone_are_added():
    # d_1 = (1, 0) on task 1, d_2 = (0, 2) on task 2, nothing elsewhere
    grams = [gram((1, 0), (0, 0)), gram((0, 0), (0, 2))]
    assert fitted(grams) == pytest.approx([1, 1])
    assert left_over(grams, [1, 1]) == (0, 5)
    assert left_over(grams, [0.5, 1]) == (0.25, 5)


def test_equal_experts_share():
    grams = [gram((1, 2), (1, 2)), gram((3, 1), (3, 1))]
    assert fitted(grams) == pytest.approx([0.5, 0.5], abs=1e-12)
    assert sum(fitted([gram(*[(1, 2)] * 3)] * 3)) == pytest.approx(1)


def test_weights_solve_the_normal_equations():
    draw = torch.Generator().manual_seed(0)
    d = torch.randn(2, 2, 50, dtype=torch.float64, generator=draw)  # task, expert, outputs
    grams = [one @ one.T for one in d]
    a = fitted(grams)
    # by least squares on the outputs themselves
    outputs, wanted = torch.cat([one.T for one in d]), torch.cat([d[0][0], d[1][1]])
    assert a == pytest.approx(torch.linalg.lstsq(outputs, wanted).solution.tolist())
    error = float((outputs @ torch.tensor(a, dtype=torch.float64) - wanted).square().sum())
    assert left_over(grams, a)[0] == pytest.approx(error)


def test_a_ridge_pulls_to_nought():
    grams = [gram((1, 0), (0, 0)), gram((0, 0), (0, 1))]
    assert fitted(grams, ridge=1.0) == pytest.approx([0.5, 0.5])


def test_experts_that_change_nothing_have_no_weight():
    assert fitted([gram((0, 0), (0, 0))] * 2) == [0, 0]


def linear_family():
    """Two layers W_k x, a base and two experts."""
    module = torch.nn.Sequential(*(torch.nn.Linear(3, 3, bias=False) for _ in range(2)))
    draw = torch.Generator().manual_seed(1)
    names = ["0.weight", "1.weight"]
    states = [{n: torch.randn(3, 3, generator=draw) for n in names} for _ in range(3)]
    return module, Family(states[0], states[1:], frozenset(names))


def test_changes_of_outputs_are_measured_on_the_models_own_activations():
    module, family = linear_family()
    module.load_state_dict(family.experts[1])
    x = torch.randn(5, 3)
    live = LiveModel("linear", module)
    batches = list(Feeder(Data([{"input": x}]), live, Reading(), False))
    found = output_grams(live, batches, family, "layer")
    inputs = x
    for k in range(2):
        name = f"{k}.weight"
        d = torch.stack([((e[name] - family.base[name]) @ inputs.T) for e in family.experts])
        wanted = torch.einsum("iot,jot->ij", d, d) / 5
        assert found[str(k)].tensors == (name,)
        assert torch.allclose(found[str(k)].gram, wanted.double(), rtol=1e-5)
        inputs = inputs @ family.experts[1][name].T
    assert all(torch.equal(module.state_dict()[n], t) for n, t in family.experts[1].items())


def test_tensors_that_are_not_merged_stay_the_bases():
    module, family = linear_family()
    live = LiveModel("linear", module)
    batches = list(Feeder(Data([{"input": torch.randn(5, 3)}]), live, Reading(), False))
    family = Family(family.base, family.experts, frozenset(["1.weight"]))
    assert list(output_grams(live, batches, family, "layer")) == ["1"]


def test_padding_does_not_count(models):
    """Sequences one by one, and padded together, give the same."""
    live = random_llama(0)
    states = [load_file(models.root / n / "model.safetensors") for n in ("base", "a", "b")]
    family = Family(states[0], states[1:], frozenset(states[0]))
    data = Data([{"text": text} for text in TEXTS["a"]])
    alone, together = (
        output_grams(live, list(Feeder(data, live, Reading(size), False)), family, "block")
        for size in (1, 8)
    )
    for path, found in together.items():
        assert torch.allclose(found.gram, alone[path].gram, rtol=1e-3), path


@pytest.mark.parametrize("granularity", ["layer", "block"])
def test_every_block_has_a_weight_of_its_own(recipe, given, granularity):
    document = recipe("task_arithmetic", each={"weight": 1})
    made = guide(document, "slta", data=given, granularity=granularity)
    found = weights(made, 0)
    layer = "model.layers.1."
    assert len({v for n, v in found.items() if n.startswith(f"{layer}self_attn")}) == 1
    same = found[f"{layer}self_attn.q_proj.weight"] == found[f"{layer}mlp.up_proj.weight"]
    assert same == (granularity == "layer")
    norm = found[f"{layer}input_layernorm.weight"]
    assert norm == (found[f"{layer}mlp.up_proj.weight"] if granularity == "layer" else 0.5)
    assert found["model.embed_tokens.weight"] == found["lm_head.weight"] == 0.5
    assert [one.what for one in made.maps] == ["weight", "weight"]
    numbers = set(made.maps[0].values["model.layers.1"].values())
    assert all(any(abs(v - n) < 1e-8 for v in found.values()) for n in numbers)


def test_a_single_expert_is_given_back(tmp_path, models, recipe, given):
    document = recipe("task_arithmetic", experts="a", each={"weight": 0.3})
    made = guide(document, "slta", data={"a": given["a"]})
    assert set(weights(made, 0).values()) == {1.0}
    mergewise.merge(made.recipe, tmp_path / "out")
    merged, own = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "out", models.root / "a")
    )
    assert all(torch.allclose(merged[name], own[name], atol=1e-6) for name in own)


def test_the_same_expert_twice_is_given_back(tmp_path, models, recipe, given):
    shutil.copytree(models.root / "a", tmp_path / "b")
    document = recipe("task_arithmetic", each={"weight": 1})
    document["models"][1]["model"] = str(tmp_path / "b")
    made = guide(document, "slta", data=given)
    assert list(weights(made, 0).values()) == pytest.approx([0.5] * len(weights(made, 0)))


def test_the_weights_beat_the_mean_at_what_they_minimise(models, given):
    """On the submodules' outputs; what that does to a whole model is for the lab to say."""
    live = random_llama(0)
    states = [load_file(models.root / n / "model.safetensors") for n in ("base", "a", "b")]
    family = Family(states[0], states[1:], frozenset(states[0]))
    grams = {}
    for name, state in zip("ab", states[1:], strict=True):
        live.module.load_state_dict(state)
        batches = list(Feeder(given[name], live, Reading(), False))
        for path, found in output_grams(live, batches, family, "block").items():
            grams.setdefault(path, []).append(found.gram)
    assert len(grams) == 4
    for each in grams.values():
        best = left_over(each, fitted(each))[0]
        assert best < left_over(each, [0.5, 0.5])[0] and best < left_over(each, [1, 1])[0]


def test_inputs_of_the_base_give_other_weights(recipe, given):
    document = recipe("task_arithmetic", each={"weight": 1})
    own = guide(document, "slta", data=given)
    base = guide(document, "slta", data=given, inputs="base")
    assert weights(own, 0) != weights(base, 0)


def test_excluded_tensors_have_no_weight_and_do_not_count(recipe, given):
    document = recipe("task_arithmetic", each={"weight": 1}, exclude=["*.mlp.*"])
    made = guide(document, "slta", data=given)
    text = yaml.safe_load(made.text)["models"][0]["parameters"]["weight"]
    assert not any("mlp" in str(one.get("filter")) for one in text)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"method": "ties"}, "`normalize` would divide"),
        ({"method": "model_stock", "each": {}}, "does not take"),
    ],
)
def test_recipes_that_would_undo_the_weights_are_refused(recipe, given, document, words):
    with pytest.raises(GuideError, match=words):
        guide(recipe(**document), "slta", data=given)


def test_weights_of_single_tensors_are_not_overwritten(recipe, given):
    each = {"weight": [{"filter": "mlp", "value": 0.2}, {"value": 0.4}]}
    with pytest.raises(RecipeError, match="differs between tensors already"):
        guide(recipe("task_arithmetic", each=each), "slta", data=given)


def test_no_data_is_told(recipe, given):
    document = recipe("task_arithmetic", each={"weight": 1})
    with pytest.raises(GuideError, match="no data for"):
        guide(document, "slta", data={"a": given["a"]})
    with pytest.raises(DataError, match="no records"):
        guide(document, "slta", data={"a": given["a"], "b": Data([])})


def test_gpt2_and_a_classifier(tmp_path, given):
    """Other names, other layouts, and layers that return several things."""
    from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

    small = {"vocab_size": 259, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
    kinds = {
        "gpt2": lambda: GPT2LMHeadModel(
            GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=259, n_positions=64)
        ),
        "bert": lambda: BertForSequenceClassification(BertConfig(intermediate_size=24, **small)),
    }
    for kind, make in kinds.items():
        for name, seed in (("base", None), ("a", 1), ("b", 2)):
            torch.manual_seed(0)
            module = make()
            if seed:
                nudge(module, seed)
            save(module, tmp_path / kind / name)
        document = {
            "merge_method": "task_arithmetic",
            "base_model": str(tmp_path / kind / "base"),
            "models": [
                {"model": str(tmp_path / kind / name), "parameters": {"weight": 1}} for name in "ab"
            ],
        }
        made = guide(document, "slta", data=given)
        parts = {part for row in made.maps[0].values.values() for part in row}
        assert (
            parts
            == {"gpt2": {"attn", "mlp"}, "bert": {"attention", "intermediate", "output"}}[kind]
        )
        assert len(set(weights(made, 0).values())) > 3
