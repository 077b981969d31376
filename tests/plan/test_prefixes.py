"""Models whose names differ by a prefix alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_models import State, llama_config, llama_shapes, load, random_state, save

from mergewise import merge, merge_state_dicts, plan
from mergewise.errors import IncompatibleModelsError, RecipeError
from mergewise.plan import prefix_between

NAMES = ["0.weight", "0.bias", "2.weight"]


def led(lead: str, names: list[str] = NAMES) -> list[str]:
    return [lead + name for name in names]


@pytest.mark.parametrize(
    ("ours", "theirs", "found"),
    [
        (NAMES, led("module."), ("module.", "")),
        (led("model."), NAMES, ("", "model.")),
        (led("model."), led("module."), ("module.", "model.")),
        (led("net.model."), led("net.module."), ("net.module.", "net.model.")),
        (NAMES, [*led("model."), "loss.weight"], ("model.", "")),
        ([*led("model."), "loss.weight"], led("module."), ("module.", "model.")),
        (NAMES, NAMES, None),
        (NAMES, [*led("model."), "0.bias"], None),
        (NAMES, [*led("model."), *led("ema.")], None),
        (["1.weight"], ["0.1.weight"], None),
        (["a.weight"], ["b.weight"], ("b.", "a.")),
        (["a.weight", "b.weight"], ["c.weight", "d.weight"], None),
        ([], NAMES, None),
    ],
)
def test_a_prefix_is_found(
    ours: list[str], theirs: list[str], found: tuple[str, str] | None
) -> None:
    assert prefix_between(ours, theirs) == found
    assert prefix_between(theirs, ours) == (found and found[::-1])


def state(seed: int, lead: str = "") -> State:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(3, 4, generator=draw) for name in led(lead)}


@pytest.mark.parametrize("lead", ["model.", "module."])
def test_files_are_merged_under_the_names_of_the_first(lead: str, tmp_path: Path) -> None:
    one, other = state(1), state(2)
    save(tmp_path / "one", one)
    save(tmp_path / "other", {lead + n: t for n, t in other.items()})
    models = [{"model": str(tmp_path / name)} for name in ("one", "other")]
    document = {"merge_method": "linear", "models": models, "parameters": {"weight": 0.5}}
    made = merge(document, tmp_path / "out")
    assert any(f"begin with '{lead}'" in warning for warning in made.warnings)
    found = load(tmp_path / "out")
    assert found.keys() == one.keys()
    for name, tensor in found.items():
        assert torch.allclose(tensor, (one[name] + other[name]) / 2)
    turned = document | {"models": models[::-1]}
    merge(turned, tmp_path / "turned")
    assert list(load(tmp_path / "turned")) == sorted(led(lead))


def test_configs_do_not_hide_a_prefix(tmp_path: Path) -> None:
    """Transformers knows no such names, and need not be asked to convert them."""
    shapes = llama_shapes()
    for name, lead in (("one", ""), ("other", "module.")):
        tensors = random_state(shapes, len(name), torch.float32)
        save(tmp_path / name, {lead + n: t for n, t in tensors.items()}, llama_config(shapes))
    models = [{"model": str(tmp_path / name)} for name in ("one", "other")]
    document = {"merge_method": "linear", "models": models, "parameters": {"weight": 0.5}}
    merge(document, tmp_path / "out")
    assert load(tmp_path / "out").keys() == shapes.keys()


def test_what_else_a_model_holds_is_still_missing_in_the_other(tmp_path: Path) -> None:
    save(tmp_path / "one", state(1))
    save(tmp_path / "other", state(2, "model.") | {"loss.weight": torch.ones(2)})
    models = [{"model": str(tmp_path / name)} for name in ("one", "other")]
    document = {"merge_method": "linear", "models": models, "parameters": {"weight": 0.5}}
    with pytest.raises(RecipeError, match=r"1 tensor not in \S*one: loss.weight"):
        plan(document)
    base = {"merge_method": "task_arithmetic", "base_model": str(tmp_path / "one")}
    planned = plan(document | base | {"models": models[1:], "exclude": ["loss.*"]})
    assert planned.output.tensors.keys() == {*NAMES, "loss.weight"}


def test_an_exclude_by_the_other_models_names_has_no_effect_and_is_told(tmp_path: Path) -> None:
    save(tmp_path / "one", state(1))
    save(tmp_path / "other", state(2, "net."))
    given = [{"model": str(tmp_path / "other"), "parameters": {"weight": 1.0}}]
    base = {"base_model": str(tmp_path / "one"), "merge_method": "task_arithmetic"}
    theirs = plan(base | {"models": given, "exclude": ["net.0.*"]})
    assert "copy" not in {t.fate for t in theirs.output.tensors.values()}
    assert any("'net.0.*' matches no tensor" in warning for warning in theirs.warnings)
    ours = plan(base | {"models": given, "exclude": ["0.*"]})
    assert ours.output.tensors["0.weight"].fate == "copy"
    assert not any("matches no tensor" in warning for warning in ours.warnings)


def test_state_dicts_in_memory_are_refused_by_the_prefix_and_what_to_do() -> None:
    given = [state(1), state(2, "module.")]
    with pytest.raises(IncompatibleModelsError, match=r"begin with 'module\.'") as caught:
        merge_state_dicts(given, "linear", parameters={"weight": 0.5})
    told = str(caught.value).partition("give ")[2]
    assert told == "{name.removeprefix('module.'): tensor for name, tensor in model.items()}"
    repaired = {name.removeprefix("module."): tensor for name, tensor in given[1].items()}
    assert merge_state_dicts([given[0], repaired], "linear", parameters={"weight": 0.5})
    with pytest.raises(IncompatibleModelsError, match=r"give \{'model.' \+ name: tensor"):
        merge_state_dicts([state(1, "model."), state(2)], "linear", parameters={"weight": 0.5})
