"""SLTA by attention head: which rows and columns are whose, weights by head, files and merges."""

import shutil

import pytest
import torch
import yaml
from _guided_models import nudge
from safetensors.torch import load_file, save_file
from small_language import random_llama

import mergewise
from mergewise.errors import EvidenceError, GuideError
from mergewise.evidence import Data, LiveModel, collect, load_evidence
from mergewise.evidence._inputs import Feeder, Reading
from mergewise.guides import guide, write_recipe
from mergewise.guides._outputs._linearity import fitted, output_grams
from mergewise.guides._outputs._submodule import Family
from mergewise.plan import build_plan

TEXTS = {"a": ["a rose is a rose", "by any other name", "would smell"], "b": ["1 + 1 = 2", "4 + 4"]}
SIZES = {
    "vocab_size": 259, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip


class Attention(torch.nn.Module):
    """Two heads of one channel each."""

    num_heads = 2

    def __init__(self):
        super().__init__()
        for name in ("q", "k", "v", "o"):
            setattr(self, name, torch.nn.Linear(2, 2, bias=False))

    def forward(self, x):
        q, k, v = (getattr(self, name)(x).unsqueeze(-1).movedim(-2, 1) for name in "qkv")
        z = (q @ k.mT).softmax(-1) @ v
        return self.o(z.movedim(1, -2).flatten(2))


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = Attention()
        self.up = torch.nn.Linear(2, 2, bias=False)

    def forward(self, x):
        return self.up(self.attention(x))


class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([Layer()])

    def forward(self, input):
        for layer in self.layers:
            input = layer(input)
        return input


def test_two_heads_by_hand():
    """One position, so that a head gives its value; o is the identity, and the base's v is 0."""
    module = Tiny()
    base = {n: torch.eye(2) for n in module.state_dict()}
    v = "layers.0.attention.v.weight"
    base[v] = torch.zeros(2, 2)
    # head 1: d_1 = x_1 and d_2 = 3 x_1; head 2: d_1 = x_2 and d_2 = 0
    experts = [{**base, v: torch.diag(torch.tensor(d))} for d in ([1.0, 1.0], [3.0, 0.0])]
    family = Family(base, experts, frozenset([v]))
    x = torch.tensor([[[1.0, 2.0]], [[1.0, -2.0]]])
    module.load_state_dict(base)
    live = LiveModel("tiny", module)
    batches = list(Feeder(Data([{"input": x}]), live, Reading(), False))
    found = output_grams(live, batches, family, "head")
    assert list(found) == ["layers.0.attention.head0", "layers.0.attention.head1"]
    one, two = found.values()
    assert one.gram.tolist() == [[1, 3], [3, 9]] and two.gram.tolist() == [[4, 0], [0, 0]]
    assert (one.group, two.group) == (0, 1) and one.tensors == two.tensors == (v,)
    axis, groups = one.places[v]
    assert axis == 0 and groups.tolist() == [0, 1]
    # the same data for both tasks: the shortest solution of a_1 + 3 a_2 = 2, and a_1 = 1/2
    assert fitted([one.gram] * 2) == pytest.approx([0.2, 0.6])
    assert fitted([two.gram] * 2) == pytest.approx([0.5, 0.0])


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2))


def phi3():
    from transformers import Phi3Config, Phi3ForCausalLM

    return Phi3ForCausalLM(Phi3Config(**SIZES, num_key_value_heads=2))


def qwen3():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8))


def neox():
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES))


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(n_embd=16, n_layer=1, n_head=4, vocab_size=259, n_positions=64)
    )


def bert():
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(**SIZES))


def t5():
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=259, d_model=16, d_kv=4, num_heads=4, d_ff=24, num_layers=1)
    )


def runs(count, each):
    return [i for i in range(count) for _ in range(each)]


