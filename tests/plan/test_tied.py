"""Output heads that are the embedding: written once and said so, or written and said not so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import llama_config, llama_shapes, load, near, random_state, save

from mergewise import merge, plan

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def model(root: Path, name: str, *, tied: bool, head: float | None, seed: int = 0) -> str:
    """A model whose head is `head` times its embedding; None leaves the head out of the file."""
    shapes = llama_shapes(head=False)
    state = near(random_state(shapes, 0), seed)
    if head is not None:
        state[HEAD] = state[EMBEDDING] * head
    config = llama_config(shapes, tie_word_embeddings=tied)
    return str(save(root / name, state, config))


def linear(*models: str, **more: Any) -> dict[str, Any]:
    sources = [{"model": m} for m in models]
    return {"merge_method": "linear", "models": sources, "parameters": {"weight": 1}, **more}


def merged(document: dict[str, Any], out: Path) -> tuple[Any, bool]:
    merge(document, out)
    return load(out), json.loads((out / "config.json").read_text())["tie_word_embeddings"]


@pytest.mark.parametrize("head", [None, 1.0])
def test_both_tied(head: float | None, tmp_path: Path) -> None:
    a = model(tmp_path, "a", tied=True, head=None, seed=1)
    b = model(tmp_path, "b", tied=True, head=head, seed=2)
    state, tied = merged(linear(a, b), tmp_path / "out")
    assert tied and HEAD not in state
    if head:
        assert "written once" in plan(linear(a, b)).output.omitted[HEAD]


@pytest.mark.parametrize("order", [0, 1])
def test_tied_and_untied_with_another_head(order: int, tmp_path: Path) -> None:
    a = model(tmp_path, "a", tied=True, head=None, seed=1)
    b = model(tmp_path, "b", tied=False, head=3.0, seed=2)
    state, tied = merged(linear(*[(a, b), (b, a)][order]), tmp_path / "out")
    assert not tied
    one, other = load(Path(a))[EMBEDDING].float(), load(Path(b))[HEAD].float()
    assert torch.equal(state[HEAD], ((one + other) / 2).bfloat16())


@pytest.mark.parametrize("order", [0, 1])
def test_tied_and_untied_with_the_same_head(order: int, tmp_path: Path) -> None:
    a = model(tmp_path, "a", tied=True, head=None, seed=1)
    b = model(tmp_path, "b", tied=False, head=1.0, seed=2)
    state, tied = merged(linear(*[(a, b), (b, a)][order]), tmp_path / "out")
    assert tied and HEAD not in state


def test_untied_with_equal_heads_stay_untied(tmp_path: Path) -> None:
    a = model(tmp_path, "a", tied=False, head=1.0, seed=1)
    b = model(tmp_path, "b", tied=False, head=1.0, seed=2)
    state, tied = merged(linear(a, b), tmp_path / "out")
    assert not tied and torch.equal(state[HEAD], state[EMBEDDING])


def test_a_tied_model_with_a_stale_head_in_its_file(tmp_path: Path) -> None:
    """Its loader ignores that head, and so must a merge."""
    a = model(tmp_path, "a", tied=True, head=7.0, seed=1)
    b = model(tmp_path, "b", tied=False, head=2.0, seed=2)
    state, tied = merged(linear(a, b), tmp_path / "out")
    mean = (load(Path(a))[EMBEDDING].float() + load(Path(b))[HEAD].float()) / 2
    assert not tied and torch.equal(state[HEAD], mean.bfloat16())


def test_a_head_merged_by_other_weights_unties(tmp_path: Path) -> None:
    """Filters may treat head and embedding apart; then equal inputs give different outputs."""
    a = model(tmp_path, "a", tied=True, head=None, seed=1)
    b = model(tmp_path, "b", tied=False, head=1.0, seed=2)
    document = linear(a, b)
    document["models"][0]["parameters"] = {
        "weight": [{"filter": "embed", "value": 3}, {"value": 1}]
    }
    document["models"][1]["parameters"] = {"weight": 1}
    del document["parameters"]
    state, tied = merged(document, tmp_path / "out")
    assert HEAD in state or tied


@pytest.mark.parametrize(("first", "last"), [(True, False), (False, True)])
def test_slices_of_a_tied_and_an_untied_model(first: bool, last: bool, tmp_path: Path) -> None:
    """The head is the last model's, even where it is its embedding."""
    a = model(tmp_path, "a", tied=first, head=None if first else 3.0, seed=1)
    b = model(tmp_path, "b", tied=last, head=None if last else 3.0, seed=2)
    slices = [{"sources": [{"model": m, "layer_range": [k, k + 1]}]} for k, m in enumerate((a, b))]
    state, tied = merged({"merge_method": "passthrough", "slices": slices}, tmp_path / "out")
    assert not tied
    assert torch.equal(state[HEAD], load(Path(b))[EMBEDDING if last else HEAD])
    assert torch.equal(state[EMBEDDING], load(Path(a))[EMBEDDING])


def test_copied_heads_are_compared_by_content(tmp_path: Path) -> None:
    a = model(tmp_path, "a", tied=False, head=3.0, seed=1)
    b = model(tmp_path, "b", tied=True, head=None, seed=2)
    document = linear(b, base_model=a, merge_method="task_arithmetic", exclude=[HEAD, EMBEDDING])
    state, tied = merged(document, tmp_path / "out")
    assert not tied
    assert torch.equal(state[HEAD], load(Path(a))[HEAD])
