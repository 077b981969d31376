"""Stages without files between them equal stages run one by one through the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_models import (
    contents,
    family,
    llama_config,
    llama_shapes,
    load,
    near,
    random_state,
    recipe,
    save,
)

from mergewise import merge
from mergewise.engine import _run
from mergewise.engine._copy import CopyTask
from mergewise.engine._stages import StageSource
from mergewise.engine._task import Options
from mergewise.engine._work import Work
from mergewise.errors import NonFiniteError


@pytest.fixture(scope="module")
def models(tmp_path_factory: Any) -> Path:
    return family(tmp_path_factory.mktemp("models"), experts=3)


def text(*documents: dict[str, Any]) -> str:
    return "---\n".join(yaml.safe_dump(d, sort_keys=False) for d in documents)


def both_ways(stages: list[dict[str, Any]], root: Path, **options: Any) -> None:
    """Run a recipe of `stages` at once, and each of them to its own folder; compare weights."""
    merge(text(*stages), root / "at_once", **options)
    written: dict[str, str] = {}
    for i, stage in enumerate(stages):
        plain: Any = yaml.safe_load(text(stage))
        for source in _sources(plain):
            source["model"] = written.get(source["model"], source["model"])
        if "base_model" in plain:
            plain["base_model"] = written.get(plain["base_model"], plain["base_model"])
        out = root / f"stage_{i}"
        merge(plain, out, **options)
        written[stage.get("name", "")] = str(out)
    names = ("config.json", "model.safetensors", "model.safetensors.index.json")
    found = [
        {n: d for n, d in contents(root / folder).items() if n in names or n.startswith("model-")}
        for folder in ("at_once", f"stage_{len(stages) - 1}")
    ]
    assert found[0] == found[1]
    assert len(found[0]) > 1


def _sources(document: dict[str, Any]) -> list[dict[str, Any]]:
    inner = [source for s in document.get("slices", []) for source in s["sources"]]
    return [*document.get("models", []), *inner]


def second(first: str, models: Path, method: str, **more: Any) -> dict[str, Any]:
    """A stage that merges the stage `first` with a model."""
    document = recipe(models, method, 1 if method == "slerp" else 2, **more)
    document["models"][0]["model"] = first
    return document


FIRST = [
    ("linear", {}),
    ("ties", {}),
    ("ties", {"parameters": {"density": 0.3, "granularity": "model"}}),
    ("ties", {"parameters": {"density": 0.3, "granularity": "row"}}),
    ("della", {"seed": 5}),
    ("dare_ties", {"seed": 5}),
    ("model_stock", {"parameters": {"filter_wise": True}}),
    ("model_stock", {}),
    ("nuslerp", {"parameters": {"nuslerp_flatten": False}}),
    ("nuslerp", {"parameters": {"nuslerp_flatten": False, "nuslerp_row_wise": True}}),
    ("sce", {}),
    ("karcher", {}),
    ("fisher", {}),
    ("regmean", {}),
    ("pcb", {"parameters": {"density": 0.3}}),
]
SECOND = [
    ("linear", {}),
    ("ties", {"parameters": {"density": 0.5, "granularity": "model"}}),
    ("model_stock", {"parameters": {"filter_wise": True}}),
    ("nuslerp", {"parameters": {"nuslerp_flatten": False, "nuslerp_row_wise": True}}),
    ("della", {"seed": 9}),
    ("slerp", {}),
    ("pcb", {"parameters": {"density": 0.3}}),
]
PAIRS = [(f, s) for i, f in enumerate(FIRST) for j, s in enumerate(SECOND) if (i + j) % 3 == 0]


@pytest.mark.parametrize(("one", "two"), PAIRS, ids=lambda p: p[0])
def test_two_stages(one: Any, two: Any, models: Path, tmp_path: Path) -> None:
    first = {"name": "first", **recipe(models, one[0], **one[1])}
    both_ways([first, second("first", models, two[0], **two[1])], tmp_path, shard_size=4000)


@pytest.mark.parametrize("block", [100, 999])
@pytest.mark.parametrize(
    ("method", "more"), [("model_stock", {"parameters": {"filter_wise": True}}), ("regmean", {})]
)
def test_stages_whose_blocks_do_not_align(
    block: int, method: str, more: Any, models: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Rows of an earlier stage reach over the blocks of the later one."""
    real = _run.Options
    monkeypatch.setattr(_run, "Options", lambda *a, **k: real(*a, **{**k, "block": block}))
    first = {"name": "first", **recipe(models, method, **more)}
    both_ways([first, second("first", models, "ties")], tmp_path)