# by a part of the tensor's name: axis, and the group of every index along it
LAYOUTS = {
    "llama": (llama, 2, {"q_proj": (0, runs(2, 8)), "k_proj": (0, runs(2, 4)),
                         "v_proj": (0, runs(2, 4)), "o_proj": (1, runs(2, 8))}),
    # queries, keys, values behind one another
    "phi3": (phi3, 2, {"qkv_proj": (0, runs(2, 8) + runs(2, 4) * 2), "o_proj": (1, runs(2, 8))}),
    "qwen3": (qwen3, 2, {"q_proj": (0, runs(2, 16)), "k_proj": (0, runs(2, 8)),
                         "v_proj": (0, runs(2, 8)), "o_proj": (1, runs(2, 16))}),
    # every head's query, key and value together
    "neox": (neox, 4, {"query_key_value.weight": (0, runs(4, 12)),
                       "query_key_value.bias": (0, runs(4, 12)),
                       "dense.weight": (1, runs(4, 4))}),
    # stored [inputs, outputs]
    "gpt2": (gpt2, 4, {"c_attn.weight": (1, runs(4, 4) * 3), "c_attn.bias": (0, runs(4, 4) * 3),
                       "attn.c_proj.weight": (0, runs(4, 4))}),
    "bert": (bert, 4, {f"self.{n}": (0, runs(4, 4)) for n in ("query", "key", "value")}
             | {"attention.output.dense.weight": (1, runs(4, 4))}),
}  # fmt: skip
RESTS = {
    "llama": set(), "phi3": set(), "qwen3": {"q_norm.weight", "k_norm.weight"},
    "neox": {"dense.bias"}, "gpt2": {"attn.c_proj.bias"},
    "bert": {"output.dense.bias", "LayerNorm.weight", "LayerNorm.bias"},
}  # fmt: skip


def measured(make, texts=TEXTS["a"], tensors=None):
    torch.manual_seed(0)
    module = make().eval()
    base = {n: t.clone() for n, t in module.state_dict().items()}
    experts = []
    for seed in (1, 2):
        torch.manual_seed(0)
        other = make()
        nudge(other, seed)
        experts.append(other.state_dict())
    live = LiveModel("m", module, random_llama(0).tokenizer)
    family = Family(base, experts, frozenset(base))
    batches = list(Feeder(Data([{"text": t} for t in texts]), live, Reading(), False))
    return {g: output_grams(live, batches, family, g) for g in ("block", "head")}, module, family


@pytest.mark.parametrize("name", LAYOUTS)
def test_which_rows_and_columns_are_whose(name):
    make, count, wanted = LAYOUTS[name]
    found, _, _ = measured(make)
    heads = {path: one for path, one in found["head"].items() if one.group is not None}
    assert [one.group for one in heads.values()] == list(range(count))
    places = next(iter(heads.values())).places
    got = {
        key: [(axis, groups.tolist()) for n, (axis, groups) in places.items() if key in n]
        for key in wanted
    }
    for key, place in wanted.items():
        assert got[key] and all(one == place for one in got[key]), key
    assert len(places) == sum(map(len, got.values()))
    rest = next((one.tensors for path, one in found["head"].items() if path.endswith("rest")), ())
    assert {next(e for e in RESTS[name] if t.endswith(e)) for t in rest} == RESTS[name]
    # other blocks are as they were
    for path, one in found["block"].items():
        if path in found["head"]:
            assert torch.allclose(found["head"][path].gram, one.gram)


@pytest.mark.parametrize("name", ["llama", "phi3", "gpt2", "neox"])
def test_heads_outputs_add_up_to_the_blocks(name):
    """Measured with the model's own modules: only one group's weights are the expert's."""
    make = LAYOUTS[name][0]
    found, module, family = measured(make, TEXTS["a"][:1])
    state = dict(family.base)
    heads = [one for one in found["head"].values() if one.group is not None]
    block = next(path for path in found["head"] if path.endswith("head0")).rpartition(".")[0]
    outputs = []
    handle = module.get_submodule(block).register_forward_hook(
        lambda _m, _a, out: outputs.append(out[0] if isinstance(out, tuple) else out)
    )
    ids = torch.tensor([random_llama(0).tokenizer(TEXTS["a"][0])["input_ids"]])

    def run(weights):
        module.load_state_dict(weights)
        with torch.no_grad():
            module(input_ids=ids)
        return outputs[-1][0]

    plain = run(state)
    for one in heads:
        changed = dict(state)
        for tensor, (axis, groups) in one.places.items():
            chosen = (groups == one.group).reshape([-1 if i == axis else 1 for i in
                                                    range(state[tensor].dim())])  # fmt: skip
            changed[tensor] = torch.where(chosen, family.experts[0][tensor], state[tensor])
        d = (run(changed) - plain).double()
        assert float(one.gram[0, 0]) == pytest.approx(float((d * d).sum()) / len(d), rel=1e-3)
    handle.remove()


