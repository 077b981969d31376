"""Pages of methods: complete, up to date, and their examples run."""

import json
import re
from pathlib import Path

import pytest
from small_models import family

import mergewise
from mergewise.guides import all_guides
from mergewise.methods import all_methods, get_method
from mergewise.report._families import FAMILIES, family_of
from mergewise.report._measured import measured_beside
from mergewise.report._where_to_start import where_to_start
from mergewise.report.method_pages import INDEX, MARK, main, method_pages
from mergewise.report.methods import symbols

PAGES = Path(__file__).parents[2] / "docs/methods"
METHODS = list(all_methods().values())


def test_the_pages_are_up_to_date():
    kept = {file.name: file.read_text("utf-8") for file in PAGES.glob("*.md")}
    assert kept == method_pages(measured_beside(PAGES)), (
        "run: python -m mergewise.report.method_pages --write docs/methods"
    )


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_says_when_to_use_it_and_has_a_family(method):
    assert method.advice.count(".") >= 2 and len(method.advice) < 400, "two sentences"
    assert family_of(method) in FAMILIES


def test_a_page_has_formula_needs_parameters_and_example():
    page = method_pages()["ties.md"]
    for part in (
        "# ties", "```text", "When to use it", "**Needs** a base model", "`density`",
        "merge_method: ties", "https://arxiv.org/abs/2306.01708",
    ):  # fmt: skip
        assert part in page


def test_a_page_says_what_the_lab_measured():
    found = {
        "labs": ["digits", "text"],
        "rows": {
            "ties": {"ties keep .2": {"digits": [-5.04, 20.0]}},
            "linear": {"linear": {"digits": [1.0], "text": [50.0]}},
        },
        "absent": {"slerp": "needs two models"},
    }
    pages = method_pages(found)
    assert (
        "| ties keep .2 | −5.0 / 20.0 | – |\n| `linear`, to compare | 1.0 | 50.0 |"
        in pages["ties.md"]
    )
    assert "with the scale tuned" in pages["ties.md"]
    assert pages["linear.md"].count("| linear |") == 1 and "compare" not in pages["linear.md"]
    assert "tuned" not in pages["linear.md"]
    assert "**Not in the lab**: it needs two models." in pages["slerp.md"]
    assert "lab" not in pages["karcher.md"]


def test_a_page_says_how_to_come_by_evidence():
    pages = method_pages()
    assert "`mergewise collect input_gram MODEL --data DATA -o FILE`" in pages["regmean.md"]
    assert "collect" not in pages["ties.md"].partition("## Parameters")[0]


def test_letters_of_formulas_are_explained():
    assert symbols(get_method("task_arithmetic")) == (
        "b: the base; d_i: model i less the base, its task vector; w_i: the weight of model i"
    )
    assert symbols(get_method("slerp")) == "b: the base; x: the other model"
    assert "w_i" not in symbols(get_method("widen"))  # the formula itself says what it is


def test_the_index_lists_every_method_once():
    index = method_pages()[INDEX]
    rows = [line.partition(" |")[0] for line in index.splitlines()]
    assert all(rows.count(f"| [`{m.name}`]({m.name}.md)") == 1 for m in METHODS)


def test_where_to_start_names_methods_guides_and_sections_that_exist():
    text = "\n".join(where_to_start())
    methods, guides, docs = all_methods(), all_guides(), PAGES.parent
    pages = dict(re.findall(r"\[`(\w+)`\]\((\w+)\.md\)", text))
    assert len(pages) > 10 and all(name == page for name, page in pages.items())
    quoted = set(re.findall(r"`(\w+)`", text)) - {"lambda"}
    assert quoted == set(pages) and quoted <= methods.keys()
    assert set(re.findall(r"guides\.md#(\w+)", text)) <= guides.keys()
    for page, section in re.findall(r"\]\(\.\./([\w/]+\.md)#([\w-]+)\)", text):
        headings = re.findall(r"^#+ (.*)$", (docs / page).read_text(), re.M)
        assert section in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}


def test_where_to_start_is_true_to_the_labs():
    found = json.loads((PAGES.parent / "results/methods.json").read_text("utf-8"))["rows"]

    def first(lab, *, free):
        at_default = {
            name: max(numbers[lab][0] for numbers in rows.values() if lab in numbers)
            for name, rows in found.items()
            if any(lab in numbers for numbers in rows.values())
            and not (free and get_method(name).needs_at_defaults())
        }
        return max(at_default, key=at_default.get)

    assert [first(lab, free=True) for lab in ("digits", "vision", "language", "text")] == [
        "tsv_m", "tsv_m", "iso_c", "optmerge",
    ]  # fmt: skip
    assert [first(lab, free=False) for lab in ("vision", "language", "text")] == [
        "mats", "regmean", "mats"
    ]  # fmt: skip


@pytest.mark.parametrize("lab", ["digits", "vision", "text", "language"])
def test_where_to_start_is_true_to_the_pairs(lab):
    lines = (PAGES.parent / f"results/{lab}-pairs.md").read_text("utf-8").splitlines()
    cells = [[cell.strip() for cell in line.split("|")] for line in lines]
    column = next(row for row in cells if row[1:2] == ["method"]).index("NAI")
    at_default = {
        row[1]: float(row[column].split(" ")[0].replace("−", "-"))
        for row in cells
        if row[2:3] == ["default"]
    }
    assert at_default["nuslerp (base)"] > at_default["slerp"]
    assert max(at_default, key=at_default.get) in ("tsv_m", "regmean")


def test_writing_replaces_and_removes_only_its_own_pages(tmp_path):
    (tmp_path / "gone.md").write_text(f"{MARK}\nold")
    (tmp_path / "mine.md").write_text("mine")
    assert main(["--write", str(tmp_path)]) == 0
    assert "In the lab" not in (tmp_path / "ties.md").read_text()
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {*method_pages(), "mine.md"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return family(tmp_path_factory.mktemp("examples"), experts=3, layers=2, hidden=8, inner=12)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_the_example_runs(method, models, tmp_path, monkeypatch):
    monkeypatch.chdir(models)
    loaded = mergewise.load_recipe(method.example)
    assert loaded.output.method == method.name
    known = {folder.name for folder in models.iterdir()}
    stages = {stage.name for stage in loaded.stages}
    named = {ref.path for stage in loaded.stages for ref in stage.models} - stages
    if not _evidence(loaded) and named <= known and "+" not in method.example:
        mergewise.merge(loaded, tmp_path / "out")
        assert (tmp_path / "out/config.json").exists()
    else:
        assert "evidence" in method.example or "+" in method.example


def _evidence(loaded):
    sources = [
        source
        for stage in loaded.stages
        for module in stage.modules
        for part in module.slices
        for source in part.sources
    ]
    return any(source.evidence for source in sources)
