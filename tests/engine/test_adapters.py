"""A base with an adapter, merged: the same numbers as if it had been computed at once."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_adapters import dense, lora, write
from small_models import (
    State,
    assert_same,
    llama_config,
    llama_shapes,
    load,
    near,
    random_state,
    recipe,
    save,
)

import mergewise
from mergewise.checkpoint import (
    ChangedRef,
    ChangeValues,
    FileReader,
    TensorRef,
    _change_values,
    adapt,
    fingerprint,
    open_adapter,
    open_checkpoint,
    open_reference,
)
from mergewise.engine._budget import estimate
from mergewise.errors import CheckpointError, MergewiseError, NonFiniteError
from mergewise.plan import build_plan, tensor_dict

Q = "model.layers.0.self_attn.q_proj"
DOWN = "model.layers.1.mlp.down_proj"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    shapes = llama_shapes()
    state = random_state(shapes, 0, torch.float32)
    return save(tmp_path / "base", state, llama_config(shapes, torch_dtype="float32"))


def alone(base: Path, adapter: Path, out: Path, **more: Any) -> State:
    """The base with the adapter, written."""
    model = {"model": f"{base}+{adapter}", "parameters": {"weight": 1}}
    mergewise.merge({"merge_method": "linear", "models": [model], **more}, out, device="cpu")
    return load(out)


def assert_near(found: State, wanted: State, tolerance: float = 2e-6) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        assert torch.allclose(tensor.double(), wanted[name], rtol=1e-5, atol=tolerance), name


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 5},
        "alpha_pattern": {r".*layers\.1.*": 11.5, Q: -3},
    },
    "dora": {"use_dora": True},
    "bfloat16": {"dtype": torch.bfloat16},
    "rank one": {"rank": 1, "alpha": 0.3},
    "head": {"modules": [Q, "lm_head"]},
    "embedding": {"embedded": ["model.embed_tokens"]},
    "embedding dora": {"embedded": ["model.embed_tokens"], "use_dora": True},
    "whole": {"whole": {"model.norm.weight": torch.full((16,), 2.0)}, "bias": "all"},
    "whole and changed": {
        "whole": {f"{Q}.base_layer.weight": torch.full((16, 16), 0.5)},
    },
}


@pytest.mark.parametrize("case", CASES)
def test_a_base_with_an_adapter(case: str, base: Path, tmp_path: Path) -> None:
    options = {"modules": [Q, DOWN], **CASES[case]}
    adapter = lora(tmp_path / "adapter", load(base), **options)
    wanted = dense(load(base), adapter)
    assert any(not torch.equal(wanted[n], t.double()) for n, t in load(base).items())
    assert_near(alone(base, adapter, tmp_path / "out"), wanted)


@pytest.mark.parametrize("dora", [False, True])
def test_weights_stored_inputs_first(dora: bool, tmp_path: Path) -> None:
    """As GPT-2's Conv1D: also where the config, wrong for some modules, says the contrary."""
    shapes = {
        "h.0.attn.c_attn.weight": (16, 48),
        "h.0.attn.c_attn.bias": (48,),
        "h.0.attn.c_proj.weight": (16, 16),
        "h.0.attn.c_proj.bias": (16,),
    }
    state = random_state(shapes, 0, torch.float32)
    base = save(tmp_path / "base", state)
    modules = ["h.0.attn.c_attn", "h.0.attn.c_proj"]
    adapter = lora(tmp_path / "adapter", state, modules, turned=True, use_dora=dora)
    wanted = dense(state, adapter)
    assert_near(alone(base, adapter, tmp_path / "out"), wanted)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"fan_in_fan_out": False}))
    assert_near(alone(base, adapter, tmp_path / "again"), wanted)


