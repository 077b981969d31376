"""Names of papers that are settings here, or guides, or commands."""

from __future__ import annotations

import re

import pytest

from mergewise.errors import RecipeError, UnknownMethodError
from mergewise.guides import all_guides
from mergewise.methods import all_methods, get_method, spelled
from mergewise.methods._names import SPELLED
from mergewise.recipe import load_recipe


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("WiSE-FT", "weight 0.5"), ("chat_vector", "docs/arithmetic.md"),
        ("TALL-masks", "consensus"),
        ("metagpt", "mergewise guides metagpt"), ("swad", "mergewise average"), ("r-tsvm", "tsv_m"),
        ("LoRA-LEGO", "--space units"), ("warp_merging", "nuslerp"),
        ("TIES-Merging", "here that is ties"), ("Fisher Merging", "here that is fisher"),
        ("Model soups", "here that is linear"),
    ],
)  # fmt: skip
def test_a_paper_s_name_says_how_it_is_spelled(name: str, said: str) -> None:
    with pytest.raises(UnknownMethodError, match=re.escape(said)):
        get_method(name)
    with pytest.raises(RecipeError, match=re.escape(said)):
        load_recipe({"merge_method": name, "models": ["a"], "base_model": "b"})


def test_what_they_stand_for_exists() -> None:
    guides = all_guides()
    for text in SPELLED.values():
        if found := re.search(r"mergewise guides (\w+)", text):
            assert found[1] in guides
        elif not text.startswith(("`mergewise", "not built")):
            assert re.match(r"\w+", text)[0] in all_methods()  # type: ignore[index]
    assert not set(SPELLED) & set(all_methods())
    assert spelled("tise", all_methods()) is None
