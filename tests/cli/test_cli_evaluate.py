"""`mergewise evaluate` from end to end, on models of a few kilobytes."""

import json
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET

import pytest
from click.testing import CliRunner
from small_language import random_llama

from mergewise.cli import cli

TASKS = """\
base: models/base
experts: {maths: models/maths, code: models/code}
tasks:
  - {name: maths, kind: language_model, data: {path: rows.jsonl}}
  - {name: code, kind: language_model, data: text.txt, batch_size: 2}
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(["base", "maths", "code", "merged"]):
        model = random_llama(seed)
        model.module.save_pretrained(root / name)
        model.tokenizer.save_pretrained(root / name)
    return root


@pytest.fixture
def folder(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MERGEWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "100")
    shutil.copytree(models, tmp_path / "models")
    rows = [{"text": "ein Satz"}, {"text": "noch ein Satz"}, {"text": "der dritte"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "text.txt").write_text("def f(x):\n    return x\n")
    (tmp_path / "tasks.yml").write_text(TASKS)
    return tmp_path


@pytest.fixture
def evaluate(folder):
    def invoke(*arguments):
        result = CliRunner().invoke(cli, ["evaluate", *map(str, arguments)])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


def test_outcomes_need_a_place(evaluate):
    result = evaluate("models/merged", "--tasks", "tasks.yml", "--outcomes")
    assert result.exit_code == 2 and "-o FILE" in result.stderr


def test_a_table_numbers_and_a_figure(evaluate, folder):
    done = evaluate("models/merged", "--tasks", "tasks.yml", "-o", "r.json", "--plot", "r.svg")
    assert done.exit_code == 0, done.stderr
    rows = [line.split()[0] for line in done.stdout.splitlines() if line.strip()]
    assert all(name in rows for name in ("base", "maths", "code", "merged"))
    document = json.loads((folder / "r.json").read_text())
    loss = document["scores"]["merged"]["maths"]["metrics"]["loss"]
    assert f"{loss:.3f}" in done.stdout
    assert document["experts"] == {"maths": "maths", "code": "code"}
    assert document["measures"]["models"]["maths"]["normalised"]["by_task"]["maths"] == 1
    ET.fromstring((folder / "r.svg").read_text())
    assert "8 scores in" in done.stderr and "numbers: r.json" in done.stderr


def test_a_second_run_says_it_knew_and_no_cache_scores_anew(evaluate):
    first = evaluate("models/merged", "--tasks", "tasks.yml")
    second = evaluate("models/merged", "--tasks", "tasks.yml")
    assert second.stdout == first.stdout
    assert "8 of them from earlier runs; --no-cache scores them anew" in second.stderr
    third = evaluate("models/merged", "--tasks", "tasks.yml", "--no-cache")
    assert third.stdout == first.stdout
    assert "earlier runs" not in third.stderr


def test_options_narrow_and_override(evaluate):
    done = evaluate(
        "models/merged", "--tasks", "tasks.yml", "--task", "maths", "--limit", 2, "--json",
        "--base", "models/code", "--expert", "maths=models/base", "--outcomes",
        "--dtype", "float32", "--device", "cpu",
    )  # fmt: skip
    document = json.loads(done.stdout)
    assert list(document["primary"]) == ["maths"]
    assert document["base"] == "base" and document["experts"] == {"maths": "maths"}
    paths = {name: m["path"] for name, m in document["provenance"]["models"].items()}
    assert paths == {
        "base": "models/code", "maths": "models/base", "merged": "models/merged",
    }  # fmt: skip
    result = document["scores"]["merged"]["maths"]
    assert result["examples"] == 2 and len(result["outcomes"]["loss"]) == 2
    assert document["provenance"]["settings"] == {
        "device": "cpu", "dtype": "float32", "trust_remote_code": False,
    }  # fmt: skip


def test_one_model_is_under_one_name(evaluate):
    done = evaluate("models/code", "models/base", "--tasks", "tasks.yml", "--json")
    assert list(json.loads(done.stdout)["scores"]) == ["base", "maths", "code"]


def test_a_failed_score_shows_and_exits_1(evaluate, folder):
    (folder / "tasks.yml").write_text(TASKS.replace("batch_size: 2", "context: 9999"))
    done = evaluate("models/merged", "--tasks", "tasks.yml", "-o", "r.json")
    assert done.exit_code == 1
    assert "failed" in done.stdout
    message = "merged on code: TaskError: task code: context 9999 is more than the 512 positions"
    assert message in done.stderr and "Traceback" not in done.stderr
    document = json.loads((folder / "r.json").read_text())
    assert document["scores"]["merged"]["code"]["failed"]["kind"] == "TaskError"
    assert document["scores"]["merged"]["maths"]["metrics"]["loss"] > 0
    assert "Traceback" in evaluate("models/merged", "--tasks", "tasks.yml", "-vv").stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["models/merged"], 2, "a tasks file is needed: --tasks FILE"),
        (["x", "--tasks", "no.yml"], 2, "no.yml:1:1: no such file; give the path of a tasks file"),
        (["x", "--tasks", "tasks.yml"], 1, "x"),
        (["--tasks", "tasks.yml", "--task", "mats"], 1, "no task 'mats'; did you mean 'maths'"),
        (["--tasks", "tasks.yml", "--split", "dev"], 1, "no split 'dev'; it has test"),
        (["--tasks", "tasks.yml", "--expert", "maths"], 2, "NAME=PATH expected"),
        (["--tasks", "tasks.yml", "--expert", "a=b", "--expert", "a=c"], 2, "'a' is given twice"),
        (["--tasks", "tasks.yml", "--limit", "0"], 2, "0 is not in the range"),
        (["--tasks", "tasks.yml", "--device", "gpu"], 2, "expected auto, cpu, cuda"),
        (["--tasks", "tasks.yml", "-o", "rows.jsonl"], 1, "exists already; --overwrite"),
        (["--tasks", "tasks.yml", "--plot", "no/r.svg"], 1, "in a folder that exists"),
        (["--list", "langage_model"], 1, "did you mean language_model?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_usage_is_explained(evaluate, arguments, code, message):
    done = evaluate(*arguments)
    assert (done.exit_code, done.stdout) == (code, "")
    assert message in done.stderr


def test_mistakes_in_the_tasks_file_have_their_places(evaluate, folder):
    (folder / "tasks.yml").write_text("tasks:\n- {name: a, kind: language_model, contxt: 1}\n- b\n")
    done = evaluate("models/merged", "--tasks", "tasks.yml")
    assert done.exit_code == 2
    assert done.stderr.splitlines() == [
        "tasks.yml:2:35: task a: unknown key `contxt`; did you mean `context`?",
        "tasks.yml:3:3: tasks[1]: a mapping with `name`, `kind` and `data` expected, got b",
        "error: the tasks file cannot be run: 2 errors",
    ]


def test_nothing_to_score(evaluate, folder):
    (folder / "tasks.yml").write_text(TASKS[TASKS.index("tasks:") :])
    done = evaluate("--tasks", "tasks.yml")
    assert done.exit_code == 2 and "nothing to score: give a CHECKPOINT" in done.stderr


def test_existing_files_are_replaced_when_asked(evaluate, folder):
    (folder / "r.json").write_text("old")
    done = evaluate("--tasks", "tasks.yml", "-o", "r.json", "--overwrite")
    assert done.exit_code == 0
    assert json.loads((folder / "r.json").read_text())["format"] == 1


def test_kinds_are_listed_and_explained(evaluate):
    listed = evaluate("--list").stdout
    for kind in ("language_model", "multiple_choice", "text_classification", "python"):
        assert kind in listed
    page = evaluate("--list", "language_model").stdout
    for word in ("perplexity", "less is better", "stride", "held_out", "kind: language_model"):
        assert word in page
    (document,) = json.loads(evaluate("--list", "language_model", "--json").stdout)
    assert document["metrics"]["loss"]["best"] == "min"
    assert document["options"]["batch_size"]["default"] == 8


SLOW = """\
import time
def f(model, records, split):
    if model.name == "merged":
        print("reached", flush=True)
        time.sleep(60)
    return {"score": 1.0}
"""


def test_ctrl_c_keeps_what_is_done_and_exits_130(folder):
    (folder / "slow.py").write_text(SLOW)
    more = "  - {name: slow, kind: python, function: 'slow:f', path: .}\n"
    (folder / "tasks.yml").write_text(TASKS + more)
    command = [sys.executable, "-m", "mergewise", "evaluate", "models/merged"]
    command += ["--tasks", "tasks.yml", "-o", "r.json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"reached\n"
        time.sleep(0.1)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=30)
    assert child.returncode == 130
    assert b"interrupted after 11 of 12 scores; the same command continues" in said
    assert not (folder / "r.json").exists()
    again = CliRunner().invoke(cli, ["evaluate", "models/merged", "--tasks", "tasks.yml",
                                     "--task", "maths", "--task", "code"])  # fmt: skip
    assert "8 of them from earlier runs" in again.stderr
