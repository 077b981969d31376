"""APL: what parts of task vectors do to the loss, and what is made of it."""

import pytest
import torch
import yaml
from _guided_models import save
from safetensors.torch import load_file, save_file
from small_evidence import write_means
from small_language import random_llama

import mergewise
from mergewise.checkpoint import open_checkpoint
from mergewise.errors import EvidenceError, GuideError, RecipeError
from mergewise.evidence import LiveModel, collect, load_evidence
from mergewise.evidence._objective import Example
from mergewise.guides import collect_for, guide
from mergewise.guides._base import Expert
from mergewise.guides._measures._cells import find_cells
from mergewise.guides._measures._effects import effects
from mergewise.methods import Need
from mergewise.plan import build_plan
from mergewise.recipe import load_recipe

TEXTS = {"a": ["a rose is a rose", "by any other name"], "b": ["1 + 1 = 2", "2 + 2 = 4"]}


def model(folder, tensors):
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return str(folder)


def document(base, *experts, method="dare_linear", each=None):
    each = {"weight": 1.0, "density": 1.0} if each is None else each
    models = [{"model": str(e), "parameters": dict(each)} for e in experts]
    return {"merge_method": method, "base_model": str(base), "models": models}


def cells_of(recipe):
    return find_cells(build_plan(load_recipe(recipe)).output)


def expert_of(folder, evidence):
    return Expert("a", 0, open_checkpoint(folder), {"gradient_weight": evidence})


def test_a_linear_loss_is_exact(tmp_path):
    """Through real gradients: a loss that is linear in all weights."""
    draw = torch.Generator().manual_seed(1)
    h = torch.nn.ModuleList(torch.nn.Linear(4, 3, bias=False) for _ in range(2))
    module = torch.nn.ModuleDict({"h": h})
    tensors = {n: torch.randn(t.shape, generator=draw) for n, t in module.state_dict().items()}
    module.load_state_dict(tensors)
    base = {n: torch.randn(t.shape, generator=draw) for n, t in tensors.items()}

    def loss(module: torch.nn.ModuleDict, example: Example) -> torch.Tensor:
        x = example.inputs["x"][0]
        return sum((k + 1) * layer(x)[0] - layer(x)[2] for k, layer in enumerate(module["h"]))

    folders = [model(tmp_path / name, given) for name, given in (("a", tensors), ("b", base))]
    data = [{"x": torch.randn(1, 4, generator=draw)} for _ in range(5)]
    evidence = collect(
        "gradient_weight", LiveModel("linear", module), data, tmp_path / "a.evd", loss=loss,
        options={"gradient_weight": {"keep": "gradient"}},
    )  # fmt: skip
    cells = cells_of(document(folders[1], folders[0]))
    found = effects(expert_of(folders[0], evidence), open_checkpoint(folders[1]), cells)
    assert [cell.place for cell in found] == ["h.0", "h.1"]

    def mean_loss():
        losses = [loss(module, Example({"x": one["x"]})) for one in data]
        return float(torch.stack(losses).mean().detach())

    whole = mean_loss()
    for cell, effect in found.items():
        [name] = cell.tensors
        module.load_state_dict({**tensors, name: base[name]})
        assert whole - mean_loss() == pytest.approx(effect, rel=1e-4)


def test_small_changes_of_a_language_model_are_nearly_exact(tmp_path):
    module = random_llama(0).module
    save(module, tmp_path / "base")
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(torch.randn(weight.shape, generator=draw), alpha=1e-4)
    save(module, tmp_path / "a")
    keep = {"gradient_weight": {"keep": "gradient"}}
    texts = TEXTS["a"]
    evidence = collect(
        "gradient_weight", tmp_path / "a", texts, tmp_path / "a.evd", options=keep, dtype="float32"
    )
    cells = cells_of(document(tmp_path / "base", tmp_path / "a"))
    found = effects(expert_of(tmp_path / "a", evidence), open_checkpoint(tmp_path / "base"), cells)
    assert len(found) == 14
    base = load_file(tmp_path / "base/model.safetensors")
    module.double()
    own = {name: value.clone() for name, value in module.state_dict().items()}
    cell = max(found, key=lambda one: abs(found[one]))
    without = dict(own)
    for name in cell.tensors:
        without[name] = base[name].double()
    losses = []
    for state in (own, without):
        module.load_state_dict(state)
        losses.append(sum(loss_of(module, text) for text in texts) / len(texts))
    assert losses[0] - losses[1] == pytest.approx(found[cell], rel=0.02)


def loss_of(module, text):
    ids = torch.tensor([[1, *(byte_id(b) for b in text.encode())]])
    with torch.no_grad():
        return float(module(input_ids=ids, labels=ids).loss)


def byte_id(byte):
    from small_language import byte_tokenizer

    return byte_tokenizer()(bytes([byte]).decode())["input_ids"][1]


