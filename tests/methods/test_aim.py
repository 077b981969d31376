"""AIM: hand-computed, and as the second stage of a recipe on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_evidence import write_means
from small_models import assert_same, family, load
from torch import Tensor

from mergewise import merge, merge_state_dicts
from mergewise.errors import RecipeError
from mergewise.methods import get_method
from mergewise.plan import build_plan


def aim(base: Tensor, merged: Tensor, strength: Tensor | None, **parameters: Any) -> Tensor:
    other = {"other": torch.ones(2)}
    known = {"other": torch.ones(2)} | ({} if strength is None else {"w": strength})
    return merge_state_dicts(
        [{"w": merged} | other],
        "aim",
        base={"w": base} | other,
        parameters=parameters,
        base_evidence={"input_moments": known},
    )["w"]


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_strongest_channels_keep_least() -> None:
    strength = torch.tensor([4.0, 2.0, 1.0])
    got = aim(torch.zeros(2, 3), torch.ones(2, 3), strength)
    torch.testing.assert_close(got, torch.tensor([[0.4, 0.7, 0.85]] * 2))
    torch.testing.assert_close(aim(torch.zeros(3), torch.ones(3), strength), got[0])


def test_weights_stored_inputs_by_outputs() -> None:
    got = aim(torch.zeros(3, 2), torch.ones(3, 2), torch.tensor([4.0, 2.0, 1.0]))
    torch.testing.assert_close(got, torch.tensor([[0.4, 0.7, 0.85]] * 2).T)


def test_convolutions_are_relaxed_by_the_elements_of_their_patches() -> None:
    strength = torch.arange(1.0, 13.0)
    got = aim(torch.zeros(4, 3, 2, 2), torch.ones(4, 3, 2, 2), strength, omega=0.0)
    torch.testing.assert_close(got, (1 - strength / 12).reshape(1, 3, 2, 2).expand(4, 3, 2, 2))


def test_the_ends_are_exact() -> None:
    base, merged, strength = draw(0, 50, 7), draw(1, 50, 7), draw(2, 7).abs()
    assert torch.equal(aim(base, merged, strength, omega=1.0), merged)
    got = aim(base, merged, strength, omega=0.0)
    strongest = int(strength.argmax())
    assert torch.equal(got[:, strongest], base[:, strongest])
    assert not torch.isclose(got, base).all(0)[torch.arange(7) != strongest].any()


def test_one_element_and_silent_inputs() -> None:
    assert aim(torch.zeros(1), torch.ones(1), torch.tensor([3.0])).item() == pytest.approx(0.4)
    assert aim(torch.zeros(1), torch.ones(1), torch.zeros(1)).item() == 1.0
    got = aim(torch.zeros(1, 2), torch.ones(1, 2), torch.zeros(2))
    assert torch.equal(got, torch.ones(1, 2))


def test_what_the_evidence_does_not_describe_is_kept() -> None:
    merged = draw(0, 3, 4)
    assert torch.equal(aim(torch.zeros(3, 4), merged, None), merged)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return family(tmp_path, dtype=torch.float32)


def evidence(root: Path) -> dict[str, dict[str, Tensor]]:
    described = {
        name: draw(len(name), tensor.shape[-1]).abs() + 0.1
        for name, tensor in load(root / "base").items()
        if "embed" not in name
    }
    write_means(root / "base.inputs", get_method("aim"), {"input_moments": described})
    return {"input_moments": described}


def document(root: Path, listed: bool = True) -> list[dict[str, Any]]:
    first = {
        "name": "soup",
        "merge_method": "linear",
        "models": [
            {"model": str(root / f"expert_{c}"), "parameters": {"weight": 0.5}} for c in "ab"
        ],
    }
    base = {"model": str(root / "base"), "evidence": str(root / "base.inputs")}
    last = {
        "merge_method": "aim",
        "base_model": str(root / "base"),
        "models": [*([base] if listed else []), {"model": "soup"}],
    }
    return [first, last]


def written(root: Path, documents: list[dict[str, Any]]) -> Path:
    import yaml

    path = root / "aim.yml"
    path.write_text(yaml.safe_dump_all(documents))
    return path


def test_as_a_second_stage(root: Path) -> None:
    known = evidence(root)
    merge(written(root, document(root)), root / "out")
    experts = [load(root / f"expert_{c}") for c in "ab"]
    soup = merge_state_dicts(experts, "linear", parameters={"weight": 0.5})
    base = load(root / "base")
    direct = merge_state_dicts([soup], "aim", base=base, base_evidence=known)
    assert_same(load(root / "out"), direct)
    name = "model.embed_tokens.weight"
    assert torch.equal(direct[name], soup[name])
    assert not torch.equal(direct["lm_head.weight"], soup["lm_head.weight"])


def test_a_base_without_evidence_is_told_where_to_put_it(root: Path) -> None:
    with pytest.raises(RecipeError, match=r"aim reads input_moments of the base") as caught:
        build_plan(written(root, document(root, listed=False)))
    assert "list it under `models:` too" in str(caught.value)
