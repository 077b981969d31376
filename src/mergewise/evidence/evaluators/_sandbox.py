"""Run a program that nobody vouches for, and tell whether its tests pass.

It runs in a fresh Python process in an empty folder that is deleted afterwards, with an
environment of a few variables, no standard input, its output thrown away, and within bounds of
time, memory, file size, open files and, unless the user is root, of no further processes or
threads. When time is up its whole process group is killed. Layers:

* an audit hook refuses sockets, new processes, signals, native code and every change to files
  outside the folder;
* where the kernel lets an ordinary user do so (Linux), namespaces of its own leave it no network
  device, and Landlock refuses writing outside the folder and executing files. `Outcome` says
  whether they did.

What remains: it can read files the user can read, though it has nowhere to send them, and fill
the disk with small files until its time is up. Without the kernel's layers a program that knows
CPython's insides can get around the hook. Program and tests share a process: the verdict counts
only with a random token that is sent after the tests, which stops programs that exit early or
print "passed", not one that searches the interpreter's memory for the token, or whose results
claim to equal anything. So this is for code that models write, not a place for malware; for that
use a virtual machine.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mergewise.errors import TaskError

_CHILD = Path(__file__).with_name("_sandbox_child.py")
_MOST_SAID = 1 << 16
_GUARD = True


@dataclass(frozen=True)
class Outcome:
    """What became of a program.

    Attributes:
        passed: whether it and its tests ran to their end.
        reason: why not, in one line; empty if passed.
        compiled: whether program and tests are Python at all.
        no_network: whether the kernel kept it from the network; otherwise only the hook did.
        no_writing: whether the kernel kept it in its folder; otherwise only the hook did.
    """

    passed: bool
    reason: str = ""
    compiled: bool = False
    no_network: bool = False
    no_writing: bool = False


def require_sandbox() -> None:
    """Raises TaskError on a system without the means that the sandbox needs."""
    if os.name != "posix":
        raise TaskError("programs are run only on Linux and macOS, which can bound them")


def run(
    program: str, tests: str = "", *, seconds: float = 10.0, memory_bytes: int = 1 << 30
) -> Outcome:
    """Run `program`, then `tests` in the same module.

    Args:
        seconds: of wall time, starting Python included; the same of processor time.
        memory_bytes: of address space.

    Raises:
        TaskError: if the system cannot do it.
    """
    require_sandbox()
    token = secrets.token_hex(16)
    job = {
        "program": program, "tests": tests, "token": token,
        "seconds": seconds, "memory": memory_bytes, "guard": _GUARD,
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="mergewise-", ignore_cleanup_errors=True) as folder:
        process = _start(folder)
        try:
            deadline = time.monotonic() + seconds
            said, late = _converse(process, json.dumps(job).encode(), deadline)
        finally:
            _kill(process)
    return _outcome(said, late, token, process.returncode, seconds)


def _start(folder: str) -> subprocess.Popen[bytes]:
    # isolated like python -I, but with hashes that are the same in every run
    command = [sys.executable, "-s", "-P", "-B", "-X", "utf8", str(_CHILD)]
    environment = {
        "PATH": os.defpath, "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
    }  # fmt: skip
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _converse(process: subprocess.Popen[bytes], job: bytes, deadline: float) -> tuple[bytes, bool]:
    """Give the job, and read what is said until the end, the deadline, or too much."""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(job)
        process.stdin.close()
    except BrokenPipeError:
        return b"", False
    return _read(process.stdout, deadline)


def _read(pipe: IO[bytes], deadline: float) -> tuple[bytes, bool]:
    said = b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while len(said) < _MOST_SAID:
            left = deadline - time.monotonic()
            if left <= 0 or not selector.select(left):
                return said, True
            part = os.read(pipe.fileno(), 4096)
            if not part:
                break
            said += part
    return said, False


def _kill(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None and not pipe.closed:
            pipe.close()


def _outcome(said: bytes, late: bool, token: str, code: int | None, seconds: float) -> Outcome:
    layers, verdict = _lines(said)
    kept = {
        "no_network": layers.get("namespace") is True,
        "no_writing": layers.get("landlock") is True,
    }
    compiled = verdict.get("compiled") is True
    if verdict.get("passed") is True and secrets.compare_digest(str(verdict.get("token")), token):
        return Outcome(True, "", True, **kept)
    if late:
        return Outcome(False, f"not done after {seconds:g} s", True, **kept)
    if verdict:
        return Outcome(False, str(verdict.get("reason"))[:300], compiled, **kept)
    return Outcome(False, f"ended before its tests were done (exit code {code})", True, **kept)


def _lines(said: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first line, about layers, and the second, the verdict; empty where there is none."""
    found: list[dict[str, Any]] = []
    for line in said.splitlines()[:2]:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = {}
        found.append(value if isinstance(value, dict) else {})
    found += [{}, {}]
    return found[0], found[1]
