"""The demo on a tiny scale: it trains, merges, scores, and leaves models that load and write."""

from __future__ import annotations

import io
import json
import math
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from rich.console import Console

from mergewise.demo import run_demo
from mergewise.demo._data import SEPARATOR, encode, find_examples, read_texts, train_tokenizer
from mergewise.demo._picture import picture
from mergewise.demo._run import try_command
from mergewise.demo._settings import DOMAINS, EXPERTS, FAST, FULL
from mergewise.demo._table import table
from mergewise.errors import OutputError
from mergewise.plan import build_plan
from mergewise.recipe import load_recipe

TINY = replace(FAST, base_steps=60, expert_steps=40, heldout_tokens=1024)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    console = Console(record=True, width=120, file=io.StringIO())
    results = run_demo(out, console=console, settings=TINY)
    return out, results, console.export_text()


def test_experts_are_better_than_the_base_at_their_own_task(demo):
    _, results, _ = demo
    scores = results["scores"]
    for expert in EXPERTS:
        assert scores[expert][expert]["loss"] < scores["base"][expert]["loss"] - 0.05


def test_every_example_is_merged_and_scored(demo):
    _, results, _ = demo
    files = sorted(path.stem for path in find_examples().glob("*.yml"))
    examples = [name for name in files if name not in ("tasks", "lewis")]
    assert list(results["scores"]) == ["base", *EXPERTS, *examples, "lewis"]
    assert list(results["merges"]) == [*examples, "lewis"]


def test_the_guided_merge_keeps_as_much_as_the_uniform_one_and_is_drawn(demo):
    out, _, shown = demo
    assert "fisher of" in shown
    recipe = load_recipe(out / "merged/lewis.evidence/recipe.yml")
    plan = build_plan(recipe)
    for expert in (0, 1):
        pairs = [
            (tensor.values["density"][expert], math.prod(tensor.meta.shape))
            for tensor in plan.output.tensors.values() if tensor.fate == "merge"
        ]  # fmt: skip
        mean = sum(d * n for d, n in pairs) / sum(n for _, n in pairs)
        assert mean == pytest.approx(0.5, abs=1e-4)
        assert len({d for d, _ in pairs}) > 3
    drawn = "".join(ET.parse(out / "lewis.svg").getroot().itertext())
    assert "mlp.up_proj" in drawn and "density" in drawn


def test_an_even_mix_is_better_at_each_task_than_the_other_expert(demo):
    scores = demo[1]["scores"]
    for kind, other in (("maths", "code"), ("code", "maths")):
        assert scores["linear"][kind]["loss"] < scores[other][kind]["loss"]


def test_results_are_written(demo):
    out, results, shown = demo
    assert json.loads((out / "results.json").read_text()) == results
    ET.fromstring((out / "results.svg").read_text())
    assert "maths expert" in shown
    assert "text-generation" in shown


def test_the_printed_command_runs(demo):
    command = shlex.split(try_command(demo[0] / "merged" / "ties"))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Question: Tom has 3 apples")
    assert len(done.stdout) > 40


@pytest.mark.parametrize("name", ["models/base", "models/maths", "models/code", "merged/ties"])
def test_folders_load_with_transformers_and_generate(demo, name):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = demo[0] / name
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    prompt = tokenizer("Question: Tom has 3 apples", return_tensors="pt")
    tokens = model.generate(**prompt, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    assert tokens.shape[1] == prompt["input_ids"].shape[1] + 8
    assert tokenizer.decode(tokens[0]).startswith("Question: Tom has 3 apples")


def test_trained_models_are_reused_until_the_schedule_changes(demo, tmp_path):
    out, _, _ = demo
    console = Console(quiet=True)
    settings = replace(TINY, examples=("linear",))
    before = (out / "models/base/model.safetensors").stat().st_mtime_ns
    again = run_demo(out, console=console, settings=settings)
    assert again["models_reused"]
    assert (out / "models/base/model.safetensors").stat().st_mtime_ns == before
    texts = read_texts(find_examples(), "train")
    assert replace(settings, seed=8).fingerprint(texts) != settings.fingerprint(texts)
    assert replace(settings, examples=()).fingerprint(texts) == settings.fingerprint(texts)
    changed = {**texts, "maths": texts["maths"] + "x"}
    assert settings.fingerprint(changed) != settings.fingerprint(texts)


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match="not empty and was not made by the demo"):
        run_demo(tmp_path, console=Console(quiet=True), settings=TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_heldout_texts_are_not_trained_on():
    examples = find_examples()
    train, heldout = read_texts(examples, "train"), read_texts(examples, "heldout")
    for name in DOMAINS:
        seen = set(train[name].rstrip("\n").split(SEPARATOR))
        assert not seen & set(heldout[name].rstrip("\n").split(SEPARATOR))


def test_tokenizer_keeps_every_character():
    texts = {"a": "Tom has 123 apples.", "b": "def f(x):\n    return x"}
    tokenizer = train_tokenizer(texts, 300, 64)
    text = 'naïve “quote”\n    x = 42\n"""'
    assert tokenizer.decode(encode(tokenizer, text)[1:-1]) == text


def test_full_size_is_what_the_documents_say():
    from mergewise.demo._train import new_model

    tokenizer = train_tokenizer({"a": "abc"}, FULL.vocabulary, 64)
    model = new_model(FULL, tokenizer)
    body = sum(
        p.numel() for n, p in model.named_parameters() if "embed" not in n and "head" not in n
    )
    assert 1e6 < body + 2 * FULL.vocabulary * FULL.hidden < 3e6


def test_table_marks_the_best_of_each_column():
    scores = {
        "base": {kind: {"loss": 2.0, "accuracy": 0.2} for kind in DOMAINS},
        "ties": {kind: {"loss": 1.0, "accuracy": 0.1} for kind in DOMAINS},
    }
    cells = [list(column.cells) for column in table(scores).columns]
    marked = [[cell.plain for cell in column if cell.style == "bold"] for column in cells[1:3]]
    assert marked == [["1.000"], ["20.0%"]]
    assert [cell.plain for cell in cells[1]] == ["2.000", "1.000"]


def test_picture_puts_lower_losses_to_the_left_and_escapes_names():
    def scores(loss):
        return {kind: {"loss": loss, "accuracy": 0.5} for kind in DOMAINS}

    svg = picture({"a<b": scores(3.0), "good": scores(1.0)})
    assert "a&lt;b" in svg
    assert svg.index(">good<") < svg.index(">a&lt;b<")
    circles = [float(e.get("cx")) for e in ET.fromstring(svg).iter() if e.tag.endswith("circle")]
    _legend, good, bad = circles
    assert good < bad


def test_importing_the_demo_is_light():
    code = (
        "import sys, mergewise.demo; "
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
