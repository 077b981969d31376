"""`mergewise merge`: output, progress, interruption."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from mergewise.cli import _merge, _progress
from mergewise.cli._interrupt import terminable
from mergewise.cli._output import Output

SMALL = ("--shard-size", "1kB", "--workers", "1")


def weights(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_the_folder_is_all_that_stdout_gets(run, here):
    result = run("merge", "ties.yml", "out")
    assert (result.exit_code, result.stdout) == (0, "out\n")
    assert (here / "out/config.json").exists()
    lines = result.stderr.splitlines()
    assert lines[0] == "ties of base, expert_a, expert_b"
    assert lines[1].startswith("reads 42.9 kB, writes 14.3 kB (7,152 parameters) to out, ")
    assert lines[-1].startswith("wrote 14.3 kB in 1 file, ")


def test_quiet_says_nothing(run):
    assert run("merge", "ties.yml", "out", "-q").stderr == ""


def test_json_summary(run):
    summary = json.loads(run("merge", "ties.yml", "out", "--json").stdout)
    assert summary["out"] == "out" and summary["files"] == ["model.safetensors"]
    assert summary["bytes"] == 2 * 7152


def test_an_output_is_replaced_only_when_asked(run, here):
    assert run("merge", "ties.yml", "out").exit_code == 0
    before = weights(here / "out")
    again = run("merge", "ties.yml", "out", "--set", "parameters.lambda=0.1")
    assert again.exit_code == 1
    assert "error: out: is not empty" in again.stderr and "--overwrite" in again.stderr
    assert weights(here / "out") == before
    assert (
        run("merge", "ties.yml", "out", "--set", "parameters.lambda=0.1", "--overwrite").exit_code
        == 0
    )
    assert weights(here / "out") != before


def test_a_bad_recipe_exits_2_before_anything_is_made(run, here):
    (here / "wrong.yml").write_text((here / "ties.yml").read_text().replace("density", "densty"))
    result = run("merge", "wrong.yml", "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "wrong.yml:5:31: " in result.stderr and "did you mean `density`?" in result.stderr
    assert not (here / "out").exists()


def test_warnings_of_an_old_recipe_are_shown(run, here):
    (here / "old.yml").write_text((here / "ties.yml").read_text() + "cuda: true\n")
    result = run("merge", "old.yml", "out", "--lenient")
    assert result.exit_code == 0
    assert "old.yml:13:1: warning: " in result.stderr


def test_too_little_memory_is_said_before_the_merge(run, here):
    result = run("merge", "ties.yml", "out", "--memory", "1MB")
    assert result.exit_code == 1
    assert "--memory" in result.stderr
    assert not (here / "out").exists()


@pytest.fixture
def interrupted(monkeypatch):
    """Progress that interrupts as soon as half is written."""

    @contextmanager
    def progress(out):
        def report(done, total):
            if done * 2 > total:
                raise KeyboardInterrupt

        yield report

    monkeypatch.setattr(_merge, "progress", progress)
    return monkeypatch


def test_interrupted_says_how_to_continue_and_continues(run, here, interrupted):
    stopped = run("merge", "ties.yml", "out dir", *SMALL, "--restart")
    assert (stopped.exit_code, stopped.stdout) == (130, "")
    assert "finished files" in stopped.stderr
    assert "kept in out dir" in stopped.stderr
    command = stopped.stderr.splitlines()[-1].strip()
    assert command == "mergewise merge ties.yml 'out dir' --shard-size 1kB --workers 1"
    assert not (here / "out dir/config.json").exists()
    interrupted.undo()
    interrupted.chdir(here)
    resumed = run("merge", "ties.yml", "out dir", *SMALL)
    assert resumed.exit_code == 0
    assert "continuing the unfinished merge in out dir" in resumed.stderr
    assert "from before" in resumed.stderr
    assert run("merge", "ties.yml", "whole", *SMALL).exit_code == 0
    assert weights(here / "out dir") == weights(here / "whole")


def test_interrupted_within_the_only_file_goes_on_with_the_tensors_left(run, here, interrupted):
    stopped = run("merge", "ties.yml", "out", "--workers", "1")
    assert stopped.exit_code == 130
    assert "finished tensors kept in out" in stopped.stderr
    assert not (here / "out/config.json").exists()
    interrupted.undo()
    interrupted.chdir(here)
    resumed = run("merge", "ties.yml", "out", "--workers", "1")
    assert resumed.exit_code == 0
    assert "continuing the unfinished merge in out" in resumed.stderr
    assert run("merge", "ties.yml", "whole").exit_code == 0
    assert weights(here / "out") == weights(here / "whole")


def test_what_cannot_be_continued_is_not_said_to_be(run, here, interrupted):
    assert run("merge", "ties.yml", "out", "--workers", "1").exit_code == 130
    interrupted.undo()
    interrupted.chdir(here)
    refused = run("merge", "ties.yml", "out", "--set", "parameters.lambda=0.1")
    assert refused.exit_code == 1
    assert "cannot be continued" in refused.stderr
    assert "continuing" not in refused.stderr


STOPPED = """
import os, signal, sys
from mergewise.cli import _progress, cli
def stop(self, done, total):
    if done * 2 > total:
        os.kill(os.getpid(), signal.{name})
