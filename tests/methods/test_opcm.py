"""OPCM: the worked examples of its authors' arithmetic, and one more model later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from _driver import merge_tensor
from safetensors.torch import load_file, save_file

from mergewise import merge, merge_state_dicts

State = dict[str, torch.Tensor]


def delta(*deltas: Any, **more: Any) -> torch.Tensor:
    given = [torch.as_tensor(d, dtype=torch.float32) for d in deltas]
    return merge_tensor(given, "opcm", torch.zeros_like(given[0]), **more)


def diag(*values: float) -> torch.Tensor:
    return torch.diag(torch.tensor(values))


def test_worked_examples() -> None:
    merged = delta(diag(3, 2, 1), torch.ones(3, 3))
    expected = torch.tensor([[3.0, 1, 1], [1, 2, 1], [1, 1, 1]]) / 1.326717
    torch.testing.assert_close(merged, expected, rtol=1e-5, atol=1e-5)
    merged = delta(diag(2, 1), torch.ones(2, 2))
    expected = torch.tensor([[1.601083, 0.800542], [0.800542, 0.800542]])
    torch.testing.assert_close(merged, expected, rtol=1e-5, atol=1e-5)


def test_the_value_that_crosses_alpha() -> None:
    # shares 2/3 and 1: none is inside at 0.5, one if the crossing is
    inside = delta(diag(2, 1), torch.ones(2, 2), crossing="include", norm="tensor")
    torch.testing.assert_close(inside[0, 1], inside[1, 1])
    every = delta(diag(3, 2, 1), torch.ones(3, 3), alpha=1.0)
    torch.testing.assert_close(every / every.norm(), diag(3, 2, 1) / 14**0.5)


def test_one_model_is_that_model() -> None:
    a = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(delta(a), a)


def test_what_is_added_is_orthogonal_and_the_length_is_the_mean() -> None:
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(6, 9, generator=draw) for _ in range(2))
    merged = delta(a, b)
    torch.testing.assert_close(merged.norm(), (a.norm() + b.norm()) / 2)
    added = merged * (a * a).sum() / (merged * a).sum() - a
    assert abs(float((added * a).sum())) < 1e-4
    assert float(added.norm()) > 1


def models() -> tuple[State, list[State]]:
    draw = torch.Generator().manual_seed(5)
    shapes = {
        "model.layers.0.mlp.up_proj.weight": (12, 8),
        "model.layers.0.self_attn.q_proj.weight": (8, 8),
        "model.norm.weight": (8,),
    }
    base = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    experts = [
        {name: w + 0.1 * torch.randn(w.shape, generator=draw) for name, w in base.items()}
        for _ in range(4)
    ]
    return base, experts


def length(state: State, base: State) -> torch.Tensor:
    return torch.cat([(state[name] - base[name]).flatten() for name in base]).norm()


def test_one_division_at_the_end_is_the_authors_after_each_model() -> None:
    base, experts = models()
    merged = merge_state_dicts(experts, "opcm", base=base)
    mean = torch.stack([length(e, base) for e in experts]).mean()
    torch.testing.assert_close(length(merged, base), mean)
    running, divisor = experts[0], 1.0
    for count, expert in enumerate(experts[1:], 1):
        added = {"merged": count, "divisor": divisor}
        before = running
        running = merge_state_dicts([running, expert], "opcm", base=base, parameters=added)
        # the biases' and norms' share says what it was divided by
        name = "model.norm.weight"
        total = divisor * (before[name] - base[name]) + expert[name] - base[name]
        divisor = float(total.norm() / (running[name] - base[name]).norm())
    torch.testing.assert_close(running, merged, rtol=1e-4, atol=1e-5)


def test_tensors_outside_of_the_running_sum() -> None:
    base, experts = models()
    merged = merge_state_dicts(experts, "opcm", base=base, parameters={"otherwise": "base"})
    assert torch.equal(merged["model.norm.weight"], base["model.norm.weight"])


def save(folder: Path, state: State) -> Path:
    folder.mkdir()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


def recipe(base: Path, models: list[Path], **parameters: Any) -> str:
    listed = "\n".join(f"  - model: {model}" for model in models)
    return (
        f"merge_method: opcm\nbase_model: {base}\nmodels:\n{listed}\n"
        f"parameters: {json.dumps(parameters)}\ndtype: float32\n"
    )


def test_a_model_is_added_later_with_what_the_provenance_kept(tmp_path: Path) -> None:
    base, experts = models()
    at = save(tmp_path / "base", base)
    each = [save(tmp_path / f"e{i}", e) for i, e in enumerate(experts)]
    merge(recipe(at, each), tmp_path / "all")
    merge(recipe(at, each[:3]), tmp_path / "three")
    record = json.loads((tmp_path / "three" / "mergewise_provenance.json").read_text())
    (kept,) = record["settings"]["whole_model"]
    assert kept["merged"] == 3
    state = {"merged": kept["merged"], "divisor": kept["divisor"]}
    merge(recipe(at, [tmp_path / "three", each[3]], **state), tmp_path / "four")
    torch.testing.assert_close(
        load_file(tmp_path / "four" / "model.safetensors"),
        load_file(tmp_path / "all" / "model.safetensors"),
        rtol=1e-5, atol=1e-6,
    )  # fmt: skip
    again = json.loads((tmp_path / "four" / "mergewise_provenance.json").read_text())
    whole = json.loads((tmp_path / "all" / "mergewise_provenance.json").read_text())
    for key, value in whole["settings"]["whole_model"][0].items():
        assert again["settings"]["whole_model"][0][key] == pytest.approx(value, rel=1e-5)
