"""LEWIS on tiny Llamas: importance, the explicit recipe, and what it merges to."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergewise import merge
from mergewise.checkpoint import layer_index
from mergewise.errors import EvidenceError, GuideError, NotBuiltYetError, RecipeError
from mergewise.evidence import collect, load_evidence
from mergewise.guides import guide as any_guide
from mergewise.plan import build_plan
from mergewise.recipe import load_recipe

LAYERS = 2


def guide(*given, importance="wanda", **settings):
    """The reference's importance, where a test does not say which."""
    return any_guide(*given, importance=importance, **settings)


def state(folder):
    return {n: t.double() for n, t in load_file(folder / "model.safetensors").items()}


def matrices(weights):
    return sorted(n for n, t in weights.items() if layer_index(n) is not None and t.dim() == 2)


def squares(evidence, tensor, statistic="input_moments"):
    tokens = evidence.counts(statistic, tensor)["tokens"]
    return evidence.sums(statistic, tensor)["sum_squares"].double() / tokens


def importance(kind, weights, evidence, tensor, base):
    if kind == "activation":
        return float(squares(evidence, tensor, "output_moments").sum().sqrt())
    matrix = weights[tensor] - (base[tensor] if kind == "delta" else 0)
    return float((matrix * squares(evidence, tensor).sqrt()).norm())


def by_hand(kind, models, expert, low=0.3, high=0.8):
    """Densities by tensor, straight from the definition."""
    base, own = state(models.root / "base"), state(models.root / expert)
    evidence, of_base = getattr(models, expert), getattr(models, f"base_{expert}")
    changes = {}
    for name in matrices(own):
        found = importance(kind, own, evidence, name, base)
        if kind != "delta":
            found = abs(found - importance(kind, base, of_base, name, base))
        changes[name] = found
    totals = {}
    for name, change in changes.items():
        component = name.split(".", 3)[3]
        totals[component] = totals.get(component, 0) + change
    n = {name: round(c / totals[name.split(".", 3)[3]], 5) for name, c in changes.items()}
    least, most = min(n.values()), max(n.values())
    return {name: low + (v - least) / (most - least) * (high - low) for name, v in n.items()}


def densities(guided, expert=0, parameter="density"):
    """What the plan of a guided recipe says of each matrix in a layer."""
    tensors = build_plan(guided.recipe).output.tensors
    return {
        name: tensor.values[parameter][expert]
        for name, tensor in tensors.items()
        if layer_index(name) is not None and len(tensor.meta.shape) == 2
    }


@pytest.mark.parametrize("kind", ["wanda", "activation", "delta"])
def test_densities_follow_from_the_definition(kind, models, evidence, recipe):
    guided = guide(recipe(), "lewis", evidence, importance=kind)
    for i, expert in enumerate("ab"):
        wanted = by_hand(kind, models, expert)
        assert densities(guided, i) == pytest.approx(wanted, abs=1e-6)
        assert len(set(wanted.values())) > 4


def test_every_tensor_outside_gets_the_other_density(evidence, recipe):
    guided = guide(recipe(), "lewis", evidence, other_density=0.25)
    for name, tensor in build_plan(guided.recipe).output.tensors.items():
        if layer_index(name) is None or len(tensor.meta.shape) == 1:
            assert tensor.values["density"] == [0.25, 0.25]


def test_a_guided_merge_equals_densities_passed_by_hand(tmp_path, models, evidence, recipe):
    guided = guide(recipe(), "lewis", evidence)
    merge(guided.recipe, tmp_path / "guided")
    by_name = recipe()
    for i in range(2):
        values = densities(guided, i)
        conditions = [{"filter": name, "value": value} for name, value in values.items()]
        by_name["models"][i]["parameters"]["density"] = [*conditions, {"value": 1}]
    merge(by_name, tmp_path / "by_hand")
    merge(recipe(), tmp_path / "uniform")
    files = [tmp_path / n / "model.safetensors" for n in ("guided", "by_hand", "uniform")]
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()