def test_convolutions_and_biases(tmp_path: Path) -> None:
    state = random_state({"conv.weight": (6, 4, 3, 3), "conv.bias": (6,)}, 0, torch.float32)
    base = save(tmp_path / "base", state)
    adapter = lora(tmp_path / "adapter", state, ["conv"], use_dora=True)
    assert_near(alone(base, adapter, tmp_path / "out"), dense(state, adapter))
    shifted = lora(tmp_path / "shifted", state, ["conv"], lora_bias=True)
    found = load(shifted) | {"base_model.model.conv.lora_B.bias": torch.arange(6.0)}
    write(shifted, found, json.loads((shifted / "adapter_config.json").read_text()))
    wanted = dense(state, shifted)
    assert torch.allclose(wanted["conv.bias"], state["conv.bias"].double() + 2 * torch.arange(6.0))
    assert_near(alone(base, shifted, tmp_path / "too"), wanted)


def test_ia3(base: Path, tmp_path: Path) -> None:
    """Outputs are scaled, and the inputs of feed-forward modules."""
    k = "model.layers.0.self_attn.k_proj"
    outputs, inputs = torch.rand(8, 1) + 0.5, torch.rand(1, 24) + 0.5
    adapter = write(
        tmp_path / "adapter",
        {f"base_model.model.{k}.ia3_l": outputs, f"base_model.model.{DOWN}.ia3_l": inputs},
        {"peft_type": "IA3", "target_modules": ["k_proj"], "feedforward_modules": ["down_proj"]},
    )
    wanted = {n: t.double() for n, t in load(base).items()}
    wanted[f"{k}.weight"] *= outputs
    wanted[f"{DOWN}.weight"] *= inputs
    assert_near(alone(base, adapter, tmp_path / "out"), wanted)


def test_experts_of_one_base(base: Path, tmp_path: Path) -> None:
    """TIES of four adapters is TIES of the four models that they make."""
    state = load(base)
    adapted, whole = [], []
    for i in range(4):
        adapter = lora(tmp_path / f"adapter_{i}", state, [Q, DOWN], seed=i)
        made = {n: t.float() for n, t in dense(state, adapter).items()}
        whole.append(str(save(tmp_path / f"whole_{i}", made)))
        adapted.append(f"{base}+{adapter}")
    results = []
    for models in (adapted, whole):
        document = {
            "merge_method": "ties",
            "base_model": str(base),
            "models": [{"model": m, "parameters": {"weight": 0.5}} for m in models],
            "parameters": {"density": 0.4},
        }
        out = tmp_path / f"out_{len(results)}"
        mergewise.merge(document, out, device="cpu", workers=3)
        results.append(load(out))
    assert_near(results[0], {n: t.double() for n, t in results[1].items()})


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_beside_models_that_are_not_of_the_base(
    order: tuple[int, int], base: Path, tmp_path: Path
) -> None:
    """Blocks of several inputs live at once, each in memory of its own."""
    state = load(base)
    adapters = [lora(tmp_path / str(i), state, [Q, DOWN], seed=i) for i in range(2)]
    strange = random_state(llama_shapes(), 7, torch.float32)
    other = save(tmp_path / "other", strange, llama_config(llama_shapes()))
    adapted = [f"{base}+{adapter}" for adapter in adapters]
    names = [[str(other), *adapted], [*adapted, str(other)]][order[0]]
    weights = [[2, 3, 5], [3, 5, 2]][order[0]]
    document = {
        "merge_method": "linear",
        "models": [
            {"model": name, "parameters": {"weight": w}}
            for name, w in zip(names, weights, strict=True)
        ],
        "parameters": {"normalize": False},
    }
    mergewise.merge(document, tmp_path / "out", device="cpu", workers=2)
    one, two = (dense(state, adapter) for adapter in adapters)
    wanted = {n: 2 * t.double() + 3 * one[n] + 5 * two[n] for n, t in strange.items()}
    assert_near(load(tmp_path / "out"), wanted)


