"""Evidence with numbers that cannot be: refused by name, before anything is merged."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_evidence import evidence_for, write_means
from small_models import family, load, recipe

from mergewise import merge, merge_state_dicts
from mergewise.engine import _run
from mergewise.errors import EvidenceError
from mergewise.methods import all_methods, get_method

NAME = "model.layers.1.mlp.up_proj.weight"
BAD = {"below zero": -0.5, "NaN": math.nan, "infinity": math.inf}
BY_ELEMENT = [
    method.name
    for method in all_methods().values()
    if {(need.positive, need.of) for need in method.needs_at_defaults()} == {(True, "experts")}
]


def damaged(root: Path, method: str, value: float) -> tuple[dict[str, Any], list[Any]]:
    """A recipe whose second expert's evidence has one wrong number, and the evidence."""
    document = recipe(root, method)
    chosen = get_method(method)
    means = evidence_for(chosen, [load(root / f"expert_{letter}") for letter in "ab"]) or []
    for known in means[1].values():
        known[NAME].view(-1)[3] = value
    for model, letter, known in zip(document["models"], "ab", means, strict=True):
        model["evidence"] = str(write_means(root / f"{letter}.evd", chosen, known))
    return document, means


def test_some_methods_read_by_element() -> None:
    assert {"fisher", "ota"} <= set(BY_ELEMENT)


@pytest.mark.parametrize("words", BAD)
@pytest.mark.parametrize("method", BY_ELEMENT)
def test_files_are_refused_before_any_work(
    method: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document, _ = damaged(family(tmp_path), method, BAD[words])
    monkeypatch.setattr(_run._Run, "_write_shards", lambda *_: pytest.fail("it was begun"))
    with pytest.raises(EvidenceError, match=words) as caught:
        merge(document, tmp_path / "out", device="cpu")
    statistic = next(n for n in get_method(method).needs_at_defaults()).statistic
    assert f"{tmp_path / 'b.evd'}: {statistic} of {NAME} holds" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", BAD)
@pytest.mark.parametrize("method", BY_ELEMENT)
def test_memory_is_refused(method: str, words: str, tmp_path: Path) -> None:
    root = family(tmp_path)
    document, means = damaged(root, method, BAD[words])
    models = [load(root / f"expert_{letter}") for letter in "ab"]
    given = document.get("parameters", {})
    base = load(root / "base") if "base_model" in document else None
    with pytest.raises(EvidenceError, match=rf"evidence\[1\]: \w+ of {NAME} holds .*{words}"):
        merge_state_dicts(models, method, base=base, parameters=given, evidence=means)


@pytest.mark.parametrize("rule", ["fisher", "activation", "gain", "activation_gain"])
def test_scores_are_refused(rule: str) -> None:
    model = {"w": torch.ones(2, 2)}
    known = {"fisher": {"w": torch.ones(2, 2)}, "input_moments": {"w": torch.ones(2)}}
    for values in known.values():
        values["w"].view(-1)[0] = -1
    with pytest.raises(EvidenceError, match="of w holds numbers below zero"):
        merge_state_dicts(
            [model],
            "ties",
            base={"w": torch.zeros(2, 2)},
            parameters={"weight": 1.0, "score": rule},
            evidence=[known],
        )
