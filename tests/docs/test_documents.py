"""The documents hold: recipes in them and in `examples/` are valid, links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mergewise.evidence import load_tasks
from mergewise.recipe import check_recipe

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
GENERATED = [page for kind in ("methods", "results") for page in ROOT.glob(f"docs/{kind}/*.md")]
TASKS = ROOT / "examples/tasks.yml"
EXAMPLES = sorted({*(ROOT / "examples").glob("*.yml")} - {TASKS})


def blocks(language: str) -> list:
    found = []
    for path in DOCUMENTS:
        for i, text in enumerate(re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.S)):
            found.append(pytest.param(text, id=f"{path.name}-{i}"))
    return found


@pytest.mark.parametrize("text", blocks("yaml"))
def test_recipes_and_tasks_in_documents_are_valid(text):
    if re.search("^tasks:", text, re.M):
        assert len(load_tasks(text)) > 0
    else:
        assert check_recipe(text) == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_valid_and_say_what_they_are(path):
    assert check_recipe(path) == []
    assert path.read_text().startswith("# ")


def test_the_example_of_a_tasks_file_finds_its_data_and_names_the_demos_models():
    tasks = load_tasks(TASKS)
    names = [part.resolve().relative_to(ROOT) for part in (tasks.base, *tasks.experts.values())]
    assert names == [Path("demo/models") / name for name in ("base", "maths", "code")]
    assert {entry.name: sum(1 for _ in entry.evaluator.task.data["test"]) for entry in tasks} == {
        "maths": 59, "code": 65, "prose": 12,
    }  # fmt: skip


@pytest.mark.parametrize("text", blocks("python"))
def test_python_in_documents_compiles(text):
    compile(text, "document", "exec")


@pytest.mark.parametrize("path", [*DOCUMENTS, *GENERATED], ids=lambda path: path.name)
def test_relative_links_lead_to_files(path):
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_readme_shows_the_example_as_it_is():
    shown = (ROOT / "examples/ties.yml").read_text().split("\n", 1)[1]
    assert f"```yaml\n{shown}```" in (ROOT / "README.md").read_text()


def test_contributing_is_short():
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 80
