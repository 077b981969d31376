"""Mapped rows under adapters, evidence, compiled kernels and every method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_adapters import dense, lora
from small_evidence import evidence_for, write_means
from small_models import NO_BASE, PARAMETERS, State, assert_same, load, save
from small_vocabularies import (
    like,
    model,
    permuted,
    plain,
    shuffled,
    tokenizer_json,
    write_tokenizer,
)

from mergewise.constants import FUSE_FROM_ELEMENTS
from mergewise.engine import merge
from mergewise.methods import Method, all_methods, get_method
from mergewise.plan import build_plan

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ORDER = shuffled(40, 7)


def other_order(folder: Path, state: State) -> None:
    names = {token: ORDER[i] for i, token in enumerate(plain(40))}
    model(folder, tokenizer_json(names), 40, permuted(state, ORDER))


def document(method: str, root: Path, *experts: str, **parts: Any) -> dict[str, Any]:
    chosen = get_method(method)
    shown = in_example(chosen)
    each = {"parameters": {"weight": 0.5}} if "weight" in chosen.params else {}
    found = {"merge_method": method, "models": [{"model": str(root / e), **each} for e in experts]}
    if method not in NO_BASE:
        found["base_model"] = str(root / "base")
    required = {name for name, param in chosen.params.items() if param.required}
    if shared := PARAMETERS.get(method) or {k: v for k, v in shown.items() if k in required}:
        found["parameters"] = shared
    return found | parts


def in_example(method: Method) -> dict[str, Any]:
    """The parameters of a method's example, wherever they stand there."""
    *_, recipe = yaml.safe_load_all(method.example)
    each = [model.get("parameters") or {} for model in recipe.get("models", [])]
    return {k: v for part in (*each, recipe.get("parameters") or {}) for k, v in part.items()}


PLAIN = [name for name, method in all_methods().items() if not method.needs_at_defaults()]


@pytest.mark.parametrize("method", PLAIN)
def test_a_model_in_another_order_merges_as_in_its_own(method: str, tmp_path: Path) -> None:
    """Whatever the method, bit for bit: it sees the same blocks."""
    base = model(tmp_path / "base", tokenizer_json(plain(40)), 40)
    for seed, name in enumerate(("one", "two", "three"), 1):
        state = like(base, 40, seed)
        model(tmp_path / name, tokenizer_json(plain(40)), 40, state)
        other_order(tmp_path / f"{name}-moved", state)
    least, most = get_method(method).experts
    experts = ["one", "two", "three"][: min(max(least, 2), most or 3)]
    merge(document(method, tmp_path, *experts), tmp_path / "out")
    moved = [experts[0], *(f"{name}-moved" for name in experts[1:])]
    if len(experts) == 1:
        moved = [f"{experts[0]}-moved"]
    asked = {"tokenizer_source": str(tmp_path / "base")}
    merge(document(method, tmp_path, *moved, **asked), tmp_path / "mapped")
    assert_same(load(tmp_path / "mapped"), load(tmp_path / "out"))


def test_an_adapter_on_a_model_in_another_order(tmp_path: Path) -> None:
    base = model(tmp_path / "base", tokenizer_json(plain(40)), 40)
    state = like(base, 40, 1)
    other_order(tmp_path / "moved", state)
    stored = load(tmp_path / "moved")
    modules = ["model.layers.0.self_attn.q_proj", "lm_head"]
    folder = lora(tmp_path / "adapter", stored, modules, embedded=["model.embed_tokens"])
    whole = dense(stored, folder)
    model(tmp_path / "dense", tokenizer_json({t: ORDER[i] for i, t in enumerate(plain(40))}), 40,
          whole)  # fmt: skip
    asked = {"tokenizer_source": "base", "base_model": str(tmp_path / "base")}
    reference = f"{tmp_path / 'moved'}+{folder}"
    merge(document("linear", tmp_path, "base", reference, **asked), tmp_path / "out")
    merge(document("linear", tmp_path, "base", "dense", **asked), tmp_path / "wanted")
    one, other = load(tmp_path / "out"), load(tmp_path / "wanted")
    assert all(torch.allclose(one[n], other[n], atol=1e-5) for n in other)
    assert not torch.allclose(one[HEAD], base[HEAD], atol=1e-3)


def test_evidence_of_mapped_rows_is_not_used(tmp_path: Path) -> None:
    base = model(tmp_path / "base", tokenizer_json(plain(40)), 40)
    other_order(tmp_path / "moved", like(base, 40, 1))
    states = [load(tmp_path / n) for n in ("base", "moved")]
    method = get_method("fisher")
    means = evidence_for(method, states)
    assert means is not None
    models = [
        {"model": str(tmp_path / n), "evidence": str(write_means(tmp_path / f"{n}.st", method, m))}
        for n, m in zip(("base", "moved"), means, strict=True)
    ]
    asked = {"merge_method": "fisher", "models": models, "tokenizer_source": str(tmp_path / "base")}
    plan = build_plan(asked)
    head, norm = plan.output.tensors[HEAD], plan.output.tensors["model.norm.weight"]
    assert "of another vocabulary" in head.reason and not head.statistics
    assert norm.statistics and not norm.reason
    merge(plan, tmp_path / "out")


def test_compiled_kernels_and_several_blocks(tmp_path: Path) -> None:
    """Above the size from which kernels are compiled, and over many blocks."""
    width, rows = 512, FUSE_FROM_ELEMENTS // 512 + 100
    draw = torch.Generator().manual_seed(0)
    matrices = [torch.randn(rows, width, generator=draw).bfloat16() for _ in range(2)]
    config = {"vocab_size": rows, "hidden_size": width}
    tokens = [f"t{i}" for i in range(rows)]
    order = shuffled(rows, 3)
    theirs = [*tokens[50:], *(f"n{i}" for i in range(50))]
    names = {token: order[i] for i, token in enumerate(theirs)}
    for name, matrix, vocab in (("a", matrices[0], tokens), ("b", matrices[1], names)):
        save(tmp_path / name, {EMBEDDING: matrix}, config)
        write_tokenizer(tmp_path / name, tokenizer_json(vocab))
    merge(document("linear", tmp_path, "a", "b", tokenizer_source="union"), tmp_path / "out")
    made = load(tmp_path / "out")[EMBEDDING]
    b = matrices[1][torch.tensor(order)].float()
    a = matrices[0].float()
    shared = (a[50:] + b[: rows - 50]) / 2
    new = sorted(range(rows - 50, rows), key=order.__getitem__)  # in the order of their ids
    wanted = torch.cat([a[:50], shared, b[new]]).bfloat16()
    assert torch.equal(made, wanted)