def test_an_mlp_and_heads_that_share_all_keys_are_whole():
    from transformers import LlamaConfig, LlamaForCausalLM

    def shared():
        return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=1))

    found, _, _ = measured(shared)
    assert found["head"].keys() == found["block"].keys()


def test_t5s_lists_of_blocks_are_walked():
    found, _, _ = measured(t5)
    assert any("head3" in path for path in found["head"])
    assert all(float(one.gram.abs().sum()) > 0 for one in found["block"].values())


@pytest.fixture
def given():
    return {name: Data([{"text": text} for text in texts]) for name, texts in TEXTS.items()}


def test_the_merge_is_what_the_files_say(recipe, given, models, tmp_path):
    document = recipe("task_arithmetic", each={"weight": 1})
    out = tmp_path / "guided.yml"
    made = write_recipe(
        document, "slta", out, each=given, settings={"granularity": "head"}, told=None
    )
    mergewise.merge(out, tmp_path / "out", device="cpu")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    written = yaml.safe_load(out.read_text())
    assert written["parameters"] == {"factors": True}
    files = [load_evidence(tmp_path / m["evidence"]) for m in written["models"]]
    states = {n: load_file(models.root / n / "model.safetensors") for n in ("base", "a", "b")}
    plan = build_plan(made.recipe).output.tensors
    kinds = set()
    for name, base in states["base"].items():
        wanted = base.double()
        for i, expert in enumerate("ab"):
            weight = plan[name].values["weight"][i]
            if name in files[i].tensors("factor"):
                factor = files[i].sums("factor", name)["factor"]
                kinds.add((name.split(".")[-2], tuple(factor.shape)))
                assert weight == 1.0
                weight = factor.double()
            wanted = wanted + weight * (states[expert][name].double() - base.double())
        assert torch.allclose(merged[name].double(), wanted, atol=1e-6), name
    assert kinds == {("q_proj", (32, 1)), ("k_proj", (16, 1)), ("v_proj", (16, 1)),
                     ("o_proj", (1, 32))}  # fmt: skip
    assert {"self_attn.head0", "self_attn.head1", "mlp"} == made.maps[0].values[
        "model.layers.0"].keys()  # fmt: skip


def test_the_recipe_and_its_files_alone_give_the_same_bytes_wherever_they_lie(
    recipe, given, tmp_path
):
    (tmp_path / "here").mkdir()
    (tmp_path / "a.jsonl").write_text('{"text": "a rose"}\n')
    document = recipe("task_arithmetic", each={"weight": 1})
    data = str(tmp_path / "a.jsonl")
    write_recipe(
        document, "slta", tmp_path / "here" / "guided.yml", data=data,
        settings={"granularity": "head"},
    )  # fmt: skip
    mergewise.merge(tmp_path / "here" / "guided.yml", tmp_path / "one", device="cpu")
    shutil.move(tmp_path / "here", tmp_path / "there")
    mergewise.merge(tmp_path / "there" / "guided.yml", tmp_path / "two", device="cpu")
    keyed = {**document, "guide": {"name": "slta", "granularity": "head", "data": data}}
    mergewise.merge(keyed, tmp_path / "three", device="cpu")
    mergewise.merge(tmp_path / "three.evidence" / "recipe.yml", tmp_path / "four", device="cpu")
    one, *others = (
        (tmp_path / name / "model.safetensors").read_bytes()
        for name in ("one", "two", "three", "four")
    )
    assert all(other == one for other in others)


def test_a_single_expert_and_one_twice_are_given_back(recipe, given, models, tmp_path):
    single = recipe("task_arithmetic", experts="a", each={"weight": 0.3})
    shutil.copytree(models.root / "a", tmp_path / "b")
    twice = recipe("task_arithmetic", each={"weight": 1})
    twice["models"][1]["model"] = str(tmp_path / "b")
    own = load_file(models.root / "a" / "model.safetensors")
    for place, document in (("single", single), ("twice", twice)):
        (tmp_path / place).mkdir()
        data = {n: given[n] for n in ("ab" if place == "twice" else "a")}
        made = write_recipe(
            document, "slta", tmp_path / place / "r.yml", each=data,
            settings={"granularity": "head"},
        )  # fmt: skip
        mergewise.merge(made.recipe, tmp_path / place / "out", device="cpu")
        merged = load_file(tmp_path / place / "out" / "model.safetensors")
        assert all(torch.allclose(merged[n], own[n], atol=1e-5) for n in own), place


