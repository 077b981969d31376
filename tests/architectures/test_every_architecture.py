"""Every architecture of the zoo merges, reloads complete, and computes the merge in memory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from _zoo import BY_ID, Entry
from safetensors.torch import load_file

from mergewise import merge, merge_state_dicts, plan
from mergewise.plan import StagePlan

State = dict[str, torch.Tensor]
WEIGHTS = {"expert_a": 0.4, "expert_b": 0.7}
SLOPES = {"expert_a": (0.2, 0.9), "expert_b": (0.8, 0.3)}


@pytest.fixture(scope="module", params=BY_ID)
def saved(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Entry, Path, dict[str, Any]]:
    """A base and two experts of it, on disk and in memory."""
    entry = BY_ID[request.param]
    root = tmp_path_factory.mktemp(entry.id)
    models = {"base": entry.make(), "expert_a": entry.expert(1), "expert_b": entry.expert(2)}
    for name, model in models.items():
        model.save_pretrained(root / name)
    return entry, root, models


def recipe(root: Path, method: str, **parameters: dict[str, Any]) -> dict[str, Any]:
    return {
        "merge_method": method,
        "base_model": str(root / "base"),
        "models": [{"model": str(root / name), "parameters": parameters[name]} for name in WEIGHTS],
    }


def reloaded(entry: Entry, folder: Path) -> Any:
    cls = getattr(transformers, entry.model)
    model, info = cls.from_pretrained(folder, output_loading_info=True)
    odd = {key: info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    assert not any(odd.values()), odd
    return model


def with_state(entry: Entry, state: State) -> Any:
    model = entry.make(seed=7)
    model.load_state_dict(state)
    return model


def account(stage: StagePlan, names: set[str]) -> None:
    """Every tensor of every input goes into an output tensor, or is named as left out."""
    used = {item.meta.name for tensor in stage.tensors.values() for item in tensor.inputs}
    assert used | stage.omitted.keys() == names == stage.tensors.keys() | stage.omitted.keys()
    for name, tensor in stage.tensors.items():
        assert tensor.fate == "copy" or len(tensor.inputs) == 3, name


def test_an_elementwise_merge(saved: tuple[Entry, Path, dict[str, Any]], tmp_path: Path) -> None:
    entry, root, models = saved
    document = recipe(root, "task_arithmetic", **{n: {"weight": w} for n, w in WEIGHTS.items()})
    account(plan(document).output, set(load_file(root / "base" / "model.safetensors")))
    merge(document, tmp_path / "out")
    state = merge_state_dicts(
        [models[name].state_dict() for name in WEIGHTS],
        "task_arithmetic",
        base=models["base"].state_dict(),
        parameters={"weight": list(WEIGHTS.values())},
    )
    wanted = entry.run(with_state(entry, state))
    found = entry.run(reloaded(entry, tmp_path / "out"))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, entry.run(models["base"]), atol=1e-4), "nothing was merged"


def test_a_gradient_over_layers(saved: tuple[Entry, Path, dict[str, Any]], tmp_path: Path) -> None:
    entry, root, models = saved
    document = recipe(root, "linear", **{n: {"weight": list(s)} for n, s in SLOPES.items()})
    del document["base_model"]
    rises_over_layers(plan(document).output)
    merge(document, tmp_path / "out")
    states = {name: models[name].state_dict() for name in SLOPES}
    state = {name: sloped(name, states) for name in states["expert_a"]}
    wanted = entry.run(with_state(entry, state))
    found = entry.run(reloaded(entry, tmp_path / "out"))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def rises_over_layers(stage: StagePlan) -> None:
    """The first model's weight is the same within a layer, and rises from layer to layer."""
    towers: dict[str, dict[int, set[float]]] = {}
    for name, tensor in stage.tensors.items():
        found = re.match(r"(.*?\.)(\d+)(\.|$)", name)
        if found and tensor.fate == "merge":
            layers = towers.setdefault(found[1], {})
            layers.setdefault(int(found[2]), set()).add(round(tensor.values["weight"][0], 9))
    assert towers, "no layers"
    for layers in towers.values():
        assert all(len(values) == 1 for values in layers.values())
        rising = [layers[i].pop() for i in sorted(layers)]
        assert rising == sorted(set(rising)) and rising[-1] == pytest.approx(0.9)


def sloped(name: str, states: dict[str, State]) -> torch.Tensor:
    """One tensor's weighted mean; the weights run over the layers of the tensor's tower."""
    tensors = [states[model][name] for model in SLOPES]
    if not tensors[0].is_floating_point():
        return tensors[0]
    t = place(name, states["expert_a"])
    weights = [a + (b - a) * t for a, b in SLOPES.values()]
    mean = sum(w * x for w, x in zip(weights, tensors, strict=True)) / sum(weights)
    if name.endswith("running_var"):  # of both models' activations together
        a, b = (states[model][name.replace("_var", "_mean")] for model in SLOPES)
        return mean + weights[0] * weights[1] * (a - b) ** 2 / sum(weights) ** 2
    return mean


def place(name: str, state: State) -> float:
    found = re.match(r"(.*?\.)(\d+)(\.|$)", name)
    if not found:
        return 0.0
    start = re.compile(re.escape(found[1]) + r"(\d+)(\.|$)")
    count = 1 + max(int(m[1]) for other in state if (m := start.match(other)))
    return int(found[2]) / (count - 1) if count > 1 else 1.0


def test_thresholds_are_those_of_the_tensors_on_disk(
    saved: tuple[Entry, Path, dict[str, Any]], tmp_path: Path
) -> None:
    entry, root, _ = saved
    values = {n: {"weight": w, "density": 0.5} for n, w in WEIGHTS.items()}
    merge(recipe(root, "ties", **values), tmp_path / "out")
    disk = {n: load_file(root / n / "model.safetensors") for n in ("base", *WEIGHTS)}
    wanted = merge_state_dicts(
        [disk[name] for name in WEIGHTS],
        "ties",
        base=disk["base"],
        parameters={"weight": list(WEIGHTS.values()), "density": 0.5},
    )
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == wanted.keys()
    assert [n for n in wanted if not torch.equal(found[n], wanted[n])] == []
    reloaded(entry, tmp_path / "out")
