"""LEWIS by one threshold over the model: curvature and gain."""

import pytest
import torch
from safetensors.torch import load_file

from mergewise import merge
from mergewise.checkpoint import layer_index
from mergewise.errors import GuideError
from mergewise.evidence import Data, collect
from mergewise.guides import get_guide, guide, write_recipe
from mergewise.plan import build_plan

TEXTS = {"a": ["a rose is a rose", "by any other name"], "b": ["1 + 1 = 2", "2 + 2 = 4"]}


@pytest.fixture(scope="module")
def fisher(models, tmp_path_factory):
    """Each expert's diagonal Fisher."""
    root = tmp_path_factory.mktemp("fisher")
    return {
        name: collect("fisher", models.root / name, TEXTS[name], root / f"{name}.evd")
        for name in "ab"
    }


def densities(guided, place):
    tensors = build_plan(guided.recipe).output.tensors
    return {
        name: tensor.values["density"][place]
        for name, tensor in tensors.items()
        if layer_index(name) is not None and len(tensor.meta.shape) == 2
    }


def scores(models, fisher, variant):
    """By expert and tensor, straight from the definition."""
    state = {
        name: {
            n: t.double() for n, t in load_file(models.root / name / "model.safetensors").items()
        }
        for name in ("base", "a", "b")
    }
    found = {"a": {}, "b": {}}
    for name, weight in state["base"].items():
        if layer_index(name) is None or weight.dim() != 2:
            continue
        d = {e: (state[e][name] - weight) for e in "ab"}
        f = {e: fisher[e].values("fisher", name)["fisher"].double() for e in "ab"}
        for e in "ab":
            others = "ab" if variant == "gain" else e
            pull = sum(f[t] * d[t] for t in others)
            found[e][name] = (d[e] * (2 * pull - d[e] * sum(f[t] for t in others))).clamp_min(0)
    return found


@pytest.mark.parametrize("variant", ["curvature", "gain"])
def test_densities_are_what_one_threshold_keeps(variant, models, fisher, recipe):
    guided = guide(recipe(), "lewis", fisher, variant=variant, mean_density=0.3)
    for place, expert in enumerate("ab"):
        score = scores(models, fisher, variant)[expert]
        everything = torch.cat([value.flatten() for value in score.values()])
        count = int(0.3 * len(everything))
        threshold = everything.sort(descending=True).values[count - 1]
        wanted = {name: float((v >= threshold).double().mean()) for name, v in score.items()}
        found = densities(guided, place)
        # float32 may order a few elements otherwise
        assert found == pytest.approx(wanted, abs=3 / 512)
        assert max(wanted.values()) - min(wanted.values()) > 0.1
        sizes = {name: value.numel() for name, value in score.items()}
        mean = sum(found[n] * s for n, s in sizes.items()) / sum(sizes.values())
        assert mean == pytest.approx(0.3, abs=1 / len(everything))


def test_experts_see_each_other_under_gain_only(fisher, recipe):
    alone = {
        variant: densities(
            guide(recipe(experts="a"), "lewis", {"a": fisher["a"]}, variant=variant), 0
        )
        for variant in ("curvature", "gain")
    }
    both = {
        variant: densities(guide(recipe(), "lewis", fisher, variant=variant), 0)
        for variant in ("curvature", "gain")
    }
    assert alone["curvature"] == alone["gain"] == both["curvature"] != both["gain"]


def test_the_recipes_density_is_the_mean_unless_said_otherwise(fisher, recipe):
    plain = guide(recipe(), "lewis", fisher, variant="curvature")
    assert plain.text.count("mean_density") == 0
    given = guide(recipe(), "lewis", fisher, variant="curvature", mean_density=0.5)
    assert densities(plain, 1) == densities(given, 1)
    document = recipe()
    document["models"][1]["parameters"]["density"] = 0.2
    mixed = guide(document, "lewis", fisher, variant="curvature")
    assert densities(mixed, 0) == densities(plain, 0)
    lower = guide(recipe(), "lewis", fisher, variant="curvature", mean_density=0.2)
    assert densities(mixed, 1) == densities(lower, 1)
    assert "density 0.2 of" in " ".join(mixed.notes)


