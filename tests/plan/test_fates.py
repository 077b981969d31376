"""What becomes of each tensor: merged, copied, or named in a refusal."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_models import (
    assert_same,
    family,
    llama_config,
    llama_shapes,
    load,
    near,
    random_state,
    recipe,
    save,
)

from mergewise import merge, plan
from mergewise.errors import RecipeError

NAME = "model.layers.{}.mlp.up_proj.weight"
EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return family(tmp_path / "models", layers=4)


def written(root: Path, document: Any) -> str:
    path = root / "recipe.yml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return str(path)


def refusal(document: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        plan(document)
    return str(caught.value)


def span(model: Path | str, first: int, last: int, **parameters: Any) -> dict[str, Any]:
    source: dict[str, Any] = {"model": str(model), "layer_range": [first, last]}
    return source | ({"parameters": parameters} if parameters else {})


def test_a_gradient_over_layers(models: Path) -> None:
    document = recipe(models, "slerp", 1, parameters={"t": [0, 1]})
    values = {n: t.values["t"] for n, t in plan(document).output.tensors.items()}
    assert [values[NAME.format(i)] for i in range(4)] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert values[EMBEDDING] == values[NORM] == values[HEAD] == 0


def test_a_gradient_starts_again_in_every_slice(models: Path) -> None:
    slices = [
        {"sources": [span(models / "base", *r), span(models / "expert_a", *r)]}
        for r in ((0, 3), (1, 4), (2, 3))
    ]
    document = recipe(models, "slerp", 1, parameters={"t": [0, 1]}) | {"slices": slices}
    del document["models"]
    values = {n: t.values["t"] for n, t in plan(document).output.tensors.items()}
    found = [values[NAME.format(i)] for i in range(7)]
    assert found == pytest.approx([0, 0.5, 1, 0, 0.5, 1, 1]), "a slice of one layer has t = 1"
    assert values[NORM] == values[HEAD] == values[EMBEDDING] == 0


def test_slices_renumber_layers(models: Path, tmp_path: Path) -> None:
    slices = [
        {"sources": [span(models / "expert_a", 0, 2)]},
        {"sources": [span(models / "expert_b", 1, 4)]},
    ]
    merge({"merge_method": "passthrough", "slices": slices}, tmp_path / "out")
    state, a, b = (load(f) for f in (tmp_path / "out", models / "expert_a", models / "expert_b"))
    wanted = [a[NAME.format(0)], a[NAME.format(1)], *(b[NAME.format(i)] for i in (1, 2, 3))]
    assert all(torch.equal(state[NAME.format(i)], w) for i, w in enumerate(wanted))
    assert NAME.format(5) not in state
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 5
    assert torch.equal(state[EMBEDDING], a[EMBEDDING])
    assert torch.equal(state[NORM], b[NORM]) and torch.equal(state[HEAD], b[HEAD])


def test_one_model_twice_in_a_slice(models: Path, tmp_path: Path) -> None:
    """Neighbouring layers of one model may be averaged."""
    sources = [span(models / "base", 0, 3, weight=1.0), span(models / "base", 1, 4, weight=1.0)]
    merge({"merge_method": "linear", "slices": [{"sources": sources}]}, tmp_path / "out")
    state, base = load(tmp_path / "out"), load(models / "base")
    mean = (base[NAME.format(1)].float() + base[NAME.format(2)].float()) / 2
    assert torch.equal(state[NAME.format(1)], mean.bfloat16())


def test_a_base_joins_linear(models: Path) -> None:
    """Named as base_model only, it is one model more (appended), if it has a weight."""
    document = recipe(models, "linear", base_model=str(models / "base"))
    shared = document | {"parameters": {"weight": 1.0}}
    for model in shared["models"]:
        model.pop("parameters")
    tensor = plan(shared).output.tensors[NORM]
    assert [i.view.label.rsplit("/", 1)[1] for i in tensor.inputs] == [
        "expert_a", "expert_b", "base",
    ]  # fmt: skip
    assert tensor.values["weight"] == [1.0, 1.0, 1.0] and tensor.base is None
    alone = recipe(models, "linear", base_model=str(models / "base"))
    assert "needs `weight` for" in refusal(alone)


def test_tensors_that_a_model_lacks(models: Path, tmp_path: Path) -> None:
    folder = models / "expert_b"
    state = load(folder)
    lost = [NAME.format(1), NAME.format(2)]
    save(folder, {n: t for n, t in state.items() if n not in lost})
    document = recipe(models, "ties")
    text = refusal(written(tmp_path, document))
    assert "recipe.yml:1:1" in text and "expert_b" in text and "2 tensors" in text
    assert all(name in text for name in lost) and "missing: available" in text

    merge(document | {"missing": "copy"}, tmp_path / "copy")
    base = load(models / "base")
    assert torch.equal(load(tmp_path / "copy")[lost[0]], base[lost[0]])

    merge(document | {"missing": "available"}, tmp_path / "available")
    merge(recipe(models, "ties", 1), tmp_path / "one")
    assert torch.equal(load(tmp_path / "available")[lost[0]], load(tmp_path / "one")[lost[0]])


def test_a_tensor_of_too_few_models_for_a_method_is_copied(models: Path, tmp_path: Path) -> None:
    """`least` of consensus is about all models, and one tensor is no reason to refuse the rest."""
    folder = models / "expert_b"
    lost = NAME.format(1)
    save(folder, {n: t for n, t in load(folder).items() if n != lost})
    document = recipe(models, "consensus", missing="available")
    planned = plan(document).output.tensors
    assert planned[lost].fate == "copy" and "expert_b" in planned[lost].reason
    assert {t.fate for name, t in planned.items() if name != lost} == {"merge"}
    merge(document, tmp_path / "out")
    assert torch.equal(load(tmp_path / "out")[lost], load(models / "base")[lost])
    assert "3 and 2 models take part" in refusal(document | {"parameters": {"least": 3}})


def test_tensors_that_only_one_model_has(models: Path, tmp_path: Path) -> None:
    """Nothing is dropped silently: not even what no other model knows."""
    state = load(models / "expert_b") | {"extra.bias": torch.ones(3)}
    save(models / "expert_b", state)
    text = refusal(recipe(models, "linear"))
    assert "extra.bias" in text and "expert_a" in text
    merge(recipe(models, "linear", missing="copy"), tmp_path / "out")
    assert torch.equal(load(tmp_path / "out")["extra.bias"], torch.ones(3))


def test_shapes_that_differ(models: Path, tmp_path: Path) -> None:
    state = load(models / "expert_a")
    state[NAME.format(0)] = torch.zeros(3, 5, dtype=torch.bfloat16)
    state[EMBEDDING] = torch.zeros(44, 16, dtype=torch.bfloat16)
    save(models / "expert_a", state)
    text = refusal(written(tmp_path, recipe(models, "linear")))
    lines = text.splitlines()
    assert len(lines) == 2 and all("recipe.yml:1:1: tensor" in line for line in lines)
    assert NAME.format(0) in text and "[3, 5] in" in text and "[24, 16] in" in text
    assert "vocabularies of different sizes" in text


def test_exclude_keeps_the_base(models: Path, tmp_path: Path) -> None:
    document = recipe(models, "dare_ties", exclude=["*norm*", "lm_head.*"])
    merge(document, tmp_path / "out")
    state, base = load(tmp_path / "out"), load(models / "base")
    kept = {n for n in base if "norm" in n or n == HEAD}
    assert_same({n: state[n] for n in kept}, {n: base[n] for n in kept})
    assert not torch.equal(state[NAME.format(0)], base[NAME.format(0)])


def test_exclude_covers_what_a_model_lacks(models: Path) -> None:
    state = load(models / "expert_b")
    del state[NAME.format(1)]
    save(models / "expert_b", state)
    planned = plan(recipe(models, "ties", exclude=[NAME.format(1)]))
    assert planned.output.tensors[NAME.format(1)].fate == "copy"


def test_dtype_rounds_inputs_first(tmp_path: Path) -> None:
    models = family(tmp_path / "models", dtype=torch.float32)
    document = recipe(models, "linear", dtype="float16", out_dtype="float32")
    merge(document, tmp_path / "out")
    a, b = (load(models / n)[NORM].half().float() for n in ("expert_a", "expert_b"))
    assert torch.equal(load(tmp_path / "out")[NORM], a * 0.5 + b * 0.5)
    merge(recipe(models, "linear", out_dtype="float16"), tmp_path / "wide")
    a, b = (load(models / n)[NORM] for n in ("expert_a", "expert_b"))
    assert torch.equal(load(tmp_path / "wide")[NORM], (a * 0.5 + b * 0.5).half())


@pytest.mark.parametrize(
    ("given", "config"),
    [({}, "bfloat16"), ({"dtype": "float16"}, "float16"),
     ({"dtype": "float32", "out_dtype": "float16"}, "float16")],
)  # fmt: skip
def test_types_of_the_output(given: dict[str, str], config: str, tmp_path: Path) -> None:
    """Each tensor keeps its own type unless the recipe says otherwise; integers always do."""
    shapes = llama_shapes()
    base = random_state(shapes, 0)
    base[NORM] = base[NORM].float()
    base["model.rotary.inv_freq"] = torch.ones(4, dtype=torch.float64)
    base["model.steps"] = torch.tensor([7])
    for i, name in enumerate(("base", "expert_a", "expert_b")):
        save(tmp_path / name, near(base, i), llama_config(shapes))
    merge(recipe(tmp_path, "ties", **given), tmp_path / "out")
    state = load(tmp_path / "out")
    wanted = getattr(torch, config)
    for name, tensor in base.items():
        kept = not given or not tensor.is_floating_point()
        assert state[name].dtype == (tensor.dtype if kept else wanted), name
    assert state["model.steps"].item() == 7
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == config


def test_a_slice_out_of_range(models: Path, tmp_path: Path) -> None:
    document = {
        "merge_method": "passthrough",
        "slices": [{"sources": [span(models / "base", 2, 6)]}],
    }
    text = refusal(written(tmp_path, document))
    assert "recipe.yml:4:" in text and "layer_range [2, 6]" in text and "has 4 layers" in text


def test_slices_without_layers(tmp_path: Path) -> None:
    save(tmp_path / "flat", {"w": torch.ones(2)})
    sources = [span(tmp_path / "flat", 0, 1)]
    text = refusal({"merge_method": "passthrough", "slices": [{"sources": sources}]})
    assert "no repeated layers found" in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"models": [{"model": "{a}+some/lora"}, {"model": "{b}"}]},
            "some/lora: no such folder",
        ),
        (
            {"models": [{"model": "org/name@main"}, {"model": "{b}"}]},
            "@main: no such folder",
        ),
        ({"models": [{"model": "org/name"}, {"model": "{b}"}]}, "org/name: no such folder here"),
        ({"tokenizer_source": "union"}, "tokenizer_source: .*`model` must be a mapping"),
        ({"tokenizer": {"source": "union"}}, "tokenizer: .*`model` must be a mapping"),
    ],
)
def test_what_is_not_built_yet(
    change: dict[str, Any], words: str, models: Path, tmp_path: Path
) -> None:
    for name in ("base", "expert_a", "expert_b"):
        (models / name / "tokenizer.json").write_text("{%s}" % (" " * (name == "expert_b")))
    text = json.dumps(change).replace("{a}", str(models / "expert_a"))
    document = recipe(models, "linear", parameters={"weight": 1.0}) | json.loads(
        text.replace("{b}", str(models / "expert_b"))
    )
    found = refusal(written(tmp_path, document))
    assert re.search(rf"recipe\.yml:\d+:\d+: .*{words}", found), found


def test_modules_that_the_model_does_not_have(models: Path, tmp_path: Path) -> None:
    part = {"slices": [{"sources": [span(models / "base", 0, 2)]}]}
    document = {"merge_method": "passthrough", "modules": {"text": part, "vision_tower": part}}
    text = refusal(written(tmp_path, document))
    lines = text.splitlines()
    assert "has no module 'text'; it has: `default` (4 layers, model.layers.*)" in lines[0]
    assert "has no module 'vision_tower'" in lines[1]


def test_two_problems_at_once(models: Path, tmp_path: Path) -> None:
    document = recipe(models, "linear")
    document["models"][0]["model"] = "/absent/one"
    document["models"][1]["model"] = str(models / "expert_b") + "+adapter"
    lines = refusal(written(tmp_path, document)).splitlines()
    assert len(lines) == 2
    assert "recipe.yml:3:" in lines[0] and "/absent/one" in lines[0]
    assert "recipe.yml:6:" in lines[1] and "adapter" in lines[1]


def test_no_base_the_first_model_gives_the_config(tmp_path: Path) -> None:
    shapes = llama_shapes()
    state = random_state(shapes, 0)
    for name, length in (("expert_b", 128), ("expert_a", 64)):
        config = llama_config(shapes, max_position_embeddings=length)
        save(tmp_path / name, near(state, length), config)
    document = recipe(tmp_path, "linear")
    planned = plan(document)
    assert any("max_position_embeddings" in w for w in planned.warnings)
    merge(document, tmp_path / "out")
    assert (
        json.loads((tmp_path / "out" / "config.json").read_text())["max_position_embeddings"] == 64
    )


def test_layers_numbered_at_the_top(tmp_path: Path) -> None:
    """`torch.nn.Sequential` gives names such as ``0.weight``, with others beside them."""
    state = {f"{i}.weight": torch.ones(2, 3) * i for i in range(3)} | {"head.bias": torch.ones(2)}
    save(tmp_path / "expert_a", state)
    save(tmp_path / "expert_b", near(state, 1))
    document = recipe(tmp_path, "linear")
    document["models"][0]["parameters"] = {"weight": [0, 1]}
    document["models"][1]["parameters"] = {"weight": [1, 0]}
    tensors = plan(document).output.tensors
    assert [tensors[f"{i}.weight"].values["weight"][0] for i in range(3)] == [0, 0.5, 1]
    assert tensors["head.bias"].values["weight"] == [0, 1]
    slices = [{"sources": [span(tmp_path / "expert_a", 1, 3)]}]
    sliced = plan({"merge_method": "passthrough", "slices": slices}).output.tensors
    assert list(sliced) == ["0.weight", "1.weight", "head.bias"]


def test_planning_loads_neither_torch_nor_numpy(models: Path, tmp_path: Path) -> None:
    path = written(tmp_path, recipe(models, "ties"))
    code = (
        "import sys, mergewise; p = mergewise.plan(sys.argv[1]); print(len(p.output.tensors));"
        "print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.stdout.split("\n")[1] == "[]", done.stderr


def test_plan_can_be_called_by_its_public_name(models: Path, tmp_path: Path) -> None:
    """`mergewise.plan` names a package too; which is bound must not matter."""
    path = written(tmp_path, recipe(models, "ties"))
    code = (
        "import sys, mergewise\nfor _ in range(2): mergewise.plan(sys.argv[1]).output\n"
        "import mergewise.engine\nfrom mergewise import plan\nplan(sys.argv[1]).output"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("first", [torch.int64, torch.float16])
def test_positions_that_one_model_stores_as_floats(first: torch.dtype, tmp_path: Path) -> None:
    """As half-precision copies of Stable Diffusion do with `position_ids`."""
    second = torch.float16 if first is torch.int64 else torch.int64
    for name, dtype in {"a": first, "b": second}.items():
        save(tmp_path / name, {"w": torch.ones(2), "position_ids": torch.arange(7).to(dtype)})
    models = [{"model": str(tmp_path / name), "parameters": {"weight": 1}} for name in "ab"]
    document = {"merge_method": "linear", "models": models, "dtype": "bfloat16"}
    assert any("different types" in warning for warning in plan(document).warnings)
    merge(document, tmp_path / "out")
    assert torch.equal(load(tmp_path / "out")["position_ids"], torch.arange(7).to(first))


def test_numbers_are_not_averaged_with_quantised_ones(tmp_path: Path) -> None:
    state = {"w": torch.ones(2, 2)}
    a = save(tmp_path / "a", state, {})
    b = save(tmp_path / "b", {"w": torch.ones(2, 2, dtype=torch.int8)}, {})
    models = [{"model": str(m)} for m in (a, b)]
    document = {"merge_method": "linear", "models": models, "parameters": {"weight": 1}}
    assert re.search(r"tensor w: I8 in .*/b, floating point in another model", refusal(document))


def test_element_types_without_a_name_in_torch_are_refused(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "a").mkdir()
    data = len(header).to_bytes(8, "little") + header + bytes(2)
    (tmp_path / "a" / "model.safetensors").write_bytes(data)
    models = [{"model": str(tmp_path / "a")}]
    document = {"merge_method": "linear", "models": models, "parameters": {"weight": 1}}
    assert "elements of type F4 cannot be read" in refusal(document)


def test_problems_of_one_kind_are_told_as_one(models: Path) -> None:
    folder = models / "expert_b"
    changed = {n: t[:3] if "mlp.up" in n or n == EMBEDDING else t for n, t in load(folder).items()}
    save(folder, changed)
    lines = refusal(recipe(models, "ties")).splitlines()
    assert len(lines) == 2
    assert re.search(r":1:1: tensor .*embed_tokens.*vocabularies of different sizes", lines[0])
    assert re.search(r"shape \[3, 16\] in .*expert_b", lines[1])
    assert f"(3 tensors more likewise: {NAME.format(1)}, " in lines[1]


def test_missing_parameters_are_told_once(models: Path) -> None:
    weight = [{"filter": "norm", "value": 1.0}]
    text = refusal(recipe(models, "ties", 1, each={"weight": weight}))
    assert len(text.splitlines()) == 1
    assert "needs `weight` for tensor" in text and " and 25 more)" in text


def test_an_excluded_tensor_says_whose_it_is(models: Path) -> None:
    save(models / "base", {n: t for n, t in load(models / "base").items() if n != NORM})
    tensor = plan(recipe(models, "ties", exclude=["*norm*"])).output.tensors[NORM]
    assert tensor.fate == "copy"
    assert tensor.reason == f"excluded by the recipe: copied from {models / 'expert_a'}"


def test_the_digest_notices_a_changed_config(models: Path) -> None:
    document = recipe(models, "ties")
    before = plan(document).digest()
    path = models / "expert_a" / "config.json"
    path.write_text(path.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert plan(document).digest() != before


def test_patterns_that_match_nothing_are_named(models: Path, tmp_path: Path) -> None:
    weight = [{"filter": "self_atn", "value": 0.1}, {"filter": "mlp", "value": 0.2}, {"value": 0.3}]
    document = recipe(models, "ties", parameters={"weight": weight}, exclude=["lm_hed.*", "lm_*"])
    warnings = "\n".join(plan(document).warnings)
    assert "exclude: 'lm_hed.*' matches no tensor" in warnings
    assert "filter 'self_atn' matches no tensor" in warnings
    assert "'mlp'" not in warnings
    assert "'lm_*'" not in warnings


def test_the_seed_of_every_stage_is_recorded(models: Path, tmp_path: Path) -> None:
    first = recipe(models, "dare_linear", seed=7) | {"name": "first"}
    second = {
        "merge_method": "linear",
        "models": [
            {"model": m, "parameters": {"weight": 1}} for m in ("first", str(models / "base"))
        ],
    }
    path = tmp_path / "two.yml"
    path.write_text(yaml.safe_dump_all([first, second]))
    assert plan(path).seeds_in_words == "7 in first, 0 in stage 2"
    merge(path, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "mergewise_provenance.json").read_text())
    assert record["seeds"] == {"first": 7, "stage 2": 0}
    assert "Seed 7 in first, 0 in stage 2" in (tmp_path / "out" / "README.md").read_text()
