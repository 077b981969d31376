"""The tasks file: what it says is understood, and everything wrong in it is named at its place."""

import random
from pathlib import Path

import pytest

from mergewise.errors import TaskError, TasksFileError
from mergewise.evidence import Data, LiveModel, load_tasks
from mergewise.evidence.evaluators._records import records

TASKS = """\
base: models/base
experts: {maths: models/maths, code: /abs/code}
model: {device: cpu, dtype: float32, trust_remote_code: false}
tasks:
  - name: maths
    kind: language_model
    data: data/a.jsonl.gz
    context: 64
    limit: 20
  - name: topics
    kind: language_model
    data:
      validation: {path: a.npz, rows: [5, 50], split: train}
      test: b.jsonl
      more: {path: c.tsv, rows: [7, null], columns: [text, label]}
      text: {path: d.txt, separator: "\\n%%\\n"}
    expert: code
    held_out: true
    head: heads/t.safetensors
  - {name: hub, kind: language_model, data: "datasets:wikitext:small"}
  - {name: inline, kind: language_model, data: [{text: hello}, there]}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tasks.yml"
    path.write_text(TASKS)
    return path


def test_everything_a_file_says(file):
    tasks = load_tasks(file)
    here = file.parent
    assert tasks.base == here / "models/base"
    assert tasks.experts == {"maths": here / "models/maths", "code": Path("/abs/code")}
    assert tasks.model == {"device": "cpu", "dtype": "float32", "trust_remote_code": False}
    assert [entry.name for entry in tasks] == ["maths", "topics", "hub", "inline"]
    maths, topics, hub, inline = tasks
    assert maths.evaluator.task.data == {"test": Data(here / "data/a.jsonl.gz", rows=(0, 20))}
    assert maths.evaluator.task.options.context == 64
    assert maths.evaluator.task.options.batch_size == 8, "defaults are filled in"
    assert (maths.expert, maths.expert_named, maths.held_out) == ("maths", False, False)
    assert (topics.expert, topics.expert_named, topics.held_out) == ("code", True, True)
    assert topics.evaluator.task.head == here / "heads/t.safetensors"
    assert topics.evaluator.task.data == {
        "validation": Data(here / "a.npz", (5, 50), "train"),
        "test": Data(here / "b.jsonl", split="test"),
        "more": Data(here / "c.tsv", (7, None), "more", ("text", "label")),
        "text": Data(here / "d.txt", split="text", separator="\n%%\n"),
    }
    assert hub.evaluator.task.split("test").source == "datasets:wikitext:small"
    assert list(inline.evaluator.task.split("test")) == [{"text": "hello"}, {"text": "there"}]


def test_paths_are_relative_to_the_file_or_the_current_folder(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    assert load_tasks("tasks.yml").base == Path("models/base")
    assert load_tasks(TASKS).base == Path("models/base")


def test_options_that_are_paths_are_relative_to_the_file(tmp_path):
    (tmp_path / "t.yml").write_text(
        "tasks: [{name: a, kind: python, function: 'm:f', path: code, data: x.txt}]"
    )
    (entry,) = load_tasks(tmp_path / "t.yml")
    assert entry.options["path"] == str(tmp_path / "code")


def test_python_may_hand_over_objects():
    model, data = LiveModel("live", None), Data(["a", "b"])
    once = (text for text in ("x", "y"))
    tasks = load_tasks(
        {
            "base": model,
            "experts": {"a": model},
            "tasks": [
                {"name": "a", "kind": "language_model", "data": {"test": data, "train": once}},
                {"name": "b", "kind": "language_model", "data": Path("x.txt")},
                {"name": "c", "kind": "language_model", "data": {"path": once, "rows": 1}},
            ],
        }
    )
    assert tasks.base is model and tasks.experts["a"] is model
    task = tasks["a"].evaluator.task
    assert task.split("test") is data
    read = [list(task.split("train")) for _ in range(2)]
    assert read[0] == read[1] == [{"text": "x"}, {"text": "y"}], "an iterator is kept"
    assert tasks["b"].evaluator.task.split("test").source == Path("x.txt")


WRONG = {
    "no such file": (None, "none.yml:1:1: no such file; give the path of a tasks file (YAML)"),
    "empty": ("# nothing\n", "t.yml:1:1: the document is empty; a tasks file needs `tasks:`"),
    "a list": ("- a\n", "t.yml:1:1: the tasks file: a mapping expected, got a list"),
    "syntax": ("tasks: [a\n", "t.yml:2:1: YAML syntax"),
    "two documents": ("tasks: []\n---\na: 1\n", "t.yml:3:1: one document expected"),
    "no tasks": ("base: x\n", "t.yml:1:1: tasks: a list of tasks (`- name: ...`) expected"),
    "no list": ("tasks: {a: 1}\n", "t.yml:1:8: tasks: a list of tasks"),
    "top key": ("task: []\n", "1:1: the tasks file: unknown key `task`; did you mean `tasks`?"),
    "foreign key": ("zebra: 1\n", "key `zebra`; expected here: tasks, base, experts, model"),
    "a word": ("tasks: [x]\n", "t.yml:1:9: tasks[0]: a mapping with `name`, `kind` and `data`"),
    "no name": ("tasks:\n- kind: language_model\n", "t.yml:2:3: tasks[0]: `name` is missing"),
    "no kind": ("tasks:\n- name: a\n", "t.yml:2:3: task a: `kind` is missing"),
    "kind": (
        "tasks:\n- name: a\n  kind: language-modl\n",
        "t.yml:3:9: task a: no kind of task 'language-modl'; did you mean `language_model`?",
    ),
    "option": (
        "tasks:\n- name: a\n  kind: language_model\n  contxt: 3\n",
        "t.yml:4:3: task a: unknown key `contxt`; did you mean `context`?",
    ),
    "range": (
        "tasks:\n- name: a\n  kind: language_model\n  context: 0\n",
        "t.yml:4:12: task a: context: 1 <= x expected, got 0",
    ),
    "type": (
        "tasks:\n- name: a\n  kind: language_model\n  context: [1]\n",
        "t.yml:4:12: task a: context: int expected, got [1]",
    ),
    "required": (
        "tasks:\n- name: a\n  kind: python\n", "t.yml:2:3: task a: function: required, but absent",
    ),
    "twice": (
        "tasks:\n- {name: a, kind: language_model}\n- {name: a, kind: language_model}\n",
        "t.yml:3:3: tasks[1]: a task 'a' is already on line 2; names must differ",
    ),
    "flag": (
        "tasks:\n- {name: a, kind: language_model, held_out: maybe}\n",
        "t.yml:2:45: task a: held_out: true or false expected, got maybe",
    ),
    "limit": (
        "tasks:\n- {name: a, kind: language_model, limit: 0}\n",
        "t.yml:2:42: task a: limit: a whole number from 1 on expected, got 0",
    ),
    "rows": (
        "tasks:\n- name: a\n  kind: language_model\n  data: {path: x.txt, rows: [5, 2]}\n",
        "t.yml:4:9: task a: data: ",
    ),
    "rows of one": (
        "tasks:\n- name: a\n  kind: language_model\n  data: {path: x.txt, rows: [5]}\n",
        "t.yml:4:29: task a: data.rows: [from, to], the first row being 0",
    ),
    "data key": (
        "tasks:\n- name: a\n  kind: language_model\n  data: {path: x.txt, row: [0, 5]}\n",
        "t.yml:4:23: task a: data: unknown key `row`; did you mean `rows`?",
    ),
    "split without path": (
        "tasks:\n- name: a\n  kind: language_model\n  data: {test: {rows: [0, 5]}}\n",
        "t.yml:4:16: task a: data.test: `path` is missing",
    ),
    "experts": ("experts: [a]\ntasks: []\n", "t.yml:1:10: experts: a mapping from names"),
    "model key": ("model: {devcie: cpu}\n", "t.yml:1:9: model: unknown key `devcie`; did you mean"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_with_its_place(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    text, message = WRONG[case]
    name = "none.yml" if text is None else "t.yml"
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(TasksFileError) as caught:
        load_tasks(name)
    assert message in str(caught.value)


def test_all_problems_are_found_at_once(tmp_path):
    (tmp_path / "t.yml").write_text(
        "tasks:\n- {name: a, kind: language_model, context: -1, held_out: 3}\n- {kind: python}\n"
    )
    with pytest.raises(TasksFileError) as caught:
        load_tasks(tmp_path / "t.yml")
    places = [(problem.line, problem.column) for problem in caught.value.diagnostics]
    assert places == [(2, 44), (2, 58), (3, 3), (3, 3)]


PIECES = [
    "[]", "{}", "null", "-1", "1e400", "*a", "&a ", "<<", "!!python/x ", "- ", "? ", ": ", "\n",
    "  ", "name", "data", "rows", "~x", "'", '"', "\0", "é", "[1, 2]", "python", "generation",
]  # fmt: skip


def test_whatever_a_file_holds_only_its_problems_are_raised():
    draw = random.Random(0)
    for _ in range(300):
        text = TASKS
        for _ in range(draw.randint(1, 4)):
            begin = draw.randrange(len(text))
            end = begin + draw.choice([0, 0, 1, 3, 10, 40])
            text = text[:begin] + draw.choice(PIECES) + text[end:]
        try:
            load_tasks(text + "\n")
        except TasksFileError as error:
            assert error.diagnostics


def test_problems_of_a_mapping_say_where():
    with pytest.raises(TasksFileError, match=r"<tasks>:1:1: task a: context: 1 <= x expected"):
        load_tasks({"tasks": [{"name": "a", "kind": "language_model", "context": 0}]})


def test_some_of_the_tasks(file):
    tasks = load_tasks(file)
    assert [entry.name for entry in tasks.only(["inline", "maths"])] == ["maths", "inline"]
    assert len(tasks.limited(5)) == 4
    assert tasks.limited(5)["maths"].evaluator.task.data["test"].rows == (0, 5)
    assert tasks.limited(5)["topics"].evaluator.task.data["validation"].rows == (5, 10)
    with pytest.raises(TaskError, match="no task 'math'; did you mean 'maths'"):
        tasks.only(["math"])


def test_a_kind_with_a_limit_of_its_own_gets_it(monkeypatch):
    from mergewise.evidence.evaluators.language_model import LanguageModel
    from mergewise.methods import Param

    limit = {"limit": Param(int, None, "at most so many")}
    monkeypatch.setattr(LanguageModel, "params", {**LanguageModel.params, **limit})
    (entry,) = load_tasks(
        {"tasks": [{"name": "a", "kind": "language_model", "data": "x.txt", "limit": 7}]}
    )
    assert entry.options["limit"] == 7
    assert entry.limited(3).options["limit"] == 3
    assert entry.limited(9).options["limit"] == 7


def test_a_limit_leaves_solved_examples_alone():
    (entry,) = load_tasks(
        {"tasks": [{"name": "a", "kind": "generation", "limit": 1, "shots": 2, "data": {
            "train": [{"question": str(i), "answer": str(i)} for i in range(2)],
            "test": [{"question": "3", "answer": "3"}] * 2}}]}
    )  # fmt: skip
    entry.evaluator.check()
    assert len(records(entry.evaluator.task, "test")) == 1
