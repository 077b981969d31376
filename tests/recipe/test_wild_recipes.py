"""Recipes as people publish them: the good ones load, the bad ones are refused for the cause."""

from __future__ import annotations

import pytest
from wild_data import GOOD, LENIENT, manifest, path_of, recipes_folder

from mergewise.errors import Diagnostic
from mergewise.recipe import check_recipe, load_recipe

# of a fork's method that is also ours: its unknown parameters are all that is wrong
FORKED = {"nonstd__iso_c"}
# line and words of an error that names the cause
CAUSES = {
    "bad__dare_linear_dtype_q4_k_m": (7, "quantised format"),
    "bad__dare_linear_slices_without_layer_range": (7, "layer_range: [from, to]` is missing"),
    "bad__dare_ties_string_parameter": (21, "no parameter `int_space`"),
    "bad__linear_slice_level_merge_method": (14, "one method for the whole document"),
    "bad__multi_docs_ellipsis": (5, "one of `models`, `slices` and `modules` expected"),
    "bad__nuslerp_missing_models_key": (8, "missing (`models:`?)"),
    "bad__slerp_base_not_a_source": (13, "base_model mistralai/Mistral-7B-v0.1 is not one of them"),
    "bad__slerp_invented_parameter_block": (44, "no parameter `post_merge`"),
    "bad__ties_without_base_model": (16, "ties needs `base_model`"),
    "bad__tutorial_passthrough_leading_space": (12, "begins indented ('slices:')"),
    "bad__tutorial_ties_leading_space": (16, "begins indented ('models:')"),
    "constructed__models_and_slices_both": (8, "got `models` and `slices`"),
    "constructed__tokenizer_and_tokenizer_source_both": (12, "exclude each other"),
    "issue__moe_config_given_to_mergekit_yaml": (7, "mixture-of-experts file"),
    "issue__moe_identical_empty_prompts": (8, "mixture-of-experts file"),
    "issue__slices_config_given_to_mergekit_moe": (5, "`merge_method` is missing"),
    "issue__whole_file_in_quotes": (5, "inside quotes"),
    "nonstd__cabs": (5, "unknown merge method 'cabs'"),
    "nonstd__iso_c": (18, "iso_c has no parameter `use_magic`"),
    "nonstd__ota_ffg": (22, "ota has no parameter `preconditioner_path`"),
    "nonstd__rcz_env_paths": (5, "unknown merge method 'rcz'"),
    "nonstd__ties_sb": (5, "did you mean `ties`?"),
}


def errors(name: str, lenient: bool = False) -> list[Diagnostic]:
    return [d for d in check_recipe(path_of(name), lenient=lenient) if d.severity == "error"]


pytestmark = pytest.mark.skipif(recipes_folder() is None, reason="no shared/data/recipes")
BAD = [m["name"] for m in manifest() if m["name"] not in GOOD]


@pytest.mark.parametrize("name", GOOD)
def test_good_recipes_load(name: str) -> None:
    load_recipe(path_of(name), lenient=name in LENIENT)


@pytest.mark.parametrize("name", sorted(set(LENIENT) & set(GOOD)))
def test_unknown_keys_are_all_that_lenient_forgives(name: str) -> None:
    found = errors(name)
    assert found
    for wanted in LENIENT[name]:
        assert any(f"`{wanted}`" in d.message for d in found)
    assert all(any(f"`{w}`" in d.message for w in LENIENT[name]) for d in found)


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("lenient", [False, True], ids=["strict", "lenient"])
def test_bad_recipes_are_refused(name: str, lenient: bool) -> None:
    assert bool(errors(name, lenient)) == (not lenient or name not in FORKED)


@pytest.mark.parametrize("name", BAD)
def test_an_error_points_at_the_cause(name: str) -> None:
    if name in CAUSES:
        line, words = CAUSES[name]
        assert any(d.line == line and words in d.message for d in errors(name))
        return
    key, words = ("genome", "mergekit-evolve") if name.startswith("evolve") else ("experts", "-moe")
    [error] = errors(name)
    lines = path_of(name).read_text(encoding="utf-8").splitlines()
    assert words in error.message
    assert lines[error.line - 1].startswith(f"{key}:")


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    rows = []
    for entry in manifest():
        found = errors(entry["name"])
        ours = "loads" if not found else "refused" if errors(entry["name"], True) else "lenient"
        first = f"{found[0].line}:{found[0].column} {found[0].message}" if found else ""
        rows.append(f"{entry['name']:<50} {entry['verdict']:<15} {ours:<8} {first[:90]}")
        assert (ours != "refused") == (entry["name"] in {*GOOD, *FORKED})
    assert len(rows) == 98
    with capsys.disabled():
        print("\n" + "\n".join(rows))
