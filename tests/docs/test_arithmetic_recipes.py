"""The recipes of docs/arithmetic.md run, and come to their papers' formulas."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_adapters import PREFIX, dense, lora, write
from small_models import State, assert_same, llama_config, llama_shapes, load, near, random_state
from small_models import save as save_model
from small_vocabularies import like, plain, tokenizer_json, write_tokenizer

import mergewise
from mergewise.errors import MergewiseError
from mergewise.forms import merge_adapters
from mergewise.guides import guide

DOCUMENT = Path(__file__).parents[2] / "docs/arithmetic.md"
RECIPES = dict(re.findall(r"```yaml\n# name: (\S+)\n(.*?)```", DOCUMENT.read_text(), re.S))
LAYERS, TOKENS = 8, 40
Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
EXPERTS = [
    "a",
    "b",
    "c",
    "sft",
    "aligned",
    "chat",
    "tuned",
    "unaligned",
    "harmful",
    "language",
    "maths",
]
VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")


def write_model(folder: Path, state: State, tokens: int) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    save_model(folder, state, llama_config(shapes, torch_dtype="float32"))
    write_tokenizer(folder, tokenizer_json(plain(tokens)))


def write_ia3(folder: Path, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    outputs, inputs = (torch.rand(s, generator=draw) + 0.5 for s in ((16, 1), (1, 24)))
    state = {f"{PREFIX}{Q}.ia3_l": outputs, f"{PREFIX}{DOWN}.ia3_l": inputs}
    told = {"target_modules": ["q_proj"], "feedforward_modules": ["down_proj"]}
    write(folder, state, {"peft_type": "IA3", **told})


@pytest.fixture(scope="module")
def root(tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("arithmetic")
    base = random_state(llama_shapes(layers=LAYERS, vocab=TOKENS), 0, torch.float32)
    write_model(folder / "models/base", base, TOKENS)
    for i, name in enumerate(EXPERTS):
        write_model(folder / "models" / name, near(base, i), TOKENS)
    write_model(folder / "models/continued", like(base, TOKENS + 6, 30), TOKENS + 6)
    for i, name in enumerate(("task", "reference-target", "reference-source")):
        lora(folder / "adapters" / name, base, [Q, DOWN], seed=i)
        write_ia3(folder / f"adapters/{name}-ia3", i)
    return folder


@pytest.fixture
def merged(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], State]:
    monkeypatch.chdir(root)

    def run(name: str) -> State:
        (tmp_path / "recipe.yml").write_text(RECIPES[name])
        mergewise.merge(tmp_path / "recipe.yml", tmp_path / "out", device="cpu")
        return load(tmp_path / "out")

    return run


@pytest.fixture
def models(root: Path) -> dict[str, State]:
    return {folder.name: doubled(load(folder)) for folder in (root / "models").iterdir()}


def doubled(state: State) -> State:
    return {name: tensor.double() for name, tensor in state.items()}


def combined(models: dict[str, State], **factors: float) -> State:
    names = models[next(iter(factors))]
    return {n: sum(f * models[m][n] for m, f in factors.items()) for n in names}  # type: ignore[misc]


def assert_near(found: State, wanted: State) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.double(), wanted[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("name", "factors"),
    [
        ("add", {"base": 0.2, "a": 0.4, "b": 0.4}),
        ("forget", {"base": 1.5, "a": -0.5}),
        ("analogy", {"c": 1.0, "b": 1.0, "a": -1.0}),
        ("wise-ft", {"base": 0.5, "a": 0.5}),
        ("expo", {"aligned": 1.3, "sft": -0.3}),
    ],
)
def test_sums(name: str, factors: dict[str, float], merged: Any, models: Any) -> None:
    assert_near(merged(name), combined(models, **factors))


def test_warp(merged: Any, models: Any) -> None:
    wanted = {}
    for name, start in models["base"].items():
        one, two = models["a"][name] - start, models["b"][name] - start
        angle = math.acos(float((one * two).sum() / one.norm() / two.norm()))
        arc = math.sin(angle / 2) / math.sin(angle) * (one + two)
        wanted[name] = start + 0.3 * arc
    assert_near(merged("warp"), wanted)


def test_chat_vector(merged: Any, models: Any) -> None:
    continued = models["continued"]
    wanted = {
        name: tensor if name in VOCABULARY
        else tensor + models["chat"][name] - models["base"][name]
        for name, tensor in continued.items()
    }  # fmt: skip
    assert_near(merged("chat-vector"), wanted)


def test_resta(merged: Any, models: Any) -> None:
    vector = combined(models, chat=0.5, unaligned=-0.5)
    kept = total = 0
    for name, tensor in merged("resta").items():
        changed = models["tuned"][name] - models["chat"][name]
        ratio = (tensor.double() - vector[name] - models["chat"][name]) * 0.7 / changed
        sure = changed.abs() > 1e-4
        dropped, whole = ratio.abs() < 1e-2, (ratio - 1).abs() < 1e-2
        assert (dropped | whole)[sure].all(), name
        kept, total = kept + int(whole[sure].sum()), total + int(sure.sum())
    assert 0.68 < kept / total < 0.72


def test_masked_negation(merged: Any, models: Any) -> None:
    harm = {n: models["harmful"][n] - base for n, base in models["base"].items()}
    sizes = torch.cat([change.abs().flatten() for change in harm.values()])
    least = sizes.topk(int(0.1 * len(sizes))).values[-1]  # of the whole model
    shares = set()
    for name, tensor in merged("masked-negation").items():
        mask = (harm[name].abs() >= least).double()
        shares.add(round(float(mask.mean()), 2))
        wanted = models["tuned"][name] - 0.5 * mask * harm[name]
        torch.testing.assert_close(tensor.double(), wanted, rtol=1e-5, atol=1e-6, msg=name)
    assert len(shares) > 1


def test_adamergex_of_loras(root: Path, merged: Any, models: Any) -> None:
    base = load(root / "models/base")
    task, target, source = (
        dense(base, root / "adapters" / name)
        for name in ("task", "reference-target", "reference-source")
    )
    wanted = {name: task[name] + 0.8 * (target[name] - source[name]) for name in base}
    assert_near(merged("adamergex-lora"), wanted)


def test_adamergex_of_ia3(root: Path, merged: Any, models: Any) -> None:
    task, target, source = (
        load(root / "adapters" / f"{name}-ia3")
        for name in ("task", "reference-target", "reference-source")
    )
    wanted = dict(models["base"])
    for module in (Q, DOWN):
        key = f"{PREFIX}{module}.ia3_l"
        vector = ((target[key] / source[key] - 1) * 0.8 + 1) * task[key]
        wanted[f"{module}.weight"] = wanted[f"{module}.weight"] * vector.double()
    assert_near(merged("adamergex-ia3"), wanted)


def test_layer_swapping(root: Path, merged: Any) -> None:
    language, maths = (load(root / "models" / name) for name in ("language", "maths"))
    found = merged("layer-swapping")
    assert found.keys() == language.keys()
    for name, tensor in found.items():
        layer = int(name.split(".")[2]) if ".layers." in name else 0
        if layer in (2, 6):
            wanted = (language[name] + maths[name]) / 2
            torch.testing.assert_close(tensor, wanted, rtol=1e-6, atol=1e-7)
        else:
            whole = maths if layer in (3, 4, 5) else language
            assert_same({name: tensor}, {name: whole[name]})


def test_a_schedule_over_the_layers(merged: Any, models: Any) -> None:
    found = merged("schedule")
    for name, tensor in found.items():
        last = f"layers.{LAYERS - 1}." in name
        same = torch.allclose(tensor.double(), models["b"][name], rtol=1e-4, atol=1e-5)
        assert same == last, name
    first = "model.layers.0.input_layernorm.weight"
    torch.testing.assert_close(found[first].double(), models["a"][first])


def test_every_recipe_of_the_page_is_tested() -> None:
    text = Path(__file__).read_text()
    assert all(f'"{name}"' in text for name in RECIPES)
    assert len(RECIPES) == DOCUMENT.read_text().count("```yaml")


@pytest.mark.parametrize("method", ["add_perpendicular", "fednova"])
@pytest.mark.parametrize(
    ("name", "options", "by_layer"),
    [
        ("lines", {"alpha": 0.2, "beta": 0.7}, lambda layer: 0.2 + 0.1 * layer),
        ("layer_schedule", {"points": "1,0"}, lambda layer: 1 - layer / 7),
    ],
)
def test_guides_of_layers_write_weights_for_them(
    method: str, name: str, options: Any, by_layer: Any, root: Path, tmp_path: Path
) -> None:
    each = {"steps": 100} if method == "fednova" else {}
    document = {
        "merge_method": method,
        "base_model": str(root / "models/base"),
        "models": [{"model": str(root / "models" / m), "parameters": each} for m in "ab"],
        "parameters": {"normalize": False} if each else {},
    }
    made = guide(document, name, **options)
    made.write(tmp_path / "made.yml")
    plan = mergewise.plan(tmp_path / "made.yml")
    for layer in range(LAYERS):
        tensor = plan.output.tensors[f"model.layers.{layer}.mlp.up_proj.weight"]
        assert tensor.values["weight"] == pytest.approx([by_layer(layer)] * 2)


@pytest.fixture
def pair(root: Path, tmp_path: Path) -> list[Path]:
    base = load(root / "models/base")
    return [lora(tmp_path / name, base, [Q], seed=i + 5) for i, name in enumerate(("one", "two"))]


def change(root: Path, adapter: Path) -> torch.Tensor:
    base = load(root / "models/base")
    return dense(base, adapter)[f"{Q}.weight"] - base[f"{Q}.weight"].double()


def test_a_negative_weight_of_an_adapter_negates_b_alone(
    root: Path, pair: list[Path], tmp_path: Path
) -> None:
    merge_adapters(pair, tmp_path / "out", weights=[1, -0.4], space="factor", negate_b=True)
    one, two = (load(path) for path in pair)
    a, b = (f"{PREFIX}{Q}.lora_{x}.weight" for x in "AB")
    scale = 2  # alpha 6 over rank 3
    wanted = scale * (one[b] - 0.4 * two[b]) @ (one[a] + 0.4 * two[a])
    torch.testing.assert_close(
        change(root, tmp_path / "out"), wanted.double(), rtol=1e-4, atol=1e-6
    )
    with pytest.raises(MergewiseError, match="space factor"):
        merge_adapters(pair, tmp_path / "other", weights=[1, -0.4], negate_b=True)


def test_three_adapters_by_the_rules_of_the_authors_scripts(
    root: Path, pair: list[Path], tmp_path: Path
) -> None:
    third = lora(tmp_path / "three", load(root / "models/base"), [Q], seed=9)
    files = [load(path) for path in (*pair, third)]
    a, b = ([f[f"{PREFIX}{Q}.lora_{x}.weight"].double() for f in files] for x in "AB")
    for negate_b, sign in ((False, -1), (True, 1)):  # AdaMergeX; PEM's transfer between domains
        out = tmp_path / f"out-{negate_b}"
        given = {"weights": [0.6, 0.4, -0.4], "space": "factor", "negate_b": negate_b}
        merge_adapters([*pair, third], out, **given)
        down = 0.6 * a[0] + 0.4 * a[1] + sign * 0.4 * a[2]
        wanted = 2 * (0.6 * b[0] + 0.4 * b[1] - 0.4 * b[2]) @ down
        torch.testing.assert_close(change(root, out), wanted, rtol=1e-4, atol=1e-6)


def test_exactly_negated_an_adapter_undoes_itself(
    root: Path, pair: list[Path], tmp_path: Path
) -> None:
    merge_adapters(pair, tmp_path / "out", weights=[1, -0.4])
    wanted = change(root, pair[0]) - 0.4 * change(root, pair[1])
    torch.testing.assert_close(change(root, tmp_path / "out"), wanted, rtol=1e-4, atol=1e-6)


def test_ext_sub_of_adapters(root: Path, pair: list[Path], tmp_path: Path) -> None:
    merge_adapters(pair, tmp_path / "out", method="ext_sub", rank=16)
    expert, anti = (change(root, path) for path in pair)
    middle = expert / expert.norm(dim=1, keepdim=True) + anti / anti.norm(dim=1, keepdim=True)
    middle = middle / middle.norm(dim=1, keepdim=True)
    shared = (anti * middle).sum(dim=1, keepdim=True) * middle
    wanted = expert - (anti - shared)
    torch.testing.assert_close(change(root, tmp_path / "out"), wanted, rtol=1e-4, atol=1e-5)