def test_a_guided_recipe_merges_alone(tmp_path, fisher, recipe):
    guided = guide(recipe(), "lewis", fisher, variant="gain", mean_density=0.4, other_density=0.4)
    assert "evidence" not in guided.text.replace("# Evidence", "")
    merge(guided.recipe, tmp_path / "guided")
    merge(recipe(each={"weight": 1, "density": 0.4}), tmp_path / "plain")
    files = [(tmp_path / n / "model.safetensors").read_bytes() for n in ("guided", "plain")]
    assert files[0] != files[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "gain", "scope": "rank"}, "scope has no say with importance gain"),
        ({"variant": "gain", "mean_density": 0.9, "density_max": 0.8}, "0.9 lies outside"),
        ({"importance": "curvature", "parameter": "weight"}, "parameter has no say"),
        ({"variant": "delta", "importance": "gain"}, "variant delta sets importance delta, not"),
    ],
)
def test_contradictions_are_named(settings, message, fisher, recipe):
    with pytest.raises(GuideError, match=message):
        guide(recipe(), "lewis", fisher, **settings)


def test_a_density_is_needed(fisher, recipe):
    with pytest.raises(GuideError, match="importance gain needs mean_density"):
        guide(recipe(each={"weight": 1}), "lewis", fisher, variant="gain")


def test_what_is_read_of_whom():
    lewis = get_guide("lewis")

    def needs(**settings):
        from mergewise.guides._ask import settings_of

        return lewis.needs(settings_of(lewis, settings))

    assert needs(variant="gain").experts == ("fisher",) and not needs(variant="gain").base
    assert needs(variant="reference").base == ("input_moments",)
    assert needs(variant="reference").options == {"input_moments": {"pruned": 0.5}}
    assert needs(importance="activation").experts == ("output_moments",)
    assert needs(variant="delta").base == ()
    assert needs(variant="wanda").options == {"input_moments": {"pruned": None}}
    assert needs().experts == ("fisher",)


def test_a_file_of_pruned_models_in_the_way_is_replaced(tmp_path, recipe):
    (tmp_path / "texts.txt").write_text("a rose is a rose")
    given = {"data": Data(tmp_path / "texts.txt"), "reuse": True}
    found = [
        write_recipe(recipe(), "lewis", tmp_path / "out.yml", settings=settings, **given)
        for settings in ({}, {"preset": "reference"}, {})
    ]
    assert "propagation pruned" in found[1].text
    each = [densities(one, 0) for one in found]
    assert each[0] == each[2] != each[1]


def test_bounds_cut_the_shares_and_keep_the_mean(fisher, recipe):
    plain = guide(recipe(), "lewis", fisher, mean_density=0.5)
    bounded = guide(recipe(), "lewis", fisher, mean_density=0.5, density_min=0.45, density_max=0.6)
    free, held = densities(plain, 0), densities(bounded, 0)
    assert min(free.values()) < 0.45 and max(free.values()) > 0.6
    assert min(held.values()) == pytest.approx(0.45) and max(held.values()) == pytest.approx(0.6)
    sizes = {n: t.meta.elements for n, t in build_plan(plain.recipe).output.tensors.items()}
    mean = sum(held[n] * sizes[n] for n in held) / sum(sizes[n] for n in held)
    assert mean == pytest.approx(0.5, abs=1e-6)


def test_two_bounds_say_how_much_where_nothing_else_does(fisher, recipe):
    silent = recipe(each={"weight": 1})
    bounds = {"density_min": 0.3, "density_max": 0.8}
    found = densities(guide(silent, "lewis", fisher, **bounds), 0)
    wanted = densities(guide(silent, "lewis", fisher, mean_density=0.55, **bounds), 0)
    assert found == wanted
