"""Recipes whose result is an adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_adapters import dense, lora
from small_models import State, contents, llama_config, llama_shapes, load, random_state, save

import mergewise
from mergewise.engine import merge as engine_merge
from mergewise.errors import (
    IncompatibleModelsError,
    MergewiseError,
    NonFiniteError,
    OutputError,
    RecipeError,
)
from mergewise.forms import MadeAdapter, merge_adapters

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
STATE = random_state(llama_shapes(), 0, torch.float32)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save(tmp_path / "base", STATE, llama_config(llama_shapes(), torch_dtype="float32"))


def pair(folder: Path, **more: Any) -> list[Path]:
    return [
        lora(folder / "a", STATE, [Q, DOWN], rank=3, seed=1, **more),
        lora(folder / "b", STATE, [Q, DOWN], rank=3, seed=2, **more),
    ]


def recipe(base: Path, models: list[Any], form: Any, method: str = "task_arithmetic",
           each: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:  # fmt: skip
    named = [{"model": str(m), "parameters": each or {"weight": 0.5}} for m in models]
    based = {} if method == "linear" else {"base_model": str(base)}
    return {"merge_method": method, "models": named, "form": form, **based, **more}


def on(base: Path, adapters: list[Path]) -> list[str]:
    return [f"{base}+{adapter}" for adapter in adapters]


def delta(adapter: Path) -> State:
    return {n: t - STATE[n].double() for n, t in dense(STATE, adapter).items()}


def near(found: State, wanted: State, tolerance: float = 1e-5) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        assert torch.allclose(tensor, wanted[name], atol=tolerance), name


@pytest.mark.parametrize("method", ["task_arithmetic", "linear"])
def test_a_weighted_sum_is_exact(method: str, base: Path, tmp_path: Path) -> None:
    adapters = pair(tmp_path)
    made = mergewise.merge(
        recipe(base, on(base, adapters), "adapter", method), tmp_path / "out", device="cpu"
    )
    assert isinstance(made, MadeAdapter)
    assert [layer.rank for layer in made.layers] == [6, 6]
    first, second = map(delta, adapters)
    near(delta(tmp_path / "out"), {n: (d + second[n]) / 2 for n, d in first.items()}, 1e-7)
    # the same as without a recipe
    merge_adapters(adapters, tmp_path / "direct")
    near(delta(tmp_path / "out"), delta(tmp_path / "direct"), 1e-7)


def test_parameters_by_tensor_apply(base: Path, tmp_path: Path) -> None:
    adapters = pair(tmp_path)
    weight = [{"filter": "self_attn", "value": 2.0}, {"value": -1.0}]
    made = recipe(base, on(base, adapters)[:1], "adapter", each={"weight": weight})
    mergewise.merge(made, tmp_path / "out", device="cpu")
    found, wanted = delta(tmp_path / "out"), delta(adapters[0])
    near({Q: found[f"{Q}.weight"]}, {Q: 2 * wanted[f"{Q}.weight"]})
    near({DOWN: found[f"{DOWN}.weight"]}, {DOWN: -wanted[f"{DOWN}.weight"]})


@pytest.mark.parametrize("method", ["ties", "dare_ties"])
def test_any_method_cut_to_a_rank(method: str, base: Path, tmp_path: Path) -> None:
    """What `mergewise lora extract` makes of the merged model."""
    models = on(base, pair(tmp_path))
    each = {"weight": 0.5, "density": 0.6}
    given = recipe(base, models, {"name": "adapter", "energy": 1.0}, method, each, seed=3)
    made = mergewise.merge(given, tmp_path / "out", device="cpu")
    assert isinstance(made, MadeAdapter) and made.adapter and made.adapter.error < 1e-5
    del given["form"]
    mergewise.merge(given | {"dtype": "float32"}, tmp_path / "dense", device="cpu")
    merged = load(tmp_path / "dense")
    near(delta(tmp_path / "out"), {n: t.double() - STATE[n] for n, t in merged.items()})
    assert any(not torch.equal(merged[n], STATE[n]) for n in merged)


def test_models_that_are_no_adapters(base: Path, tmp_path: Path) -> None:
    tuned = {n: t + 0.01 * torch.ones_like(t) for n, t in STATE.items()}
    folder = save(tmp_path / "tuned", tuned, llama_config(llama_shapes(), torch_dtype="float32"))
    form = {"name": "adapter", "rank": 1}
    each = {"weight": 1.0}
    mergewise.merge(recipe(base, [folder], form, each=each), tmp_path / "out", device="cpu")
    found = dense(STATE, tmp_path / "out")
    near(found, {n: t.double() for n, t in tuned.items()})
    with pytest.raises(RecipeError, match=r"gives dense matrices here .* add `rank`"):
        mergewise.merge(recipe(base, [folder], "adapter", each=each), tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_factors_apart(base: Path, tmp_path: Path) -> None:
    adapters = pair(tmp_path)
    form = {"name": "adapter", "space": "factor"}
    mergewise.merge(recipe(base, on(base, adapters), form), tmp_path / "out", device="cpu")
    merge_adapters(adapters, tmp_path / "direct", space="factor")
    near(delta(tmp_path / "out"), delta(tmp_path / "direct"))
    other = lora(tmp_path / "other", STATE, [Q], rank=2)
    with pytest.raises(RecipeError, match="with equal ranks"):
        mergewise.merge(recipe(base, on(base, [adapters[0], other]), form), tmp_path / "no")


def test_inputs_are_not_rounded_but_factors_are(base: Path, tmp_path: Path) -> None:
    """Of weights in bfloat16 nothing would be left of a small change."""
    adapter = lora(tmp_path / "a", STATE, [Q], alpha=1e-3)
    given = recipe(base, on(base, [adapter]), {"name": "adapter", "rank": 8}, "ties",
                   {"weight": 1.0, "density": 1.0}, dtype="bfloat16")  # fmt: skip
    mergewise.merge(given, tmp_path / "out", device="cpu")
    stored = load(tmp_path / "out")
    assert {t.dtype for t in stored.values()} == {torch.bfloat16}
    found, wanted = delta(tmp_path / "out")[f"{Q}.weight"], delta(adapter)[f"{Q}.weight"]
    assert float((found - wanted).norm() / wanted.norm()) < 0.02


def test_whole_tensors_stay_whole(base: Path, tmp_path: Path) -> None:
    norm = {"model.norm.weight": torch.full((16,), 3.0)}
    adapter = lora(tmp_path / "a", STATE, [Q], whole=norm, bias="all")
    given = recipe(base, on(base, [adapter]), "adapter", each={"weight": 0.5})
    made = mergewise.merge(given, tmp_path / "out", device="cpu")
    assert isinstance(made, MadeAdapter) and made.adapter
    assert made.adapter.whole == ("model.norm.weight",)
    wanted = (STATE["model.norm.weight"] + 3.0) / 2
    found = dense(STATE, tmp_path / "out")["model.norm.weight"]
    assert torch.allclose(found, wanted.double(), atol=1e-6)


def test_what_lies_beside_it(base: Path, tmp_path: Path) -> None:
    given = recipe(base, on(base, pair(tmp_path)), "adapter")
    mergewise.merge(given, tmp_path / "out", device="cpu")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "mergekit_config.yml",
                     "mergewise_provenance.json"}  # fmt: skip
    record = json.loads((tmp_path / "out/mergewise_provenance.json").read_text())
    assert len(record["inputs"]) == 3
    before = contents(tmp_path / "out")
    with pytest.raises(MergewiseError, match="overwrite"):
        mergewise.merge(given, tmp_path / "out", device="cpu")
    mergewise.merge(given, tmp_path / "out", device="cpu", overwrite=True)
    assert contents(tmp_path / "out") == before
    # and a recipe can use it
    mergewise.merge(
        recipe(base, on(base, [tmp_path / "out"]), "adapter"), tmp_path / "again", device="cpu"
    )


FORMS: dict[str, tuple[Any, str]] = {
    "unknown": ("moe", "adapter; got moe"),
    "a list": (["adapter"], "form: a name, or a mapping"),
    "no name": ({"rank": 4}, "form: a name, or a mapping"),
    "rank 0": ({"name": "adapter", "rank": 0}, "form.rank: a whole number from 1 on"),
    "rank true": ({"name": "adapter", "rank": True}, "form.rank: a whole number"),
    "rank text": ({"name": "adapter", "rank": "many"}, "form.rank: a whole number"),
    "energy": ({"name": "adapter", "energy": 1.5}, "form.energy: a share above 0"),
    "space": ({"name": "adapter", "space": "outer"}, "form.space: delta or factor"),
    "rest": ({"name": "adapter", "rest": {"a": 1}}, "form.rest: whole or skip"),
    "key": ({"name": "adapter", "ranks": 4}, "unknown key `ranks`"),
    "both": ({"name": "adapter", "space": "factor", "rank": 4}, "leave rank and energy out"),
}


@pytest.mark.parametrize("case", FORMS)
def test_mistakes_have_a_place(case: str, base: Path, tmp_path: Path) -> None:
    form, words = FORMS[case]
    with pytest.raises(RecipeError, match=words.replace(".", r"\.").replace("(", r"\(")):
        mergewise.merge(recipe(base, [base], form), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_refusals_write_nothing(base: Path, tmp_path: Path) -> None:
    models, out = on(base, pair(tmp_path)), tmp_path / "out"
    with pytest.raises(RecipeError, match=r"ties gives dense matrices here .* and 1 more"):
        mergewise.merge(recipe(base, models, "adapter", "ties"), out)
    for folder in (base, tmp_path / "a"):
        before = contents(folder)
        with pytest.raises(OutputError, match="of the input"):
            mergewise.merge(recipe(base, models, "adapter"), folder, overwrite=True)
        assert contents(folder) == before
    with pytest.raises(RecipeError, match="without an adapter"):
        mergewise.merge(recipe(Path(models[0]), models, "adapter"), out)
    with pytest.raises(RecipeError, match="of which model"):
        mergewise.merge(recipe(base, [base], "adapter", "linear"), out)
    with pytest.raises(RecipeError, match=r"form: adapter is made by mergewise\.merge"):
        engine_merge(recipe(base, models, "adapter"), out)
    with pytest.raises(MergewiseError, match="are of no use"):
        mergewise.merge(recipe(base, models, "adapter"), out, allow_nonfinite=True)
    with pytest.raises(MergewiseError, match="is no adapter to extract"):
        mergewise.merge(recipe(base, [base], "adapter", "linear", base_model=str(base)), out)
    two = [recipe(base, models, "adapter") | {"name": "one"}, recipe(base, ["one"], "adapter")]
    with pytest.raises(RecipeError, match="only the last stage"):
        mergewise.merge("---\n".join(json.dumps(d) + "\n" for d in two), out)
    broken = {n: t * torch.nan for n, t in load(tmp_path / "a").items()}
    from safetensors.torch import save_file

    save_file(broken, tmp_path / "a/adapter_model.safetensors")
    for form in ("adapter", {"name": "adapter", "rank": 2}):
        with pytest.raises(NonFiniteError):
            mergewise.merge(recipe(base, models, form), out)
    assert not out.exists()


def test_layers_may_not_move(base: Path, tmp_path: Path) -> None:
    sources = [{"sources": [{"model": str(base), "layer_range": [i, i + 1]}]} for i in (1, 0, 1)]
    given = {"merge_method": "passthrough", "slices": sources, "base_model": str(base),
             "form": {"name": "adapter", "rank": 4}}  # fmt: skip
    with pytest.raises((IncompatibleModelsError, RecipeError)):
        mergewise.merge(given, tmp_path / "out")
    assert not (tmp_path / "out").exists()