def test_the_stage_is_the_base(models: Path, tmp_path: Path) -> None:
    first = {"name": "first", **recipe(models, "linear")}
    last = recipe(models, "ties") | {"base_model": "first"}
    both_ways([first, last], tmp_path)


def test_four_stages_with_types_and_exclusions(models: Path, tmp_path: Path) -> None:
    stages: list[dict[str, Any]] = [
        {"name": "one", **recipe(models, "dare_ties", seed=4, out_dtype="float32")},
        {"name": "two", **recipe(models, "della", exclude=["*q_proj*"], dtype="float16")},
        {"name": "three", **recipe(models, "ties", out_dtype="bfloat16")},
        recipe(models, "model_stock", 3, out_dtype="float16"),
    ]
    stages[2]["base_model"] = "one"
    for model, name in zip(stages[3]["models"], ("one", "two", "three"), strict=True):
        model["model"] = name
    both_ways(stages, tmp_path, workers=3)


def test_slices_of_stages(models: Path, tmp_path: Path) -> None:
    """Layers of earlier stages, moved; copies among them are read through the same buffers."""
    stages: list[dict[str, Any]] = [
        {"name": "one", **recipe(models, "linear", base_model=str(models / "base"))},
        {
            "name": "two",
            "merge_method": "passthrough",
            "slices": [
                {"sources": [{"model": "one", "layer_range": [0, 2]}]},
                {"sources": [{"model": "one", "layer_range": [0, 2]}]},
            ],
        },
        {
            "merge_method": "slerp",
            "base_model": "two",
            "parameters": {"t": [0.1, 0.9]},
            "slices": [
                {
                    "sources": [
                        {"model": "one", "layer_range": [0, 2]},
                        {"model": "two", "layer_range": [2, 4]},
                    ]
                },
                {
                    "sources": [
                        {"model": "two", "layer_range": [1, 3]},
                        {"model": str(models / "expert_c"), "layer_range": [0, 2]},
                    ]
                },
            ],
        },
    ]
    stages[0]["parameters"] = {"weight": 0.5}
    both_ways(stages, tmp_path)


def test_copies_read_through_two_stages(models: Path, tmp_path: Path) -> None:
    """Both inputs of the last stage are copies of different layers of one file."""
    keep = {"exclude": ["*layers*"], "base_model": str(models / "base")}
    stages: list[dict[str, Any]] = [
        {"name": "one", **recipe(models, "ties"), **keep},
        {
            "name": "two",
            "merge_method": "task_arithmetic",
            "base_model": "one",
            "exclude": ["*layers*"],
            "parameters": {"weight": 1.0},
            "slices": [
                {
                    "sources": [
                        {"model": "one", "layer_range": [k, k + 1]},
                        {"model": str(models / "expert_a"), "layer_range": [k, k + 1]},
                    ]
                }
                for k in (1, 0)
            ],
        },
        {
            "merge_method": "linear",
            "parameters": {"weight": 1.0},
            "models": [{"model": "one"}, {"model": "two"}],
        },
    ]
    both_ways(stages, tmp_path)
    base = load(models / "base")
    name = "model.layers.{}.mlp.up_proj.weight"
    mean = (base[name.format(0)].float() + base[name.format(1)].float()) / 2
    assert torch.equal(load(tmp_path / "at_once")[name.format(0)], mean.bfloat16())