def test_equal_weights_of_all_heads_are_the_block(recipe, given, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "mergewise.guides._outputs._linearity.fitted", lambda grams, ridge: [0.3, 0.7]
    )
    document = recipe("task_arithmetic", each={"weight": 1})
    outs = []
    for granularity in ("head", "block"):
        file = tmp_path / f"{granularity}.yml"
        write_recipe(document, "slta", file, each=given, settings={"granularity": granularity})
        mergewise.merge(file, tmp_path / granularity, device="cpu")
        outs.append(load_file(tmp_path / granularity / "model.safetensors"))
    assert all(torch.allclose(outs[0][n], outs[1][n], atol=1e-6) for n in outs[0])


def test_any_method_of_task_vectors_reads_factors(recipe, given, tmp_path):
    document = recipe("ties", parameters={"normalize": False, "lambda": 1.0})
    write_recipe(document, "slta", tmp_path / "r.yml", each=given, settings={"granularity": "head"})
    mergewise.merge(tmp_path / "r.yml", tmp_path / "out", device="cpu")
    plain = yaml.safe_load((tmp_path / "r.yml").read_text())
    plain["parameters"]["factors"] = False
    for model in plain["models"]:
        model["evidence"] = str(tmp_path / model["evidence"])
    mergewise.merge(plain, tmp_path / "plain", device="cpu")
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in ("out", "plain"))
    assert {n for n in one if not torch.equal(one[n], two[n])} == {
        n for n in one if "self_attn" in n
    }


def test_what_cannot_be_by_head_is_refused_before_any_work(recipe, given, tmp_path):
    ties = recipe("ties", parameters={"normalize": False, "score": "fisher"})
    for model in ties["models"]:
        model["evidence"] = str(tmp_path / "absent")
    document = recipe("task_arithmetic", each={"weight": 1})
    with pytest.raises(GuideError, match="say where, with folder="):
        guide(document, "slta", data=given, granularity="head")
    sce = recipe("ties", parameters={"normalize": True})
    with pytest.raises(GuideError, match="normalize"):
        guide(sce, "slta", data=given, granularity="head", folder=tmp_path)
    with pytest.raises(GuideError, match="does not read"):
        guide(recipe("multislerp", each={"weight": 1}), "slta", data=given, granularity="head")


def test_factors_of_ones_own(models, tmp_path):
    expert, name = models.root / "a", "model.layers.0.self_attn.o_proj.weight"
    factor = torch.linspace(-1, 1, 32)[None, :]
    save_file({name: factor}, tmp_path / "mine.safetensors")
    found = collect("factor", expert, tmp_path / "mine.safetensors", tmp_path / "f.safetensors")
    assert torch.equal(found.sums("factor", name)["factor"], factor)
    recipe = {
        "merge_method": "task_arithmetic", "base_model": str(models.root / "base"),
        "models": [{"model": str(expert), "parameters": {"weight": 0.5},
                    "evidence": str(tmp_path / "f.safetensors")}],
        "parameters": {"factors": True},
    }  # fmt: skip
    mergewise.merge(recipe, tmp_path / "out", device="cpu")
    merged, base, own = (
        load_file(folder / "model.safetensors")
        for folder in (tmp_path / "out", models.root / "base", expert)
    )
    for key, value in merged.items():
        weight = 0.5 * factor if key == name else 0.5
        assert torch.allclose(value, base[key] + weight * (own[key] - base[key]), atol=1e-6), key
    for bad, words in (
        ({"nothing": factor}, "is no tensor"), ({name: factor[:, :3]}, "expected"),
        ({name: factor / 0}, "no finite"), ({name: factor.int()}, "no finite"),
    ):  # fmt: skip
        save_file({n: t.contiguous() for n, t in bad.items()}, tmp_path / "bad.safetensors")
        with pytest.raises(EvidenceError, match=words):
            collect("factor", expert, tmp_path / "bad.safetensors", tmp_path / "g.safetensors")
