"""Adapters merged with one another: exact sums, cut sums, methods, and the space of factors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_adapters import PREFIX, dense, lora, write
from small_models import State, contents, llama_config, llama_shapes, load, random_state, save

import mergewise
from mergewise.errors import (
    CheckpointError,
    IncompatibleModelsError,
    MergewiseError,
    NotBuiltYetError,
    OutputError,
    UnknownMethodError,
)
from mergewise.forms import merge_adapters

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
BASE = random_state(llama_shapes(), 0, torch.float32)


def delta(adapter: Path) -> State:
    found = dense(BASE, adapter)
    return {n: t - BASE[n].double() for n, t in found.items()}


def near(found: State, wanted: State) -> None:
    for name, tensor in found.items():
        assert torch.allclose(tensor, wanted[name], atol=1e-5), name


def three(folder: Path) -> list[Path]:
    """Of other ranks, scales and modules."""
    return [
        lora(folder / "a", BASE, [Q, DOWN], rank=3, alpha=6, seed=1),
        lora(folder / "b", BASE, [Q, DOWN], rank=2, use_rslora=True, seed=2),
        lora(folder / "c", BASE, [Q], rank=4, seed=3, embedded=["model.embed_tokens"]),
    ]


def test_a_sum_is_exact_by_concatenation(tmp_path: Path) -> None:
    adapters, weights = three(tmp_path), [0.5, -1.0, 2.0]
    made = merge_adapters(adapters, tmp_path / "out", weights=weights)
    assert {layer.rank for layer in made.layers} == {9, 5, 4} and made.error < 1e-6
    each = [delta(adapter) for adapter in adapters]
    wanted = {n: sum(w * d[n] for w, d in zip(weights, each, strict=True)) for n in each[0]}
    near(delta(tmp_path / "out"), wanted)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["rank_pattern"][DOWN]) == (9, 5)


def test_a_sum_cut_to_a_rank_is_the_nearest(tmp_path: Path) -> None:
    adapters = three(tmp_path)[:2]
    made = merge_adapters(adapters, tmp_path / "out", rank=2)
    wanted = {n: (d + delta(adapters[1])[n]) / 2 for n, d in delta(adapters[0]).items()}
    found = delta(tmp_path / "out")
    for layer in made.layers:
        s = torch.linalg.svdvals(wanted[layer.name])
        lost = float((wanted[layer.name] - found[layer.name]).norm())
        assert layer.rank == 2 and lost == pytest.approx(float(s[2:].norm()), rel=1e-3)
        assert layer.error == pytest.approx(lost / float(s.norm()), rel=1e-3)


@pytest.mark.parametrize("method", ["ties", "dare_ties", "breadcrumbs", "karcher"])
def test_methods_merge_deltas_as_they_merge_models(method: str, tmp_path: Path) -> None:
    """The engine on BASE+ADAPTER models, minus the base, is the same adapter."""
    adapters = [lora(tmp_path / x, BASE, [Q, DOWN], seed=ord(x)) for x in "ab"]
    given: dict[str, Any] = {"density": 0.6} if "ties" in method else {}
    based = method != "karcher"  # which merges vectors themselves, so that the base is zero
    base = BASE if based else {n: torch.zeros_like(t) for n, t in BASE.items()}
    folder = save(tmp_path / "base", base, llama_config(llama_shapes()))
    models: list[dict[str, Any]] = [{"model": f"{folder}+{a}"} for a in adapters]
    for model in models if based else []:
        model["parameters"] = {"weight": 0.5}
    document = {
        "merge_method": method,
        "models": models,
        "parameters": given,
        **({"base_model": str(folder)} if based else {}),
        "out_dtype": "float32",
    }
    mergewise.merge(document, tmp_path / "merged", device="cpu")
    whole = load(tmp_path / "merged")
    merge_adapters(adapters, tmp_path / "out", method=method, parameters=given, energy=1.0)
    found = delta(tmp_path / "out")
    for name in (f"{Q}.weight", f"{DOWN}.weight"):
        wanted = whole[name].double() - base[name].double()
        assert float(wanted.norm()) > 0
        assert torch.allclose(found[name], wanted, atol=1e-5), name


def test_the_space_of_factors_is_another_result(tmp_path: Path) -> None:
    adapters = [lora(tmp_path / x, BASE, [Q], rank=3, alpha=6, seed=ord(x)) for x in "ab"]
    merge_adapters(adapters, tmp_path / "out", weights=[0.3, 0.7], space="factor")
    one, two = (load(adapter) for adapter in adapters)
    a, b = (
        0.3 * one[f"{PREFIX}{Q}.lora_{x}.weight"] + 0.7 * two[f"{PREFIX}{Q}.lora_{x}.weight"]
        for x in "AB"
    )
    found = delta(tmp_path / "out")[f"{Q}.weight"]
    assert torch.allclose(found, 2 * (b @ a).double(), atol=1e-5)
    exact = 0.3 * delta(adapters[0])[f"{Q}.weight"] + 0.7 * delta(adapters[1])[f"{Q}.weight"]
    assert not torch.allclose(found, exact, atol=1e-3)
    ties = {"method": "ties", "parameters": {"density": 1.0}}
    merge_adapters(adapters, tmp_path / "ties", space="factor", **ties)
    assert load(tmp_path / "ties")[f"{PREFIX}{Q}.lora_A.weight"].shape == (3, 16)


@settings(max_examples=25, deadline=None)
@given(
    ranks=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    alphas=st.lists(st.floats(0.1, 30), min_size=4, max_size=4),
    weights=st.lists(st.floats(0.1, 2) | st.floats(-2, -0.1), min_size=4, max_size=4),
)
def test_any_ranks_and_scales(
    ranks: list[int], alphas: list[float], weights: list[float], tmp_path_factory: Any
) -> None:
    folder, weights = tmp_path_factory.mktemp("any"), weights[: len(ranks)]
    adapters = [
        lora(folder / str(i), BASE, [Q], rank=rank, alpha=alphas[i], seed=i)
        for i, rank in enumerate(ranks)
    ]
    merge_adapters(adapters, folder / "out", weights=weights)
    total = sum(w * delta(x)[f"{Q}.weight"] for w, x in zip(weights, adapters, strict=True))
    assert torch.allclose(delta(folder / "out")[f"{Q}.weight"], total, atol=1e-4)
    merge_adapters(adapters, folder / "cut", weights=weights, rank=sum(ranks))
    assert torch.allclose(delta(folder / "cut")[f"{Q}.weight"], total, atol=1e-4)


@pytest.mark.parametrize("space", ["delta", "factor"])
@pytest.mark.parametrize("part, shape", [("A", None), ("B", None), ("A", (7, 16)), ("B", (16, 2)),
                                         ("A", (3,)), ("B", (16, 3, 2, 2))])  # fmt: skip
def test_factors_that_do_not_fit(
    part: str, shape: tuple[int, ...] | None, space: Any, tmp_path: Path
) -> None:
    good, bad = (lora(tmp_path / x, BASE, [Q], rank=3) for x in ("good", "bad"))
    state = load(bad)
    name = f"{PREFIX}{Q}.lora_{part}.weight"
    del state[name]
    more = {} if shape is None else {name: torch.ones(shape)}
    write(bad, state | more, json.loads((bad / "adapter_config.json").read_text()))
    for pair in ([good, bad], [bad, bad]):
        with pytest.raises(CheckpointError, match=f"bad: module {Q}: two factors of rank 3"):
            merge_adapters(pair, tmp_path / "out", space=space)
    assert not (tmp_path / "out").exists()


def test_the_names_of_bases_may_be_anything(tmp_path: Path) -> None:
    named = ["org/one", "\x1b[2Jtwo", ["three"], None]
    adapters = [
        lora(tmp_path / str(i), BASE, [Q], seed=i, base_model_name_or_path=name)
        for i, name in enumerate(named)
    ]
    [warning] = merge_adapters(adapters, tmp_path / "out").warnings
    assert warning.endswith(r"different bases: '\x1b[2Jtwo', 'org/one'")
    assert merge_adapters(adapters[1:], tmp_path / "fewer").warnings == ()


def test_an_input_is_not_replaced(tmp_path: Path) -> None:
    a, b, _ = three(tmp_path)
    before = contents(a)
    (tmp_path / "link").symlink_to(a)
    for out in (a, tmp_path / "link" / ".", b / ".." / "a"):
        with pytest.raises(OutputError, match="is the folder of the input"):
            merge_adapters([a, b], out, overwrite=True)
    assert contents(a) == before


def test_refusals_write_nothing(tmp_path: Path) -> None:
    a, b, c = three(tmp_path)
    out = tmp_path / "out"
    for wrong, words in (
        ({"weights": [1.0]}, "2 finite numbers expected"),
        ({"weights": [1.0, float("nan")]}, "finite numbers expected"),
        ({"space": "half"}, "delta or factor"),
        ({"rank": 0}, "from 1 on"),
        ({"energy": 0.0}, "above 0"),
        ({"space": "factor", "rank": 2}, "leave rank and energy out"),
        ({"space": "units"}, "clusters into as many units as --rank"),
        ({"space": "units", "rank": 2, "method": "ties"}, "takes no method"),
        ({"space": "units", "rank": 2, "reweight": "all"}, "reweight: both"),
        ({"method": "ties"}, "say how closely: --rank 16"),
        ({"method": "tise"}, "unknown merge method 'tise'; did you mean ties"),
        ({"parameters": {"density": 1}}, "belong to a method"),
        ({"method": "ties", "rank": 2, "parameters": {"densty": 1}}, "no parameter densty"),
        ({"method": "ties", "rank": 2, "parameters": {"granularity": "model"}}, "granularity"),
        ({"method": "fisher", "rank": 2}, "fisher"),
    ):
        with pytest.raises(MergewiseError, match=words):
            merge_adapters([a, b], out, **wrong)
    with pytest.raises(MergewiseError, match="two or more"):
        merge_adapters([a], out)
    with pytest.raises(UnknownMethodError):
        merge_adapters([a, b], out, method="tiess", rank=2)
    with pytest.raises(IncompatibleModelsError, match="same modules and ranks"):
        merge_adapters([a, c], out, space="factor")
    wide = lora(tmp_path / "wide", BASE | {f"{Q}.weight": torch.zeros(16, 20)}, [Q])
    with pytest.raises(IncompatibleModelsError, match="different shapes"):
        merge_adapters([a, wide], out)
    for odd in ({"use_dora": True}, {"whole": {"model.norm.weight": torch.ones(16)}}):
        more = lora(tmp_path / f"odd{len(odd)}{next(iter(odd))}", BASE, [Q], **odd)
        again = (
            "--rest skip"
            if "whole" in odd
            else r"merge the models BASE[+]ADAPTER by a recipe.*rank: 16}`\)$"
        )
        with pytest.raises(NotBuiltYetError, match=again):
            merge_adapters([a, more], out)
    with pytest.raises(MergewiseError, match="cancel"):
        merge_adapters([a, a], out, weights=[1, -1], rank=2)
    assert not out.exists()
    before = (a / "adapter_config.json").read_bytes()
    with pytest.raises(OutputError):
        merge_adapters([a, b], a)
    assert (a / "adapter_config.json").read_bytes() == before