@pytest.mark.parametrize("heads", ["equal", "different"])
@pytest.mark.parametrize("third", ["tied", "untied"])
def test_a_stage_of_tied_and_untied_models(heads: str, third: str, tmp_path: Path) -> None:
    """Whether the earlier stage's head is its embedding shows only once it is computed."""
    tied, full = llama_shapes(head=False), llama_shapes()
    base = random_state(tied, 0)
    save(tmp_path / "tied", base, llama_config(tied))
    state = near(base, 1) | {"lm_head.weight": torch.empty(0)}
    state["lm_head.weight"] = state["model.embed_tokens.weight"] * (1 if heads == "equal" else 2)
    save(tmp_path / "untied", state, llama_config(full))
    other = near(base, 2)
    if third == "untied":
        other["lm_head.weight"] = other["model.embed_tokens.weight"] * 3
    save(tmp_path / "third", other, llama_config(full if third == "untied" else tied))

    def mean(*names: str, **more: Any) -> dict[str, Any]:
        sources = [{"model": n if n == "first" else str(tmp_path / n)} for n in names]
        return {"merge_method": "linear", "models": sources, "parameters": {"weight": 1}, **more}

    stages = [mean("tied", "untied", name="first"), mean("first", "third")]
    both_ways(stages, tmp_path)
    found = load(tmp_path / "at_once")
    assert ("lm_head.weight" in found) == (heads == "different" or third == "untied")


def test_each_stage_has_its_own_seed(models: Path, tmp_path: Path) -> None:
    results = []
    for i, seeds in enumerate([(1, 2), (1, 2), (2, 2), (1, 3)]):
        first = {"name": "first", **recipe(models, "dare_linear", seed=seeds[0])}
        last = second("first", models, "dare_linear", seed=seeds[1])
        merge(text(first, last), tmp_path / str(i))
        results.append((tmp_path / str(i) / "model.safetensors").read_bytes())
    assert results[0] == results[1]
    assert len(set(results)) == 3


def test_nan_in_a_stage_names_the_model(models: Path, tmp_path: Path) -> None:
    state = load(models / "expert_a")
    state["model.norm.weight"][0] = float("nan")
    bad = save(tmp_path / "bad", state)
    first: dict[str, Any] = {"name": "first", **recipe(models, "linear")}
    first["models"][0]["model"] = str(bad)
    with pytest.raises(NonFiniteError, match=r"model\.norm\.weight of model .*/bad holds"):
        merge(text(first, second("first", models, "ties")), tmp_path / "out")


def test_whole_model_shares_are_of_one_model(tmp_path: Path) -> None:
    """Where models lack tensors, the first expert of one tensor is not that of another."""
    zero = {n: torch.zeros(20, 10) for n in ("layers.0.w", "layers.1.w")}
    large, small = torch.randn(20, 10) + 100, torch.randn(20, 10)
    save(tmp_path / "base", zero)
    save(tmp_path / "expert_a", {"layers.0.w": large})
    save(tmp_path / "expert_b", {"layers.1.w": small})
    save(tmp_path / "expert_c", zero)
    parameters = {"density": 0.5, "granularity": "model"}
    document = recipe(tmp_path, "ties", 3, parameters=parameters, missing="available")
    merge(document, tmp_path / "out")
    kept = {name: int(t.count_nonzero()) for name, t in load(tmp_path / "out").items()}
    assert kept == {"layers.0.w": 100, "layers.1.w": 100}


def test_inputs_that_the_recipes_dtype_does_not_hold(tmp_path: Path) -> None:
    for name in ("base", "expert_a", "expert_b"):
        save(tmp_path / name, {"w": torch.tensor([1.0, 1e6])})
    document = recipe(tmp_path, "task_arithmetic", dtype="float16")
    with pytest.raises(NonFiniteError, match=r"recipe's `dtype`, float16, does not hold"):
        merge(document, tmp_path / "out")
    merge(document | {"dtype": "bfloat16"}, tmp_path / "out")


def test_what_a_stage_gives_outlives_the_next_read() -> None:
    passed = CopyTask("w", (4,), _Reused(), torch.float32, Options())
    source = StageSource("stage", passed, None)
    first = source.read(0, 2, 0)
    source.read(2, 2, 0)
    assert first.tolist() == [0, 1]


class _Reused:
    """Reads into one buffer, as files do."""

    model, name, shape, dtype = "m", "w", (4,), torch.float32
    buffer = torch.zeros(2)

    def prepare(self) -> Work:
        yield from ()

    def read(self, start: int, size: int, slot: int) -> torch.Tensor:
        return self.buffer.copy_(torch.arange(start, start + size))