def test_the_recipe_alone_gives_the_same_bytes_without_data(tmp_path, models, evidence, recipe):
    guided = guide(recipe(), "lewis", evidence)
    guided.write(tmp_path / "guided.yml")
    for name in ("base", "a", "b"):
        shutil.copytree(models.root / name, tmp_path / "models" / name)
    text = (tmp_path / "guided.yml").read_text().replace(str(models.root), str(tmp_path / "models"))
    merge(text, tmp_path / "alone")
    merge(guided.recipe, tmp_path / "guided")
    outs = [tmp_path / name / "model.safetensors" for name in ("alone", "guided")]
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_a_second_run_writes_the_same_text(evidence, recipe):
    first = guide(recipe(), "lewis", evidence)
    assert guide(recipe(), "lewis", dict(reversed(evidence.items()))).text == first.text
    assert first.text.count("# Evidence of") == 4 and "importance wanda" in first.text
    assert str(load_recipe(first.text).digest) == first.recipe.digest


def test_an_expert_that_is_its_base_merges_to_the_base(tmp_path, models, recipe):
    shutil.copytree(models.root / "base", tmp_path / "same")
    document = recipe(experts="a")
    document["models"][0]["model"] = str(tmp_path / "same")
    guided = guide(document, "lewis", {"same": models.base_a, "base": models.base_a})
    assert set(densities(guided).values()) == {0.55}
    merge(guided.recipe, tmp_path / "out")
    merged, base = state(tmp_path / "out"), state(models.root / "base")
    assert all(torch.equal(merged[name], base[name]) for name in base)


def test_equal_bounds_are_uniform_ties(tmp_path, evidence, recipe):
    guided = guide(recipe(), "lewis", evidence, density_min=0.4, density_max=0.4, other_density=0.4)
    merge(guided.recipe, tmp_path / "guided")
    merge(recipe(each={"weight": 1.0, "density": 0.4}), tmp_path / "uniform")
    outs = [tmp_path / name / "model.safetensors" for name in ("guided", "uniform")]
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_one_experts_weights_cancel_under_normalize(tmp_path, evidence, recipe):
    document = recipe(experts="a", parameters={"normalize": True}, dtype="bfloat16")
    known = {name: evidence[name] for name in ("a", "base")}
    guided = guide(document, "lewis", known, parameter="weight")
    assert len(set(densities(guided, 0, "weight").values())) > 4
    merge(guided.recipe, tmp_path / "guided")
    merge(document, tmp_path / "plain")
    outs = [tmp_path / name / "model.safetensors" for name in ("guided", "plain")]
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_the_mean_density_is_held(evidence, recipe):
    guided = guide(recipe(), "lewis", evidence, mean_density=0.37)
    sizes = {n: t.meta.elements for n, t in build_plan(guided.recipe).output.tensors.items()}
    for i in range(2):
        found = densities(guided, i)
        mean = sum(v * sizes[n] for n, v in found.items()) / sum(sizes[n] for n in found)
        assert mean == pytest.approx(0.37, abs=1e-6)
        assert len(set(found.values())) > 4


def test_delta_sees_a_turn_that_wanda_misses(tmp_path, models, evidence, recipe):
    """Flipping the sign of rows of two matrices keeps every |W|, and so every norm."""
    weights = load_file(models.root / "base" / "model.safetensors")
    for part in ("up_proj", "gate_proj"):
        weights[f"model.layers.1.mlp.{part}.weight"][::2] *= -1
    shutil.copytree(models.root / "base", tmp_path / "turned")
    save_file(weights, tmp_path / "turned" / "model.safetensors", metadata={"format": "pt"})
    own = collect("input_moments", tmp_path / "turned", ["a rose is a rose"], tmp_path / "t.evd")
    base = collect("input_moments", models.root / "base", ["a rose is a rose"], tmp_path / "b.evd")
    document = recipe(experts="a")
    document["models"][0]["model"] = str(tmp_path / "turned")
    known = {"turned": own, "base": base}
    up = "model.layers.{}.mlp.up_proj.weight"
    changes = {
        kind: guide(document, "lewis", known, importance=kind).maps[0].values
        for kind in ("wanda", "delta")
    }
    assert changes["wanda"]["model.layers.1"]["mlp.up_proj"] < 1e-9
    assert changes["delta"]["model.layers.1"]["mlp.up_proj"] > 1
    assert changes["delta"]["model.layers.0"]["mlp.up_proj"] == 0
    seen = densities(guide(document, "lewis", known, importance="delta"))
    assert seen[up.format(1)] == 0.8 and seen[up.format(0)] == 0.3


