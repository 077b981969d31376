"""The reference's densities, computed here once more by plain loops over its steps."""

import pytest
import torch
from _guided_models import nudge, save
from small_language import random_llama
from torch import nn

from mergewise.checkpoint import layer_index
from mergewise.errors import EvidenceError, GuideError
from mergewise.evidence import collect, load_evidence
from mergewise.guides import collect_for, guide
from mergewise.plan import build_plan

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
WANDA = {"importance": "wanda"}
PRUNED = {"input_moments": {"pruned": 0.5}}


def reference_importance(model, sequences, sparsity):
    """{(projection, layer): norm}; prunes the model."""
    layers, caught = model.model.layers, []
    handle = layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: caught.append((args, kwargs)), with_kwargs=True
    )
    for ids in sequences:
        model(ids, use_cache=False)
    handle.remove()
    hidden = [args[0] for args, _ in caught]
    importance = {}
    for i, layer in enumerate(layers):
        linears = {n: m for n, m in layer.named_modules() if type(m) is nn.Linear}
        scaler = dict.fromkeys(linears, 0.0)
        for j, (h, (_, kwargs)) in enumerate(zip(hidden, caught, strict=True)):
            for name, x in inputs_of(linears, layer, h, kwargs).items():
                scaler[name] = scaler[name] * (j / (j + 1)) + x.square().sum(0) / (j + 1)
        for name, linear in linears.items():
            metric = linear.weight.abs() * scaler[name].sqrt()
            importance[name.rpartition(".")[2], i] = float(metric.double().norm())
            for row, values in zip(linear.weight, metric, strict=True):
                row[values.argsort(stable=True)[: int(len(row) * sparsity)]] = 0
        hidden = [layer(h, **kwargs) for h, (_, kwargs) in zip(hidden, caught, strict=True)]
    return importance


def inputs_of(linears, layer, hidden, kwargs):
    """What enters each linear layer for one sequence, [tokens, channels]."""
    seen = {}
    handles = [
        m.register_forward_hook(lambda m, x, y, n=n: seen.update({n: x[0][0]}))
        for n, m in linears.items()
    ]
    layer(hidden, **kwargs)
    for handle in handles:
        handle.remove()
    return seen


def reference_densities(base, expert, low=0.3, high=0.8):
    delta = {cell: abs(expert[cell] - base[cell]) for cell in base}
    n = {}
    for projection in PROJECTIONS:
        row = {cell: value for cell, value in delta.items() if cell[0] == projection}
        n |= {cell: round(value / sum(row.values()), 5) for cell, value in row.items()}
    least, most = min(n.values()), max(n.values())
    return {cell: low + (v - least) / (most - least) * (high - low) for cell, v in n.items()}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Two folders, sequences of one length, and what the reference makes of them."""
    root = tmp_path_factory.mktemp("reference")
    torch.manual_seed(3)
    sequences = [torch.randint(3, 259, (1, 12)) for _ in range(4)]
    found = {}
    for name in ("base", "expert"):
        module = random_llama(0).module.double()
        if name == "expert":
            nudge(module, 1)
        save(module, root / name)
        with torch.no_grad():
            found[name] = reference_importance(module, sequences, 0.5)
    return root, sequences, found


def document(root):
    return {
        "merge_method": "ties",
        "base_model": str(root / "base"),
        "models": [{"model": str(root / "expert"), "parameters": {"weight": 1}}],
    }


def by_cell(guided):
    """Densities as the reference keys them."""
    return {
        (name.split(".")[-2], layer_index(name)): tensor.values["density"][0]
        for name, tensor in build_plan(guided.recipe).output.tensors.items()
        if layer_index(name) is not None and len(tensor.meta.shape) == 2
    }


def test_the_preset_gives_the_references_densities(case):
    root, sequences, importance = case
    data = [{"input_ids": ids} for ids in sequences]
    known = collect_for(
        document(root), "lewis", data, root / "kept", settings={"preset": "reference"}
    )
    guided = guide(document(root), "lewis", known, preset="reference")
    wanted = reference_densities(importance["base"], importance["expert"])
    found = by_cell(guided)
    assert found.keys() == wanted.keys() and len(wanted) == 14
    assert found == pytest.approx(wanted, abs=1e-8)
    assert min(found.values()) == 0.3 and max(found.values()) == 0.8
    others = {
        tensor.values["density"][0]
        for name, tensor in build_plan(guided.recipe).output.tensors.items()
        if len(tensor.meta.shape) == 1 or layer_index(name) is None
    }
    assert others == {1.0}
    # the same by its other name, and not the same on models as they are
    assert by_cell(guide(document(root), "lewis", known, variant="reference")) == found
    dense = collect_for(document(root), "lewis", data, root / "dense", settings=WANDA)
    apart = by_cell(guide(document(root), "lewis", dense, **WANDA))
    assert max(abs(apart[cell] - found[cell]) for cell in found) > 0.01


def test_a_file_says_how_it_was_collected_and_is_not_mixed_up(case):
    root, sequences, _ = case
    data = [{"input_ids": ids} for ids in sequences]
    known = {}
    for name in ("base", "expert"):
        collect("input_moments", root / name, data, root / f"{name}.evd", options=PRUNED,
                overwrite=True)  # fmt: skip
        known[name] = load_evidence(root / f"{name}.evd")
        assert known[name].record.statistics["input_moments"].options == {"pruned": 0.5}
    text = guide(document(root), "lewis", known, propagation="pruned", **WANDA).text
    assert "propagation pruned" in text and "sparsity 0.5" in text
    with pytest.raises(EvidenceError, match=r"behind layers pruned by 0\.5.*on the model as it is"):
        guide(document(root), "lewis", known, **WANDA)
    with pytest.raises(EvidenceError, match=r"pruned by 0\.5.*pruned by 0\.25"):
        guide(document(root), "lewis", known, propagation="pruned", sparsity=0.25, **WANDA)


def test_the_first_layer_sees_what_it_always_sees(case):
    root, sequences, _ = case
    data = [{"input_ids": ids} for ids in sequences]
    pruned = collect("input_moments", root / "base", data, root / "p.evd", options=PRUNED)
    dense = collect("input_moments", root / "base", data, root / "d.evd")
    sums = {
        layer: [
            e.sums("input_moments", f"model.layers.{layer}.mlp.up_proj.weight")["sum_squares"]
            for e in (pruned, dense)
        ]
        for layer in range(2)
    }
    assert torch.allclose(*sums[0], rtol=1e-6)
    assert not torch.allclose(*sums[1], rtol=1e-2)
    assert "lm_head.weight" in dense.tensors("input_moments")
    assert {layer_index(name) for name in pruned.tensors("input_moments")} == {0, 1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "reference", "importance": "delta"}, "preset reference sets importance wanda"),
        ({"variant": "reference", "density_max": 0.9}, "variant reference sets density_max 0.8"),
        ({"preset": "reference", "variant": "delta", "scope": "rank"}, "sets scope model"),
    ],
)
def test_what_a_preset_sets_cannot_be_set_otherwise(case, settings, message):
    with pytest.raises(GuideError, match=message):
        guide(document(case[0]), "lewis", {}, **settings)