def test_the_sum_is_rounded_once(tmp_path: Path) -> None:
    """A change smaller than the base's own precision survives where the output has room."""
    state = {"a.weight": torch.ones(2, 2, dtype=torch.bfloat16)}
    base = save(tmp_path / "base", state)
    tiny = {"a.lora_A.weight": torch.full((1, 2), 1e-4), "a.lora_B.weight": torch.ones(2, 1)}
    adapter = write(tmp_path / "adapter", tiny, {"peft_type": "LORA", "r": 1, "lora_alpha": 1})
    found = alone(base, adapter, tmp_path / "out", out_dtype="float32")
    assert torch.equal(found["a.weight"], torch.full((2, 2), 1 + 1e-4))
    assert alone(base, adapter, tmp_path / "same")["a.weight"].dtype == torch.bfloat16


def test_a_plus_in_a_name_takes_the_long_form(base: Path, tmp_path: Path) -> None:
    renamed = base.rename(tmp_path / "my+base")
    adapter = lora(tmp_path / "an+adapter", load(renamed), [Q])
    model = {"model": {"path": str(renamed)}, "lora": {"path": str(adapter)}}
    given = {"merge_method": "linear", "models": [{"model": model, "parameters": {"weight": 1}}]}
    mergewise.merge(given, tmp_path / "out", device="cpu")
    assert_near(load(tmp_path / "out"), dense(load(renamed), adapter))


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_a_dtype_rounds_adapters_as_it_rounds_models(kind: str, base: Path, tmp_path: Path) -> None:
    """With `dtype`, the merge is that of the dense models in this type, to the last bit."""
    state = load(base)
    models, whole = [], []
    for i in range(3):
        adapter = lora(tmp_path / f"adapter_{i}", state, [Q, DOWN], seed=i, use_dora=i == 1)
        alone(base, adapter, tmp_path / f"dense_{i}", dtype=kind)
        models.append(f"{base}+{adapter}")
        whole.append(str(tmp_path / f"dense_{i}"))
    for inputs, out in ((models, "lazy"), (whole, "dense")):
        given = {"weight": 0.4, "density": 0.5}
        each = [{"model": model, "parameters": given} for model in inputs]
        mergewise.merge(
            {"merge_method": "ties", "base_model": str(base), "models": each, "dtype": kind},
            tmp_path / out, device="cpu",
        )  # fmt: skip
    assert_same(load(tmp_path / "lazy"), load(tmp_path / "dense"))


@pytest.mark.parametrize(("kind", "words"), [
    ("float16", "recipe's `dtype`, float16, does not hold"), ("float32", "holds NaN or infinity"),
])  # fmt: skip
def test_numbers_that_the_dtype_does_not_hold(
    kind: str, words: str, base: Path, tmp_path: Path
) -> None:
    far = 7e4 if kind == "float16" else math.inf
    adapter = lora(tmp_path / "adapter", load(base), [Q], whole={f"{Q}.bias": torch.ones(1)})
    found = {n: t * 0 + 1 for n, t in load(adapter).items() if "lora" in n}
    found = {n: t * far if "lora_B" in n else t for n, t in found.items()}
    write(adapter, found, json.loads((adapter / "adapter_config.json").read_text()))
    with pytest.raises(NonFiniteError, match=words):
        alone(base, adapter, tmp_path / "out", dtype=kind)
    assert not (tmp_path / "out" / "config.json").exists()


def test_bytes_do_not_depend_on_workers(base: Path, tmp_path: Path) -> None:
    adapter = lora(tmp_path / "adapter", load(base), [Q, DOWN], use_dora=True)
    document = {
        "merge_method": "task_arithmetic",
        "base_model": str(base),
        "models": [{"model": f"{base}+{adapter}", "parameters": {"weight": 0.7}}],
    }
    for workers in (1, 4):
        mergewise.merge(document, tmp_path / str(workers), device="cpu", workers=workers)
    assert_same(load(tmp_path / "1"), load(tmp_path / "4"))


