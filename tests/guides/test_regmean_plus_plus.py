"""RegMean++: the walk against plain loops, against RegMean, and against the merge of its recipe."""

import pytest
import torch
import transformers
from _guided_models import nudge, save
from safetensors.torch import load_file
from small_language import random_llama

import mergewise.evidence
from mergewise.engine import merge
from mergewise.errors import DataError, GuideError
from mergewise.evidence import Data, collect, load_evidence
from mergewise.guides import guide, write_recipe
from mergewise.plan import build_plan

TEXTS = {
    "a": ["a rose is a rose", "by any other name", "would smell as sweet"],
    "b": ["1 + 1 = 2", "2 + 2 = 4 and 4 + 4 = 8"],
}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 259, "n_positions": 32}
BERT = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "vocab_size": 259, "max_position_embeddings": 64,
}  # fmt: skip
SMALL = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 259,
}  # fmt: skip


def llama():
    return random_llama(0).module


def gpt2():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2))


def bert():
    return transformers.BertForSequenceClassification(transformers.BertConfig(**BERT))


def mixtral():
    config = transformers.MixtralConfig(**SMALL, num_local_experts=4, initializer_range=0.3)
    return transformers.MixtralForCausalLM(config)


def made(root, make, change=nudge):
    for seed, name in enumerate("ab", start=1):
        torch.manual_seed(0)
        module = make()
        change(module, seed)
        save(module, root / name)
    return root


@pytest.fixture(scope="module")
def llamas(tmp_path_factory):
    return made(tmp_path_factory.mktemp("llamas"), llama)


def recipe(root, method="regmean", experts="ab", **parts):
    return {
        "merge_method": method,
        "models": [{"model": str(root / name)} for name in experts],
        **parts,
    }


def data():
    return {name: Data(texts) for name, texts in TEXTS.items()}


def guided(root, folder, given=None, **options):
    return guide(
        recipe(root) if given is None else given, "regmean_plus_plus", data=data(), folder=folder,
        options=options,
    )  # fmt: skip


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("make", [llama, gpt2, bert, mixtral])
def test_the_recipe_merges_to_the_weights_of_the_walk(tmp_path, monkeypatch, make):
    """Also with weights stored the other way round, square ones among them, and a mixture."""
    root, opened = made(tmp_path, make), []

    def watched(*args, **options):
        opened.append(real(*args, **options))
        return opened[-1]

    real = mergewise.evidence.open_model
    monkeypatch.setattr(mergewise.evidence, "open_model", watched)
    given = recipe(root, parameters={"off_diagonal": 0.8})
    given["models"][0]["parameters"] = {"weight": 2.0}
    found = guided(root, root / "kept", given, batch_size=2)
    merge(found.recipe, root / "out")
    [model] = opened
    model.module.save_pretrained(root / "walked")
    walked, merged = weights(root / "walked"), weights(root / "out")
    assert walked.keys() == merged.keys()
    for name, value in walked.items():
        assert torch.allclose(value, merged[name], atol=1e-5), name


def solved(models, grams, off_diagonal=0.9, ridge=1e-6):
    """RegMean of [out, in], straight from its formula."""
    shrunk = [g * off_diagonal + (1 - off_diagonal) * torch.diag(g.diagonal()) for g in grams]
    mean = sum(models) / len(models)
    whole = sum(shrunk)
    whole = whole + ridge * whole.diagonal().mean() * torch.eye(len(whole), dtype=whole.dtype)
    return mean + sum((w - mean) @ g for w, g in zip(models, shrunk, strict=True)) @ whole.inverse()


def plain_walk(root):
    """Merged weights of a Llama by loops, in float64, one text at a time."""
    experts = [random_llama(0).module.double() for _ in "ab"]
    for module, name in zip(experts, "ab", strict=True):
        module.load_state_dict(weights(root / name))
    merged = random_llama(0).module.double()
    means = [sum(p) / 2 for p in zip(*(e.parameters() for e in experts), strict=True)]
    with torch.no_grad():
        for target, mean in zip(merged.parameters(), means, strict=True):
            target.copy_(mean)
    tokenizer = random_llama(0).tokenizer
    ids = [[tokenizer(t, return_tensors="pt")["input_ids"] for t in TEXTS[n]] for n in "ab"]
    layers = [*((f"model.layers.{i}", f"model.layers.{i}") for i in range(2)), ("lm_head", "model")]
    for path, _ in layers:
        target = merged.get_submodule(path)
        parts = [n for n, m in target.named_modules() if isinstance(m, torch.nn.Linear)]
        grams = [
            grams_of(merged, path, parts, expert.get_submodule(path).state_dict(), own)
            for expert, own in zip(experts, ids, strict=True)
        ]
        for part in parts:
            full = ".".join(filter(None, (path, part)))
            each = [e.get_submodule(full).weight for e in experts]
            with torch.no_grad():
                merged.get_submodule(full).weight.copy_(solved(each, [g[part] for g in grams]))
    return merged.state_dict()