@pytest.fixture
def known(tmp_path):
    """Gradients by hand; task vectors of ones. Importances: a 4, 1 and b 2, 3."""
    ones, zeros = ({n: torch.full((1, 2), v) for n in ("h.0.w", "h.1.w")} for v in (1.0, 0.0))
    ones, zeros = ones | {"head": torch.ones(1, 1)}, zeros | {"head": torch.zeros(1, 1)}
    folders = [model(tmp_path / n, t) for n, t in (("o", zeros), ("a", ones), ("b", ones))]
    gradients = {"a": ([[1.0, 3.0]], [[-3.0, 2.0]]), "b": ([[0.0, -2.0]], [[1.0, 2.0]])}

    class Known:
        def needs_at_defaults(self):
            return [Need("gradient_weight", "gradient", "examples", "element")]

    files = {
        name: write_means(
            tmp_path / f"{name}.evd", Known(),
            {"gradient_weight": {f"h.{i}.w": torch.tensor(g) for i, g in enumerate(each)}},
            options={"keep": "gradient"},
        )
        for name, each in gradients.items()
    }  # fmt: skip
    recipe = document(*folders, method="breadcrumbs")
    recipe["parameters"] = {"gamma": 0.0}
    return recipe, {name: load_evidence(file) for name, file in files.items()}


def test_numbers_by_hand(known, tmp_path):
    recipe, evidence = known
    made = guide(recipe, "apl", evidence, density_min=0.5, density_max=1.0)
    importance, density, weight = (m.values for m in made.maps[:3])
    assert importance == {"h.0": {"w": 4.0}, "h.1": {"w": 1.0}}
    assert density == {"h.0": {"w": 1.0}, "h.1": {"w": 0.5}}
    assert weight == {"h.0": {"w": pytest.approx(4 / 6)}, "h.1": {"w": pytest.approx(1 / 4)}}
    mergewise.merge(made.recipe, tmp_path / "out")
    merged = load_file(tmp_path / "out/model.safetensors")
    # a keeps all of layer 0 and half of layer 1, b the other way round
    assert sorted(merged["h.0.w"][0].tolist()) == pytest.approx([2 / 3, 1.0])
    assert sorted(merged["h.1.w"][0].tolist())[0] in (pytest.approx(0.75), pytest.approx(1.0))
    assert float(merged["h.1.w"].sum()) == pytest.approx(0.25 + 2 * 0.75)
    assert merged["head"].tolist() == [[1.0]]


def test_weights_alone_for_methods_without_density(known, tmp_path):
    recipe, evidence = known
    recipe |= {"merge_method": "task_arithmetic", "parameters": {}}
    with pytest.raises(GuideError, match="density for every expert, which task_arithmetic"):
        guide(recipe, "apl", evidence)
    made = guide(recipe, "apl", evidence, parameter="weight", total=2.0)
    mergewise.merge(made.recipe, tmp_path / "out")
    merged = load_file(tmp_path / "out/model.safetensors")
    for value in merged.values():
        torch.testing.assert_close(value, torch.full_like(value, 2.0))


def test_mean_density_is_held(known):
    recipe, evidence = known
    made = guide(recipe, "apl", evidence, parameter="density", mean_density=0.6)
    values = [row["w"] for row in made.maps[1].values.values()]
    assert sum(values) / 2 == pytest.approx(0.6)


def test_what_is_wrong_is_named(known, models, recipe):
    document, evidence = known
    with pytest.raises(GuideError, match=r"density_min 0\.9 is above"):
        guide(document, "apl", evidence, density_min=0.9)
    own = document["models"][0]["parameters"]
    own["density"] = [{"filter": "h.0", "value": 0.1}, {"value": 0.2}]
    with pytest.raises(RecipeError, match="density"):
        guide(document, "apl", evidence, parameter="density")
    with pytest.raises(EvidenceError, match="reads gradient_weight"):
        guide(recipe(), "apl", {"a": models.a, "b": models.b})


def test_evidence_is_collected_for_it(models, recipe, tmp_path):
    given = recipe("dare_linear", seed=1)
    evidence = collect_for(given, "apl", None, tmp_path / "evidence", each=TEXTS)
    made = guide(given, "apl", evidence)
    again = [m["parameters"]["weight"] for m in yaml.safe_load(made.text)["models"]]
    for one, other in zip(*again, strict=True):
        assert one["value"] + other["value"] == pytest.approx(1.0)
    assert len(made.maps) == 6
    mergewise.merge(made.recipe, tmp_path / "out")


def test_other_sums_of_the_statistic_do_not_serve(models, recipe, tmp_path):
    files = {n: collect("gradient_weight", models.root / n, TEXTS[n], tmp_path / n) for n in "ab"}
    with pytest.raises(EvidenceError, match="without 'gradient'; collect it again with"):
        guide(recipe(), "apl", files)