_progress.Lines.__call__ = stop
cli(sys.argv[1:])
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_signals_leave_a_merge_resumable(run, here, name):
    assert hasattr(signal, name)
    arguments = ["merge", "ties.yml", "out", "--shard-size", "1kB", "--workers", "2"]
    stopped = subprocess.run(
        [sys.executable, "-c", STOPPED.format(name=name), *arguments],
        capture_output=True, text=True, cwd=here,
    )  # fmt: skip
    assert stopped.returncode == 130, stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert stopped.stderr.splitlines()[-1].strip() == "mergewise " + " ".join(arguments)
    assert (here / "out/.mergewise/journal.json").exists()
    assert run(*arguments).exit_code == 0
    assert not (here / "out/.mergewise").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=str)
def test_an_impatient_second_signal_changes_nothing(number):
    before = signal.getsignal(number)
    with terminable():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_signals_that_are_ignored_stay_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with terminable():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_progress_off_a_terminal_is_a_line_now_and_then(monkeypatch, capsys):
    clock = iter([0.0, 1.0, 6.0, 7.0, 12.0])
    monkeypatch.setattr(_progress.time, "monotonic", lambda: next(clock))
    lines = _progress.Lines(Output())
    for done in (1, 2, 3, 4):
        lines(done * 10**9, 10**10)
    assert capsys.readouterr().err.splitlines() == [
        "2 GB of 10 GB, 333 MB/s, 24 s left",
        "4 GB of 10 GB, 333 MB/s, 18 s left",
    ]


def test_what_comes_before_the_first_report_is_not_in_the_rate(monkeypatch, capsys):
    """Evidence was looked through for a minute, and half was there from an earlier run."""
    clock = iter([0.0, 60.0, 63.0, 66.0])
    monkeypatch.setattr(_progress.time, "monotonic", lambda: next(clock))
    lines = _progress.Lines(Output())
    for done in (5, 6, 7):
        lines(done * 10**9, 10**10)
    assert capsys.readouterr().err.splitlines() == ["7 GB of 10 GB, 333 MB/s, 9.0 s left"]


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals here")
def test_progress_on_a_terminal_is_a_bar_that_goes_away(here):
    ours, theirs = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-m", "mergewise", "merge", "ties.yml", "out"],
        stdout=subprocess.PIPE, stderr=theirs, text=True, cwd=here, env=environment,
    )  # fmt: skip
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert (done.returncode, done.stdout) == (0, "out\n")
    assert "\x1b[2K" in shown and "merging" in shown


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.42, "0.4 s"), (59.2, "59 s"), (125, "2 min 5 s"), (3790, "1 h 3 min")],
)
def test_durations_in_words(seconds, words):
    assert _progress.show_seconds(seconds) == words
