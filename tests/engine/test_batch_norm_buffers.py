"""Running statistics of batch norms: pooled by shares, merged or copied as the recipe says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergewise import merge, merge_state_dicts, plan
from mergewise.errors import MergewiseError, RecipeError

State = dict[str, torch.Tensor]


def norm(mean: list[float], var: list[float], start: str = "bn.") -> State:
    return {
        f"{start}weight": torch.ones(len(mean)),
        f"{start}running_mean": torch.tensor(mean),
        f"{start}running_var": torch.tensor(var),
        f"{start}num_batches_tracked": torch.tensor(7),
    }


# x = (0, 2) and y = (4, 4, 4, 8), a third and two thirds of six numbers
X, Y = norm([1.0], [1.0]), norm([5.0], [3.0])
POOLED = torch.tensor([0.0, 2, 4, 4, 4, 8], dtype=torch.float64)


def numbers(state: State) -> tuple[float, float]:
    return state["bn.running_mean"].item(), state["bn.running_var"].item()


def test_the_mixture_of_two_samples() -> None:
    found = merge_state_dicts([X, Y], "linear", parameters={"weight": [1.0, 2.0]})
    wanted = POOLED.mean().item(), POOLED.var(correction=0).item()
    assert numbers(found) == pytest.approx(wanted)
    assert found["bn.num_batches_tracked"] == 7


def test_merged_like_any_tensor_on_request() -> None:
    found = merge_state_dicts(
        [X, Y], "linear", parameters={"weight": [1.0, 2.0]}, batch_norm="merge"
    )
    assert numbers(found) == pytest.approx((11 / 3, 7 / 3))


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ([0.25, 0.25], (0.5, 0.25, 0.25)),  # the base has the rest
        ([0.9, 0.9], (0.0, 0.5, 0.5)),
        ([-1.0, 0.5], (0.5, 0.0, 0.5)),
        ([0.0, 0.0], (1.0, 0.0, 0.0)),
    ],
)
def test_shares_of_task_vectors(weights: list[float], shares: tuple[float, ...]) -> None:
    models = [norm([0.0], [2.0]), X, Y]
    found = merge_state_dicts(
        models[1:], "task_arithmetic", base=models[0], parameters={"weight": weights}
    )
    means, variances = (0.0, 1.0, 5.0), (2.0, 1.0, 3.0)
    mean = sum(w * m for w, m in zip(shares, means, strict=True))
    square = sum(w * (v + m * m) for w, m, v in zip(shares, means, variances, strict=True))
    assert numbers(found) == pytest.approx((mean, square - mean**2))


def test_slerp_shares_by_t_and_others_alike() -> None:
    found = merge_state_dicts([Y], "slerp", base=X, parameters={"t": 0.25})
    assert numbers(found) == pytest.approx((2.0, 0.75 + 0.75 + 0.75 + 0.25 * 9))
    found = merge_state_dicts([X, Y], "karcher")
    assert numbers(found) == pytest.approx((3.0, 2.0 + 4.0))


@pytest.mark.parametrize("method", ["task_arithmetic", "linear"])
def test_a_variance_is_never_negative(method: str) -> None:
    chance = torch.Generator().manual_seed(0)
    models = [
        norm([1e4 + m for m in torch.randn(64, generator=chance).tolist()], [1e-7] * 64)
        for _ in range(3)
    ]
    found = merge_state_dicts(
        models[1:], method, base=models[0] if method != "linear" else None,
        parameters={"weight": [3.0, -2.5]},
    )  # fmt: skip
    assert (found["bn.running_var"] >= 0).all()


def test_equal_models_stay_as_they_are() -> None:
    found = merge_state_dicts([Y, Y, Y], "linear", parameters={"weight": 0.1})
    assert numbers(found) == numbers(Y)


def test_a_mean_without_a_variance_is_an_ordinary_tensor() -> None:
    models = [{"a.running_mean": torch.tensor([v])} for v in (0.0, 1.0)]
    found = merge_state_dicts(
        models[1:], "task_arithmetic", base=models[0], parameters={"weight": 3.0}
    )
    assert found["a.running_mean"].item() == 3.0


def test_infinities_are_refused() -> None:
    with pytest.raises(MergewiseError, match="holds NaN or infinity"):
        merge_state_dicts([X, norm([0.0], [torch.inf])], "linear", parameters={"weight": 1.0})


def saved(root: Path, **models: State) -> dict[str, Any]:
    for name, state in models.items():
        (root / name).mkdir()
        save_file(state, root / name / "model.safetensors")
    first, *rest = models
    return {
        "merge_method": "task_arithmetic",
        "base_model": str(root / first),
        "models": [{"model": str(root / name)} for name in rest],
        "parameters": {"weight": 0.25},
    }


def test_a_recipe_pools_says_so_and_explains(tmp_path: Path) -> None:
    document = saved(tmp_path, base=norm([0.0], [2.0]), a=X, b=Y)
    tensor = plan(document).output.tensors["bn.running_var"]
    assert tensor.fate == "pool" and "batch_norm: pool" in tensor.reason
    assert tensor.values["weight"] == [0.5, 0.25, 0.25]
    assert [i.meta.name for i in tensor.means] == ["bn.running_mean"] * 3
    merge(document, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    wanted = merge_state_dicts(
        [X, Y], "task_arithmetic", base=norm([0.0], [2.0]), parameters={"weight": 0.25}
    )
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(("policy", "wanted"), [("merge", (1.5, 2.0)), ("copy", (0.0, 2.0))])
def test_a_recipe_that_says_otherwise(
    policy: str, wanted: tuple[float, float], tmp_path: Path
) -> None:
    document = saved(tmp_path, base=norm([0.0], [2.0]), a=X, b=Y) | {"batch_norm": policy}
    merge(document, tmp_path / "out")
    assert numbers(load_file(tmp_path / "out" / "model.safetensors")) == pytest.approx(wanted)


def test_a_later_stage_pools_what_an_earlier_one_pooled(tmp_path: Path) -> None:
    document = saved(tmp_path, base=norm([0.0], [2.0]), a=X, b=Y)
    text = f"""
name: first
merge_method: linear
models:
  - model: {tmp_path / "a"}
  - model: {tmp_path / "b"}
parameters: {{weight: 1}}
---
merge_method: linear
models:
  - model: {document["base_model"]}
  - model: first
parameters: {{weight: 1}}
"""
    (tmp_path / "recipe.yml").write_text(text)
    merge(tmp_path / "recipe.yml", tmp_path / "out")
    inner = (3.0, 2.0 + 4.0)
    wanted = (1.5, (2.0 + inner[1]) / 2 + 1.5**2)
    assert numbers(load_file(tmp_path / "out" / "model.safetensors")) == pytest.approx(wanted)


def test_an_unknown_policy_is_refused(tmp_path: Path) -> None:
    document = saved(tmp_path, base=X, a=Y) | {"batch_norm": "average"}
    with pytest.raises(RecipeError, match="batch_norm: one of pool, merge, copy expected"):
        plan(document)