def grams_of(merged, path, parts, own, texts):
    """Per token, with `own` weights in one module of the merged model."""
    target = merged.get_submodule(path)
    kept = {name: value.clone() for name, value in target.state_dict().items()}
    target.load_state_dict(own)
    found = dict.fromkeys(parts, 0)

    def add(part):
        def hook(module, args, output):
            found[part] = found[part] + args[0][0].T @ args[0][0]

        return hook

    handles = [target.get_submodule(p).register_forward_hook(add(p)) for p in parts]
    with torch.no_grad():
        for ids in texts:
            merged(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    target.load_state_dict(kept)
    tokens = sum(ids.shape[1] for ids in texts)
    return {part: gram / tokens for part, gram in found.items()}


def test_the_walk_against_plain_loops(tmp_path, llamas):
    wanted = plain_walk(llamas)
    merge(guided(llamas, tmp_path / "kept").recipe, tmp_path / "out")
    merged = weights(tmp_path / "out")
    assert wanted.keys() == merged.keys()
    for name, value in merged.items():
        assert torch.allclose(value.double(), wanted[name], atol=2e-4), name


def test_identical_models_stay_what_they_are(tmp_path):
    root = made(tmp_path, llama, lambda module, seed: nudge(module, 1))
    merge(guided(root, root / "kept").recipe, root / "out")
    own, merged = weights(root / "a"), weights(root / "out")
    assert all(torch.allclose(own[name], merged[name], atol=1e-6) for name in own)


def only_layers(module, seed):
    nudge(module.model.layers, seed)


def regmean(root, folder):
    folder.mkdir()
    given = recipe(root)
    for model in given["models"]:
        name = model["model"][-1]
        file = collect("input_gram", model["model"], TEXTS[name], folder / f"{name}.evd").path
        model["evidence"] = str(file)
    merge(given, folder / "out")
    return weights(folder / "out")


def test_the_first_layer_is_regmeans_and_the_second_is_not(tmp_path):
    """With equal embeddings both see the same inputs there."""
    root = made(tmp_path, llama, only_layers)
    merge(guided(root, root / "kept").recipe, root / "out")
    plain, merged = regmean(root, root / "plain"), weights(root / "out")
    for part in ("self_attn.q_proj", "mlp.down_proj"):
        names = [f"model.layers.{layer}.{part}.weight" for layer in range(2)]
        assert torch.allclose(plain[names[0]], merged[names[0]], atol=1e-6)
        assert not torch.allclose(plain[names[1]], merged[names[1]], atol=1e-4)


def test_files_say_what_they_are_and_are_taken_again(tmp_path, llamas):
    lines = []

    def run(**changes):
        given = {"data": Data(tmp_path / "texts.jsonl"), "told": lines.append} | changes
        return write_recipe(recipe(llamas), "regmean_plus_plus", tmp_path / "out.yml", **given)

    (tmp_path / "texts.jsonl").write_text('{"text": "a rose is a rose"}\n{"text": "1 + 1"}\n')
    first = run()
    files = [model["evidence"] for model in models_of(first)]
    assert all(name.startswith("out.evidence/") for name in files)
    known = load_evidence(tmp_path / files[0])
    assert known.record.statistics["input_gram"].options["propagation"] == "merged"
    assert known.record.model["name"].endswith("a") and known.record.parts[0]["records"] == 2
    described = known.tensors("input_gram")
    assert "lm_head.weight" in described and "model.embed_tokens.weight" not in described
    assert len([line for line in lines if line.startswith("layer")]) == 3
    lines.clear()
    assert run().text == first.text
    assert lines == [f"input_gram behind merged layers: taken from {tmp_path / 'out.evidence'}"]
    (tmp_path / "texts.jsonl").write_text('{"text": "a rose is no rose"}\n')
    assert [model["evidence"] for model in models_of(run())] != files


def models_of(found):
    import yaml

    return yaml.safe_load(found.text)["models"]


def test_what_lies_before_the_layers_is_the_mean(tmp_path, llamas):
    merge(guided(llamas, tmp_path / "kept").recipe, tmp_path / "out")
    a, b, out = (weights(folder) for folder in (llamas / "a", llamas / "b", tmp_path / "out"))
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        assert torch.allclose(out[name], (a[name] + b[name]) / 2, atol=1e-6)


def test_wide_matrices_may_be_left_to_the_mean(tmp_path, llamas):
    found = guide(recipe(llamas), "regmean_plus_plus", data=data(), folder=tmp_path,
                  max_channels=32)  # fmt: skip
    tensors = build_plan(found.recipe).output.tensors
    assert not tensors["model.layers.0.mlp.down_proj.weight"].statistics
    assert tensors["model.layers.0.mlp.up_proj.weight"].statistics


def test_what_cannot_be_done_is_named_before_work(tmp_path, llamas):
    with pytest.raises(GuideError, match=r"for .*regmean.*, not for linear"):
        guided(llamas, tmp_path, recipe(llamas, "linear", parameters={"weight": 1}))
    with pytest.raises(GuideError, match="remove `base_model`"):
        guided(llamas, tmp_path, recipe(llamas, base_model=str(llamas / "a")))
    with pytest.raises(GuideError, match="leave out `offload`"):
        guided(llamas, tmp_path, offload=True)
    with pytest.raises(GuideError, match=r"no data for .*b"):
        guide(recipe(llamas), "regmean_plus_plus", data={"a": Data(TEXTS["a"])}, folder=tmp_path)
    with pytest.raises(DataError, match="no records"):
        empty = {"a": Data(TEXTS["a"]), "b": Data([])}
        guide(recipe(llamas), "regmean_plus_plus", data=empty, folder=tmp_path)
    with pytest.raises(DataError, match="has no text"):
        wrong = {"a": Data([{"txt": "a"}]), "b": Data(TEXTS["b"])}
        guide(recipe(llamas), "regmean_plus_plus", data=wrong, folder=tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
