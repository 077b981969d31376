"""Experts that are a base with an adapter on top: evidence, guides, and the merge itself."""

from types import SimpleNamespace

import pytest
import torch
from _guided_models import save
from safetensors.torch import load_file
from small_adapters import lora
from small_language import random_llama

import mergewise
from mergewise.errors import EvidenceError, MergewiseError
from mergewise.evidence import Data
from mergewise.guides import collect_for, guide, write_recipe
from mergewise.guides._measures._weights import pieces
from mergewise.plan import build_plan

TEXTS = {"a": ["a rose is a rose", "by any other name"], "b": ["1 + 1 = 2", "2 + 2 = 4"]}
MODULES = [
    f"model.layers.{i}.{name}"
    for i in range(2)
    for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
]
GUIDES = {
    "lewis": ("ties", {"weight": 1.0, "density": 0.5}),
    "slta": ("task_arithmetic", {"weight": 1.0}),
    "metagpt": ("task_arithmetic", {"weight": 1.0}),
    "localize_and_stitch": ("localize_and_stitch", {}),
    "regmean_plus_plus": ("regmean", {"weight": 1.0}),
    "model_tailor": ("model_tailor", {}),
    "learned_soup": ("linear", {"weight": 1.0}),
}


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    """A base, two adapters (one of them DoRA), and the same two merged into the base."""
    root = tmp_path_factory.mktemp("adapted")
    save(random_llama(0).module, root / "base")
    state = load_file(root / "base" / "model.safetensors")
    lora(root / "lora_a", state, MODULES, seed=1)
    lora(root / "lora_b", state, MODULES[:3], seed=2, use_dora=True)
    for name in "ab":
        one = {"model": f"{root / 'base'}+{root / f'lora_{name}'}", "parameters": {"weight": 1}}
        made = root / f"dense_{name}"
        mergewise.merge({"merge_method": "linear", "models": [one]}, made, device="cpu")
    return SimpleNamespace(root=root, state=state)


def recipe(root, kind, method, parameters):
    """The same recipe over adapters, or over dense models."""
    start = f"{root / 'base'}+{root / 'lora_'}" if kind == "adapters" else str(root / "dense_")
    models = [{"model": f"{start}{n}", "parameters": dict(parameters)} for n in "ab"]
    base = {} if method in ("linear", "regmean") else {"base_model": str(root / "base")}
    return {"merge_method": method, **base, "models": models}


def data(kind):
    start = "lora_" if kind == "adapters" else "dense_"
    return {f"{start}{n}": Data([{"text": t} for t in TEXTS[n]]) for n in "ab"}


@pytest.mark.parametrize("name", GUIDES)
def test_a_guide_finds_what_it_finds_of_dense_models(name, experts, tmp_path):
    method, parameters = GUIDES[name]
    plans, weights = [], []
    for kind in ("adapters", "dense"):
        made = write_recipe(
            recipe(experts.root, kind, method, parameters), name, tmp_path / f"{kind}.yml",
            each=data(kind),
        )  # fmt: skip
        assert not [w for w in made.warnings if "other" in w]
        plans.append(build_plan(made.recipe).output.tensors)
        mergewise.merge(made.recipe, tmp_path / kind, device="cpu")
        weights.append(load_file(tmp_path / kind / "model.safetensors"))
    assert weights[0].keys() == weights[1].keys()
    for tensor in plans[0]:
        for key in ("weight", "density"):
            mine, other = (one[tensor].values.get(key) or 0 for one in plans)
            assert mine == pytest.approx(other, rel=1e-4, abs=1e-6), tensor
        assert torch.allclose(weights[0][tensor], weights[1][tensor], atol=2e-5), tensor
    changed = f"{MODULES[1]}.weight"
    assert not torch.allclose(weights[0][changed], experts.state[changed], atol=1e-4)


def test_a_guide_in_the_recipe_reads_adapters_and_is_quick_the_second_time(experts, tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(TEXTS["a"]))
    document = recipe(experts.root, "adapters", "ties", {"weight": 1.0, "density": 0.5})
    document["guide"] = {"name": "lewis", "data": str(tmp_path / "a.txt")}
    lines = []
    for _ in range(2):
        lines.append([])
        mergewise.merge(
            document, tmp_path / "out", overwrite=True, told=lines[-1].append, device="cpu"
        )
    assert [x for x in lines[0] if "lora_a" in x] and not [x for x in lines[1] if "lora_a" in x]
    evidence = tmp_path / "out.evidence"
    assert {"lora_a.safetensors", "lora_b.safetensors"} <= {f.name for f in evidence.iterdir()}


def test_tensors_that_an_adapter_changes_come_in_pieces(experts, monkeypatch):
    from mergewise.checkpoint import FileReader, open_reference
    from mergewise.guides._measures import _weights

    monkeypatch.setattr(_weights, "_PIECE", 7)
    for name in "ab":
        adapted = open_reference(f"{experts.root / 'base'}+{experts.root / f'lora_{name}'}")
        dense = load_file(experts.root / f"dense_{name}" / "model.safetensors")
        with FileReader(adapted.stamps) as reader:
            for tensor, ref in adapted.tensors.items():
                found = torch.cat([rows for _, rows in pieces(reader, ref)]).reshape(ref.shape)
                assert torch.allclose(found, dense[tensor].double(), atol=1e-6), tensor


def test_an_adapters_optimizer_is_refused_before_any_work(experts, tmp_path):
    told = []
    state = tmp_path / "optimizer.safetensors"
    state.write_bytes(b"")
    document = recipe(experts.root, "adapters", "ota", {})
    with pytest.raises(EvidenceError, match="second moments of its factors"):
        collect_for(document, "ota", state, tmp_path / "evidence", told=told.append)
    assert not told and not (tmp_path / "evidence").exists()


def test_an_adapter_is_not_run_from_disk(experts, tmp_path):
    document = recipe(experts.root, "adapters", "ties", {"weight": 1.0, "density": 0.5})
    told = []
    with pytest.raises(MergewiseError, match="not run from disk yet"):
        collect_for(
            document, "lewis", None, tmp_path / "e", each=data("adapters"), told=told.append,
            offload=True,
        )  # fmt: skip
    assert not told


def test_evidence_of_another_adapter_is_noticed(experts, tmp_path):
    document = recipe(experts.root, "adapters", "ties", {"weight": 1.0, "density": 0.5})
    found = collect_for(document, "lewis", None, tmp_path / "e", each=data("adapters"))
    swapped = dict(zip(found, reversed(found.values()), strict=True))
    strange = [
        [w for w in guide(document, "lewis", files).warnings if "other files" in w]
        for files in (found, swapped)
    ]
    assert not strange[0] and len(strange[1]) == 2
