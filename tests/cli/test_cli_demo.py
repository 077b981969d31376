"""`mergewise demo` hands over to the demo."""

import json
from pathlib import Path

import mergewise.demo


def test_the_demo_gets_folder_and_speed(run, monkeypatch):
    calls = []

    def run_demo(folder, *, fast, console):
        calls.append((folder, fast))
        console.print("training")
        return {"scores": {}}

    monkeypatch.setattr(mergewise.demo, "run_demo", run_demo)
    result = run("demo")
    assert (result.exit_code, result.stdout, result.stderr) == (
        0,
        "demo/results.json\n",
        "training\n",
    )
    assert json.loads(run("demo", "there", "--fast", "--json").stdout) == {"scores": {}}
    assert run("demo", "-q").stderr == ""
    assert calls == [(Path("demo"), False), (Path("there"), True), (Path("demo"), False)]