def test_a_stage_of_adapters_feeds_the_next(base: Path, tmp_path: Path) -> None:
    state = load(base)
    one = lora(tmp_path / "one", state, [Q], use_dora=True)
    other = save(tmp_path / "other", near(state, 1))
    first = {
        "name": "half", "merge_method": "linear",
        "models": [
            {"model": f"{base}+{one}", "parameters": {"weight": 0.5}},
            {"model": str(base), "parameters": {"weight": 0.5}},
        ],
    }  # fmt: skip
    second = {
        "merge_method": "linear",
        "models": [
            {"model": "half", "parameters": {"weight": 0.5}},
            {"model": str(other), "parameters": {"weight": 0.5}},
        ],
    }
    text = json.dumps(first) + "\n---\n" + json.dumps(second)
    mergewise.merge(text, tmp_path / "out", device="cpu")
    adapted, third = dense(state, one), load(other)
    wanted = {n: (adapted[n] + t.double()) / 4 + third[n].double() / 2 for n, t in state.items()}
    assert_near(load(tmp_path / "out"), wanted)


def test_a_tied_head_stays_as_it_was_trained(tmp_path: Path) -> None:
    shapes = llama_shapes(head=False)
    state = random_state(shapes, 0, torch.float32)
    base = save(tmp_path / "base", state, llama_config(shapes))
    embedding = "model.embed_tokens.weight"
    adapter = lora(tmp_path / "adapter", state, [], embedded=["model.embed_tokens"])
    found = alone(base, adapter, tmp_path / "out")
    assert torch.equal(found["lm_head.weight"], state[embedding])
    assert torch.allclose(found[embedding].double(), dense(state, adapter)[embedding], atol=1e-6)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    head = lora(tmp_path / "head", state | {"lm_head.weight": state[embedding]}, ["lm_head"])
    found = alone(base, head, tmp_path / "headed")
    assert torch.equal(found[embedding], state[embedding])
    assert not torch.equal(found["lm_head.weight"], state[embedding])
    tying = lora(
        tmp_path / "tying", state, [], embedded=["model.embed_tokens"], ensure_weight_tying=True
    )
    found = alone(base, tying, tmp_path / "tied")
    assert "lm_head.weight" not in found and not torch.equal(found[embedding], state[embedding])


def test_nonfinite_numbers_are_told_by_model(base: Path, tmp_path: Path) -> None:
    adapter = lora(tmp_path / "adapter", load(base), [Q])
    state = load(adapter)
    next(iter(state.values()))[0, 0] = math.nan
    write(adapter, state, json.loads((adapter / "adapter_config.json").read_text()))
    with pytest.raises(NonFiniteError, match=rf"{Q}.weight of model .*\+.*adapter"):
        alone(base, adapter, tmp_path / "out")


def test_what_changes_with_the_adapter(base: Path, tmp_path: Path) -> None:
    """The plan's digest and the record of inputs name the adapter and its settings."""
    adapter = lora(tmp_path / "adapter", load(base), [Q])
    document = {
        "merge_method": "linear",
        "models": [{"model": f"{base}+{adapter}", "parameters": {"weight": 1}}],
    }
    before = build_plan(document).digest()
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 60}))
    assert build_plan(document).digest() != before
    mergewise.merge(document, tmp_path / "out", device="cpu", full_hashes=True)
    record = json.loads((tmp_path / "out" / "mergewise_provenance.json").read_text())
    [model] = record["inputs"]
    assert [file["name"] for file in model["files"]] == [
        "model.safetensors", "adapter_model.safetensors", "adapter_config.json",
    ]  # fmt: skip


