"""State dicts merged in memory: tied tensors, devices, and memory that runs out."""

from __future__ import annotations

import pytest
import torch

from mergewise import merge, merge_state_dicts
from mergewise.engine import _memory
from mergewise.engine._device import explained_memory
from mergewise.engine._work import Work
from mergewise.errors import MergewiseError
from mergewise.recipe import load_recipe

Tensor = torch.Tensor


def model(seed: int, tied: bool = True) -> dict[str, Tensor]:
    """A state dict as transformers gives it: the tied head is the embedding's own memory."""
    table = torch.randn(30, 8, generator=torch.Generator().manual_seed(seed))
    head = table.detach() if tied else table + 1
    return {"embed.weight": table, "norm.weight": table[0].clone(), "head.weight": head}


@pytest.mark.parametrize("method", ["della", "dare_ties", "linear"])
def test_tied_tensors_are_merged_once(method: str) -> None:
    parameters = {"weight": 0.5} | ({"density": 0.5} if method != "linear" else {})
    out = merge_state_dicts([model(1), model(2)], method, base=model(0), parameters=parameters)
    assert out["head.weight"] is out["embed.weight"]
    assert list(out) == list(model(0))


def test_tensors_tied_in_some_models_only_are_two() -> None:
    models = [model(1), model(2, tied=False)]
    out = merge_state_dicts(models, "linear", parameters={"weight": 0.5})
    assert not torch.equal(out["head.weight"], out["embed.weight"])


def test_parts_of_one_memory_are_not_tied() -> None:
    whole = torch.arange(6.0)
    state = {"a": whole[:3], "b": whole[3:], "c": whole.view(2, 3), "d": whole.view(3, 2)}
    out = merge_state_dicts([state, state], "linear", parameters={"weight": 0.5})
    assert all(torch.equal(out[name], tensor) for name, tensor in state.items())


def test_the_device_is_checked_as_by_merge() -> None:
    with pytest.raises(MergewiseError, match="expected auto, cpu, or cuda:N"):
        merge_state_dicts([model(1)], "linear", parameters={"weight": 1.0}, device="gpu")


def test_memory_that_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Work:
        raise MemoryError
        yield

    monkeypatch.setattr(_memory, "_fill", fail)
    with pytest.raises(MergewiseError, match="fewer --workers"):
        merge_state_dicts([model(1)], "linear", parameters={"weight": 1.0})


def test_memory_of_a_device_that_runs_out() -> None:
    with (
        pytest.raises(MergewiseError, match=r"memory of cuda:1.*--device cpu"),
        explained_memory("cuda:1"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match="anything else"), explained_memory("cpu"):
        raise RuntimeError("anything else")


def test_options_of_reading_need_a_recipe_yet_to_be_read() -> None:
    recipe = load_recipe({"merge_method": "passthrough", "models": [{"model": "a"}]})
    with pytest.raises(MergewiseError, match="loaded recipe was given"):
        merge(recipe, "nowhere", overrides=["seed=1"])


def test_evidence_that_nothing_reads_is_refused() -> None:
    known = {"fisher": {name: torch.ones_like(t) for name, t in model(1).items()}}
    given = {"base": model(0), "parameters": {"weight": 1.0}, "evidence": [known]}
    for method in ("linear", "ties"):
        with pytest.raises(MergewiseError, match=f"{method} reads no evidence.*got fisher"):
            merge_state_dicts([model(1)], method, **given)
    merge_state_dicts(
        [model(1)], "ties", **given | {"parameters": {"weight": 1, "score": "fisher"}}
    )
    with pytest.raises(MergewiseError, match=r"no evidence of the base.*leave base_evid"):
        merge_state_dicts([model(1)], "ties", **given | {"evidence": None, "base_evidence": known})
    for nothing in ([], [{}], [{"fisher": {}}]):
        merge_state_dicts([model(1)], "ties", **given | {"evidence": nothing})