def test_delta_needs_nothing_of_the_base(models, recipe):
    known = {"a": models.root / "a.evd", "b": models.root / "b.evd"}
    assert "of the base" not in guide(recipe(), "lewis", known, importance="delta").text
    with pytest.raises(EvidenceError, match=r"input_moments of .*base, and there is no evidence"):
        guide(recipe(), "lewis", known)


def test_evidence_that_the_recipe_names_is_read(models, evidence, recipe):
    document = recipe(experts="a")
    document["models"][0]["evidence"] = str(models.root / "a.evd")
    found = guide(document, "lewis", {"base": evidence["base"]})
    del evidence["b"]
    assert densities(found) == densities(guide(recipe(experts="a"), "lewis", evidence))


def test_the_bases_file_of_the_same_data_is_taken(models, evidence, recipe):
    wrong = evidence | {"base": [models.base_b]}
    with pytest.raises(EvidenceError, match=r"on the same data.*a\.evd.*base_b\.evd"):
        guide(recipe(), "lewis", wrong)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density_mim": 0.1}, "no setting 'density_mim'; did you mean `density_min`"),
        ({"density_min": 1.5}, "density_min: 0 <= x <= 1 expected, got 1.5"),
        ({"density_min": 0.9}, "density_min 0.9 is greater than density_max 0.8"),
        ({"scope": "layer"}, "one of model, component, rank expected"),
    ],
)
def test_settings_are_checked(settings, message, evidence, recipe):
    with pytest.raises(GuideError) as error:
        guide(recipe(), "lewis", evidence, **settings)
    assert message in str(error.value)


def test_a_method_without_densities_is_refused_with_those_that_have_them(evidence, recipe):
    document = recipe("model_stock", each={})
    with pytest.raises(GuideError, match=r"does not take; methods that do: .*dare_ties.*ties"):
        guide(document, "lewis", evidence)


def test_densities_of_single_tensors_are_not_overwritten(evidence, recipe):
    document = recipe()
    document["models"][1]["parameters"]["density"] = [0.2, 0.6]
    with pytest.raises(RecipeError, match=r"models\[1\]\.parameters\.density differs.*remove it"):
        guide(document, "lewis", evidence)
    document = recipe(each={"weight": 1.0})
    document["parameters"] = {"density": [{"filter": "mlp", "value": 0.5}, {"value": 0.2}]}
    with pytest.raises(RecipeError, match=r"parameters\.density differs"):
        guide(document, "lewis", evidence)


def test_other_recipes_and_models_are_refused(evidence, recipe):
    with pytest.raises(NotBuiltYetError, match="one document"):
        guide(
            "name: x\nmerge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}]\n---\n"
            "merge_method: linear\nmodels: [{model: x, parameters: {weight: 1}}]\n",
            "lewis",
        )
    with pytest.raises(GuideError, match=r"no model of it is called 'c'; its models: .*base"):
        guide(recipe(), "lewis", evidence | {"c": evidence["a"]})
    with pytest.raises(GuideError, match=r"unknown guide 'louis'; did you mean .*lewis"):
        guide(recipe(), "louis", evidence)


def test_evidence_of_another_model_is_told(models, evidence, recipe):
    assert guide(recipe(), "lewis", evidence).warnings == ()
    copied = evidence | {"a": models.b, "b": models.b}
    [warning] = guide(recipe(), "lewis", copied).warnings
    assert "b.evd was collected on other files, called b, than" in warning


def test_evidence_of_another_shape_is_refused(tmp_path, models, evidence, recipe):
    other = load_evidence(models.root / "a.evd")
    broken = dict(other.entries)
    key = ("input_moments", "model.layers.0.mlp.down_proj.weight")
    broken[key] = other.entries["input_moments", "model.layers.0.mlp.up_proj.weight"]
    object.__setattr__(other, "entries", broken)
    with pytest.raises(EvidenceError, match=r"down_proj.weight has shape \[32, 48\].*32 input"):
        guide(recipe(), "lewis", evidence | {"a": other})


def test_a_tensor_that_the_recipe_excludes_is_not_guided(evidence, recipe):
    guided = guide(recipe(exclude=["*mlp*"]), "lewis", evidence)
    assert "mlp" not in guided.text.replace("*mlp*", "")