def test_the_card_names_bases_and_adapters_apart(base: Path, tmp_path: Path) -> None:
    """Each has its own mark, and its licence counts."""
    adapters = [lora(tmp_path / name, load(base), [Q], seed=ord(name)) for name in "ab"]
    for folder, licence in ((base, "mit"), (adapters[0], "cc-by-nc-4.0"), (adapters[1], "mit")):
        (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    models = [{"model": f"{base}+{a}", "parameters": {"weight": 0.5}} for a in adapters]
    mergewise.merge({"merge_method": "linear", "models": models}, tmp_path / "out", device="cpu")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model:\n- base\n- a\n- b\n" in card
    assert "license: other" in card and "a: cc-by-nc-4.0" in card
    for folder, role in zip(adapters, ("a | adapter of base", "b | adapter of base"), strict=True):
        mark = fingerprint(folder / "adapter_model.safetensors")[:16]
        assert any(role in line and mark in line for line in card.splitlines())


def test_explaining_a_tensor_tells_of_the_adapter(base: Path, tmp_path: Path) -> None:
    adapter = lora(tmp_path / "adapter", load(base), [Q], rank=3, alpha=6)
    models = [{"model": f"{base}+{adapter}", "parameters": {"weight": 1}}]
    plan = build_plan({"merge_method": "linear", "models": models})
    known = tensor_dict(plan.output, f"{Q}.weight")
    [source] = known["sources"]
    assert source["adapter"] == {
        "kind": "LoRA", "rank": 3, "scale": 2.0, "file": str(adapter / "adapter_model.safetensors"),
    }  # fmt: skip
    [plain] = tensor_dict(plan.output, f"{DOWN}.weight")["sources"]
    assert "adapter" not in plain


def test_paths_beside_the_recipe(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = lora(tmp_path / "adapter", load(base), [Q])
    wanted = alone(base, adapter, tmp_path / "one")
    text = "merge_method: linear\nmodels:\n  - {model: base+adapter, parameters: {weight: 1}}\n"
    (tmp_path / "recipe.yml").write_text(text)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    mergewise.merge(tmp_path / "recipe.yml", tmp_path / "two", device="cpu")
    assert_same(load(tmp_path / "two"), wanted)


def test_the_memory_of_adapters_is_counted(base: Path, tmp_path: Path) -> None:
    adapter = lora(tmp_path / "adapter", load(base), [Q, DOWN], rank=4)
    peaks = []
    for model in (str(base), f"{base}+{adapter}"):
        document = recipe(tmp_path, "linear", 0)
        document["models"] = [{"model": model, "parameters": {"weight": 1}}]
        plan = build_plan(document)
        peaks.append((estimate(plan).peak(1), plan.bytes_read))
    (plain, read), (more, read_more) = peaks
    assert more > plain
    assert read_more == read + sum(4 * t.numel() for t in load(adapter).values())


def test_a_guide_reads_adapters_as_models(base: Path, tmp_path: Path) -> None:
    weights = []
    models = []
    for i in range(2):
        adapter = lora(tmp_path / f"adapter_{i}", load(base), [Q], seed=i, alpha=6 * (i + 1))
        alone(base, adapter, tmp_path / f"dense_{i}")
        models.append((f"{base}+{adapter}", str(tmp_path / f"dense_{i}")))
    for kind in (0, 1):
        document = {
            "merge_method": "task_arithmetic",
            "base_model": str(base),
            "models": [{"model": model[kind]} for model in models],
            "parameters": {"weight": 1},
        }
        found = mergewise.write_recipe(document, "metagpt", tmp_path / f"found_{kind}.yml")
        weights.append([s.parameters for s in found.recipe.output.modules[0].slices[0].sources])
    assert str(weights[0]) == str(weights[1]) and len(set(map(str, weights[0]))) == 3, weights


def test_a_run_may_stop_and_go_on(base: Path, tmp_path: Path) -> None:
    adapter = lora(tmp_path / "adapter", load(base), [Q, DOWN])
    document = recipe(tmp_path, "linear", 0)
    document["models"] = [{"model": f"{base}+{adapter}", "parameters": {"weight": 1}}]
    seen = 0

    def stop(done: int, total: int) -> None:
        nonlocal seen
        seen = done
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises((MergewiseError, KeyboardInterrupt)):
        mergewise.merge(document, tmp_path / "out", device="cpu", shard_size=4000, progress=stop)
    assert seen
    mergewise.merge(document, tmp_path / "out", device="cpu", shard_size=4000)
    mergewise.merge(document, tmp_path / "at_once", device="cpu", shard_size=4000)
    assert_same(load(tmp_path / "out"), load(tmp_path / "at_once"))


def test_changed_tensors_are_not_read_as_they_lie(base: Path, tmp_path: Path) -> None:
    adapter = lora(tmp_path / "adapter", load(base), [Q])
    checkpoint = open_reference(f"{base}+{adapter}")
    ref = checkpoint.tensors[f"{Q}.weight"]
    assert isinstance(ref, ChangedRef)
    with (
        FileReader(checkpoint.stamps) as reader,
        pytest.raises(CheckpointError, match="an adapter changes this tensor"),
    ):
        reader.read_into(ref, 0, memoryview(bytearray(8)))
    with pytest.raises(CheckpointError, match="a base with an adapter is not read here"):
        open_checkpoint(f"{base}+{adapter}")


shapes = st.sampled_from([(7, 5), (1, 9), (9, 1), (4, 4), (3, 2, 3, 3), (2, 3, 4)])


@settings(max_examples=120, deadline=None)
@given(data=st.data(), shape=shapes, rank=st.integers(1, 6), dora=st.booleans())
def test_any_range_of_any_change(
    data: st.DataObject, shape: tuple[int, ...], rank: int, dora: bool, tmp_path_factory: Any
) -> None:
    """Blocks that begin and end anywhere give the numbers of the whole."""
    folder = tmp_path_factory.mktemp("range")
    alpha = data.draw(st.floats(-20, 20, width=32))
    turned = data.draw(st.booleans()) and len(shape) == 2 and shape[0] != shape[1]
    state = random_state({"m.weight": shape}, data.draw(st.integers(0, 99)), torch.float32)
    base = save(folder / "base", state)
    adapter = lora(
        folder / "adapter", state, ["m"], rank=rank, alpha=alpha, turned=turned, use_dora=dora,
        use_rslora=data.draw(st.booleans()),
        alpha_pattern=data.draw(st.sampled_from([{}, {"m": 2.5}, {".*m": -1}, {"other": 7}])),
        rank_pattern=data.draw(st.sampled_from([{}, {"m": 2}, {"^m": 5}, {"other": 7, "m": 1}])),
    )  # fmt: skip
    wanted = dense(state, adapter)["m.weight"].flatten()
    checkpoint = adapt(open_checkpoint(base), open_adapter(adapter))
    values = _values(checkpoint.tensors["m.weight"], adapter)
    flat = state["m.weight"].flatten()
    if values.wants_squares:
        cut = data.draw(st.integers(0, shape[0])) * values.columns
        blocks = [(0, flat[:cut]), (cut, flat[cut:])]
        values.set_norms([values.squares(part, at) for at, part in blocks if part.numel()])
    start = data.draw(st.integers(0, len(flat) - 1))
    end = data.draw(st.integers(start + 1, len(flat)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_change_values, "TILE", data.draw(st.sampled_from([1, 7, 12, 1 << 17])))
        found = values.apply(flat[start:end], start)
        narrow = torch.empty(end - start, dtype=torch.bfloat16)
        values.apply(flat[start:end], start, narrow)
    assert torch.allclose(found.double(), wanted[start:end], rtol=1e-4, atol=1e-5)
    assert torch.equal(narrow, found.bfloat16())  # rounded once


def _values(ref: TensorRef, adapter: Path) -> ChangeValues:
    assert isinstance(ref, ChangedRef)
    tensors = load(adapter)
    return ChangeValues(ref, lambda part: tensors[part.name])
