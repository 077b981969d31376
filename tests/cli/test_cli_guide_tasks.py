"""Guides that score models, from the command line and as a recipe's ``guide``."""

import gc

import pytest
import torch
from small_language import byte_tokenizer, random_llama

from mergewise.recipe import load_recipe

RECIPE = """\
merge_method: linear
models:
  - {model: one, parameters: {weight: 1}}
  - {model: two, parameters: {weight: 1}}
"""
TASKS = """\
tasks:
  - name: sums
    kind: language_model
    data: {validation: sums.txt, test: other.txt}
"""
STOP = """
def score(model, records, split):
    if "candidate" in str(model.name) or " + " in model.name:
        raise KeyboardInterrupt
    return {"score": 1.0}
"""


@pytest.fixture
def ready(here):
    for seed, name in enumerate(("one", "two")):
        module = random_llama(0).module
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in module.parameters():
                weight.add_(torch.randn(weight.shape, generator=draw), alpha=0.02)
        module.save_pretrained(here / name)
        byte_tokenizer().save_pretrained(here / name)
    (here / "recipe.yml").write_text(RECIPE)
    (here / "tasks.yml").write_text(TASKS)
    (here / "sums.txt").write_text("1 + 1 = 2 and 2 + 2 = 4")
    (here / "other.txt").write_text("a rose")
    gc.freeze()
    return here


def test_a_soup_from_the_command_line_and_as_a_recipes_guide(run, ready):
    done = run("guide", "greedy_soup", "recipe.yml", "-o", "soup.yml", "--tasks", "tasks.yml")
    assert (done.exit_code, done.stdout) == (0, "soup.yml\n"), done.stderr
    assert "scoring one, two (1 to 2 of at most 4)" in done.stderr
    assert "3 scorings of models and merges on sums (validation split)" in done.stderr
    text = (ready / "soup.yml").read_text()
    assert "# alone: one: sums " in text and "guide:" not in text
    assert run("merge", "soup.yml", "out", "-q").exit_code == 0

    call = "guide: {name: greedy_soup, tasks: tasks.yml, task_split: validation}\n"
    (ready / "guided.yml").write_text(RECIPE + call)
    assert run("merge", "guided.yml", "again", "-q").exit_code == 0
    outs = [ready / name / "model.safetensors" for name in ("out", "again")]
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert {path.name for path in ready.glob(".mergewise*")} == set()


def test_another_split_and_tasks_that_lack_it(run, ready):
    command = ("guide", "greedy_soup", "recipe.yml", "-o", "soup.yml", "--tasks", "tasks.yml")
    assert run(*command, "--task-split", "test").exit_code == 0
    done = run(*command, "--overwrite", "--task-split", "dev")
    assert done.exit_code == 1 and "no split 'dev'; it has validation, test" in done.stderr
    assert "--task-split NAME" in done.stderr and "scoring" not in done.stderr
    done = run(*command[:-2], "--overwrite")
    assert done.exit_code == 1 and "give a tasks file (--tasks FILE" in done.stderr
    assert len(load_recipe("soup.yml").output.models) in (1, 2)


def test_ctrl_c_while_a_candidate_is_scored_leaves_nothing(run, ready):
    (ready / "stop_of_a_test.py").write_text(STOP)
    (ready / "tasks.yml").write_text(
        "tasks:\n  - {name: stop, kind: python, function: 'stop_of_a_test:score', path: .}\n"
    )
    before = {path.name for path in ready.iterdir()} | {"__pycache__"}
    done = run("guide", "greedy_soup", "recipe.yml", "-o", "soup.yml", "--tasks", "tasks.yml")
    assert done.exit_code == 130, done.stderr
    assert {path.name for path in ready.iterdir()} <= before
