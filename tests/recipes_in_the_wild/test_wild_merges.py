"""Published recipes end to end: `mergewise merge` on small models, loaded and run afterwards.

The verdicts are mergekit's own (see the README of the data): its schema takes all of these.
`REFUSED` names those that are refused here, with the words and the reason.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from _stand_ins import StandIns, layers_needed
from click.testing import CliRunner
from small_parts import logits, reload
from wild_data import GOOD, LENIENT, path_of, recipes_folder

from mergewise.cli import cli
from mergewise.recipe import Recipe, load_recipe

REFUSED = {
    # `geodesic` and `lambda` are a fork's; mergekit's own nuslerp needs the weights too
    "nuslerp__chipalign_geodesic": "nuslerp needs `weight`",
}
TABLE: dict[str, str] = {}

pytestmark = pytest.mark.skipif(recipes_folder() is None, reason="no shared/data/recipes")


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> StandIns:
    return StandIns(tmp_path_factory.mktemp("stand_ins"))


def merged(recipe: Path, lenient: bool) -> str:
    """Run the command beside the recipe; what it says if it refuses."""
    arguments = ["merge", recipe.name, "out", "-q", *["--lenient"] * lenient]
    result = CliRunner().invoke(cli, arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stderr if result.exit_code else ""


@pytest.mark.parametrize("name", GOOD)
def test_the_recipe_merges(
    name: str, stand_ins: StandIns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TABLE[name] = "FAILED"
    recipe = stand_ins.place(path_of(name), tmp_path, name in LENIENT)
    monkeypatch.chdir(recipe.parent)
    refusal = merged(recipe, name in LENIENT)
    if name in REFUSED:
        assert REFUSED[name] in refusal
        TABLE[name] = f"refused: {REFUSED[name]}"
        return
    assert not refusal
    model = reload(Path("out")).float()
    logits(model)
    config = model.config.get_text_config()
    assert config.num_hidden_layers == layers_of(load_recipe(recipe, lenient=name in LENIENT))
    tokenizer = json.loads(Path("out/tokenizer.json").read_text("utf-8"))
    assert len(tokenizer["model"]["vocab"]) <= config.vocab_size
    TABLE[name] = f"{type(model).__name__}, {config.num_hidden_layers} layers"


def layers_of(recipe: Recipe) -> int:
    """How many the recipe puts together; all of the stand-ins' where it does not say."""
    [module] = recipe.output.modules
    return sum(slice_.layers or layers_needed(recipe) for slice_ in module.slices)


def test_the_table_of_merges(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print("\n" + "\n".join(f"{name:<50} {said}" for name, said in TABLE.items()))
    assert "FAILED" not in TABLE.values()
    assert set(REFUSED) <= set(GOOD) and len(GOOD) == 60
