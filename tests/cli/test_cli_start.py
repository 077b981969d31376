"""Starting up: what is loaded, how long it takes, what a wrong command says."""

import json
import os
import subprocess
import sys

import pytest

import mergewise

PROBE = """
import json, resource, sys
from mergewise.cli import cli
try:
    cli(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
usage = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([code, usage.ru_utime + usage.ru_stime, sorted(sys.modules)]), file=sys.stderr)
"""


def probe(*arguments, cwd):
    """(exit code, CPU seconds, loaded modules) of a command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, cwd=cwd
    )
    code, seconds, modules = json.loads(done.stderr.splitlines()[-1])
    return code, seconds, set(modules)


def test_help_is_quick_and_loads_nothing_heavy(here):
    code, _, modules = probe("--help", cwd=here)
    assert code == 0
    heavy = {"torch", "numpy", "transformers", "pydantic", "rich", "yaml", "jinja2"}
    assert modules & heavy == set()
    # wanted is half a second of CPU; a busy machine may need two or three tries
    assert min(probe("--help", cwd=here)[1] for _ in range(3)) < 0.5


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "ties.yml"),
        ("plan", "ties.yml"),
        ("plan", "ties.yml", "--json"),
        ("plan", "ties.yml", "--explain", "lm_head.weight"),
        ("methods",),
        ("methods", "ties"),
        ("inspect", "base"),
        ("merge", "--help"),
        ("evaluate", "--help"),
        ("evaluate", "--list"),
        ("evaluate", "--list", "language_model"),
    ],
    ids=" ".join,
)
def test_looking_needs_no_torch(here, arguments):
    code, seconds, modules = probe(*arguments, cwd=here)
    assert code == 0
    assert modules & {"torch", "numpy", "transformers"} == set()
    assert seconds < 2, "a second of CPU is wanted at most"


def test_version(run):
    result = run("--version")
    assert result.stdout == f"mergewise, version {mergewise.__version__}\n"


def test_all_commands_explain_themselves(run):
    listed = run("--help").stdout.split("Commands:")[1].splitlines()
    names = [line.split()[0] for line in listed if line.strip()]
    assert "merge" in names and "plan" in names
    for name in names:
        result = run(name, "--help")
        assert result.exit_code == 0
        assert f"Usage: mergewise {name}" in result.stdout
        assert "..." not in next(line for line in listed if line.split()[:1] == [name])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mrge"], "no command 'mrge'; did you mean 'merge'?"),
        (["merge", "ties.yml"], "Missing argument 'OUT'"),
        (["merge", "ties.yml", ""], "it is empty; give a folder for the output"),
        (["plan", "ties.yml", "--jsn"], "did you mean one of: '--json'"),
        (["merge", "ties.yml", "out", "--memory", "4XB"], "'4XB' is not a size; expected such as"),
        (["merge", "ties.yml", "out", "--device", "gpu"], "expected auto, cpu, cuda or cuda:N"),
        (["merge", "ties.yml", "out", "--workers", "0"], "0 is not in the range"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_usage_exits_2_and_says_where_to_look(run, arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message.lower() in result.stderr.lower()
    assert result.stderr.splitlines()[-1].endswith("--help shows how it is used")


def test_no_command_shows_the_help_and_is_no_success(run):
    result = run()
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Usage: mergewise")
    assert result.stderr.endswith("Print the completion script of a shell.\n")


def test_a_recipe_may_come_through_a_pipe(here):
    command = f"{sys.executable} -m mergewise plan /dev/stdin < <(cat ties.yml)"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=here)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(run, shell):
    result = run("completion", shell)
    assert result.exit_code == 0
    assert f"_MERGEWISE_COMPLETE={shell}_complete" in result.stdout


def test_completion_knows_the_methods(here):
    environment = {
        **os.environ,
        "_MERGEWISE_COMPLETE": "bash_complete",
        "COMP_WORDS": "mergewise methods breadcrumbs_",
        "COMP_CWORD": "2",
    }
    done = subprocess.run(
        [sys.executable, "-m", "mergewise"], env=environment, capture_output=True, text=True
    )
    assert done.stdout == "plain,breadcrumbs_ties\n"


def test_a_pipe_that_closes_is_no_error(here):
    command = f"{sys.executable} -m mergewise inspect base --tensors | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=here)
    assert done.stderr == ""


def test_tracebacks_only_when_asked_for(run):
    assert "Traceback" not in run("inspect", "nowhere").stderr
    assert "Traceback" in run("inspect", "nowhere", "-vv").stderr


def test_colours_follow_the_environment(run, monkeypatch):
    assert "\x1b" not in run("inspect", "nowhere").stderr
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[31m" in run("inspect", "nowhere").stderr
    assert "\x1b[1m" in run("methods").stdout
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in run("inspect", "nowhere").stderr
