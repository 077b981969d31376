"""What programs in the sandbox can and cannot do, with and without each layer."""

import contextlib
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mergewise.evidence.evaluators import _sandbox
from mergewise.evidence.evaluators._sandbox import run


def without_the_guard(monkeypatch, layer):
    """Leave the kernel's layers alone in charge; skip where the kernel has them not."""
    if not getattr(run("pass"), layer):
        pytest.skip(f"this kernel does not allow {layer}")
    monkeypatch.setattr(_sandbox, "_GUARD", False)


def test_a_right_program_passes():
    found = run("def double(x):\n    return 2 * x", "assert double(3) == 6")
    assert found.passed and found.compiled and found.reason == ""


@pytest.mark.parametrize(
    ("program", "tests", "reason"),
    [
        ("def f(): return 1", "assert f() == 2", "AssertionError"),
        ("def f(): return 1", "assert f() == 2, 'not two'", "AssertionError: not two"),
        ("x = 1 / 0", "", "ZeroDivisionError: division by zero"),
        ("raise KeyboardInterrupt", "", "KeyboardInterrupt"),
        ("input()", "", "EOFError: EOF when reading a line"),
        ("def f(n): return f(n + 1)\nf(0)", "", "RecursionError: maximum recursion depth exceeded"),
        ("class E(Exception):\n    def __str__(self): exit()\nraise E", "", "an error that cannot"),
    ],
)
def test_a_wrong_program_fails_with_its_reason(program, tests, reason):
    found = run(program, tests)
    assert not found.passed and found.compiled
    assert found.reason.startswith(reason)


@pytest.mark.parametrize("program", ["def f(:", "\x00", "(" * 3000])
def test_what_is_not_python_does_not_compile(program):
    found = run(program, "pass")
    assert not found.passed and not found.compiled


@pytest.mark.parametrize(
    "program",
    [
        "import sys; sys.exit(0)",
        "exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "import atexit, os; os.write(1, b'passed'); os._exit(0)",
        "import os\nfor fd in range(3, 20):\n    try: os.write(fd, b'{\"passed\": true}\\n')\n"
        "    except OSError: pass\nos._exit(0)",
        "import builtins; builtins.exec = builtins.compile = print",
        "import os, json; os._exit = json.dumps = print",
        "import sys; sys.modules['__main__'].describe = print",
    ],
)
def test_leaving_before_the_tests_is_not_passing(program):
    assert not run(program, "assert 1 == 2").passed


def test_an_endless_loop_is_stopped():
    begun = time.monotonic()
    found = run("while True: pass", seconds=1)
    assert not found.passed and found.reason == "not done after 1 s"
    assert time.monotonic() - begun < 5


def test_sleeping_is_stopped():
    assert run("import time; time.sleep(60)", seconds=0.5).reason == "not done after 0.5 s"


def test_memory_is_bounded():
    assert run("x = 'a' * (1 << 30)", memory_bytes=256 << 20).reason == "MemoryError"
    assert run("x = 'a' * (1 << 28)", memory_bytes=1 << 30).passed


def test_output_is_thrown_away():
    assert run("print('x' * 50_000_000)").passed
    assert run("import sys; sys.stderr.write('x' * 50_000_000)").passed


def test_a_flood_of_the_result_channel_is_cut_off():
    flood = (
        "import os\nwhile True:\n    for fd in range(3, 9):\n        try: os.write(fd, b'x' * 999)"
    )
    found = run(flood + "\n        except OSError: pass", seconds=5)
    assert not found.passed


def test_files_are_bounded():
    found = run("open('big', 'wb').write(b'x' * (64 << 20))")
    assert found.reason.startswith("OSError: [Errno 27]")


@pytest.mark.parametrize(
    "program",
    [
        "import os; os.fork()",
        "import os\nwhile True: os.fork()",
        "import os; os.system('true')",
        "import os; os.execv('/bin/true', ['true'])",
        "import os; os.posix_spawn('/bin/true', ['true'], {})",
        "import os; os.kill(os.getppid(), 9)",
        "import subprocess; subprocess.run(['true'])",
        "import multiprocessing; multiprocessing.Process(target=print).start()",
        "import ctypes; ctypes.CDLL(None).fork()",
        "import sys; sys.modules.pop('ctypes', None); import _ctypes",
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (9, 9))",
    ],
)
def test_processes_signals_and_native_code_are_refused(program):
    found = run(program)
    assert not found.passed and "refused here" in found.reason


@pytest.mark.parametrize(
    "program",
    [
        "import os; os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
        "import os; os.sched_setaffinity(os.getppid(), {0})",
        "import posix; posix.sched_setaffinity(posix.getppid(), {0})",
        "import os; os.pidfd_open(os.getppid())",
        "import signal; signal.pidfd_send_signal(0, 9)",
        "import os; os.mkfifo('x')",
    ],
)
def test_functions_that_no_hook_hears_of_are_gone(program):
    found = run(program)
    assert found.reason.startswith("AttributeError: module ")


def test_an_interpreter_without_the_hook_is_refused():
    names = ("_interpreters", "_xxsubinterpreters")
    for name in names:
        assert not run(f"import {name}\n{name}.create()").passed


def test_children_end_with_their_parent(monkeypatch, tmp_path):
    monkeypatch.setattr(_sandbox, "_GUARD", False)
    program = "import os, time\nos.fork()\nopen(f'{os.getpid()}', 'w')\ntime.sleep(60)"
    before = processes()
    run(program, seconds=1)
    time.sleep(0.2)
    assert not [c for pid, c in processes().items() if pid not in before and "_sandbox_child" in c]


def processes():
    """Command lines by process."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found[folder.name] = (folder / "cmdline").read_text(errors="replace")
    return found


class Listener:
    """Counts the connections that reach a port of this machine."""

    def __init__(self):
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.arrived = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                self.server.accept()[0].close()
            except OSError:
                return
            self.arrived += 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.close()


CONNECT = "import socket; socket.create_connection(('127.0.0.1', {}), 2)"


def test_the_listener_hears():
    with Listener() as listener:
        socket.create_connection(("127.0.0.1", listener.port), 2).close()
        time.sleep(0.1)
        assert listener.arrived == 1


def test_no_connection_arrives():
    with Listener() as listener:
        found = run(CONNECT.format(listener.port))
        assert not found.passed and "refused here" in found.reason
        time.sleep(0.1)
        assert listener.arrived == 0


def test_no_connection_arrives_by_the_kernel_alone(monkeypatch):
    without_the_guard(monkeypatch, "no_network")
    with Listener() as listener:
        found = run(CONNECT.format(listener.port))
        assert found.reason.startswith("OSError: [Errno 101]")
        time.sleep(0.1)
        assert listener.arrived == 0


HARM = {
    "delete": "import os; os.remove({path!r})",
    "rename": "import os; os.rename({path!r}, 'mine')",
    "overwrite": "open({path!r}, 'w')",
    "append": "open({path!r}, 'ab').write(b'x')",
    "truncate": "import os; os.truncate({path!r}, 0)",
    "low level": "import os; os.open({path!r}, os.O_RDWR | os.O_TRUNC)",
    "pathlib": "import pathlib; pathlib.Path({path!r}).unlink()",
    "tree": "import shutil; shutil.rmtree({folder!r})",
    "beside": "open({folder!r} + '/new', 'w')",
    "folder": "import os; os.mkdir({folder!r} + '/new')",
    "chdir": "import os; os.chdir({folder!r}); open('precious', 'w')",
    "descriptor": "import os; os.remove('precious', dir_fd=os.open({folder!r}, os.O_RDONLY))",
}


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("guard", [True, False])
def test_files_outside_are_safe(monkeypatch, tmp_path, harm, guard):
    if not guard:
        without_the_guard(monkeypatch, "no_writing")
    precious = tmp_path / "precious"
    precious.write_text("data")
    found = run(HARM[harm].format(path=str(precious), folder=str(tmp_path)))
    assert not found.passed and "Permission" in found.reason
    assert precious.read_text() == "data"
    assert list(tmp_path.iterdir()) == [precious]


def test_a_link_does_not_lead_outside(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("data")
    found = run(f"import os; os.symlink({str(precious)!r}, 'x'); open('x', 'w')")
    assert not found.passed
    assert precious.read_text() == "data"


def test_executing_is_refused_by_the_kernel_alone(monkeypatch):
    without_the_guard(monkeypatch, "no_writing")
    found = run("import subprocess; subprocess.run(['/bin/true'])")
    assert found.reason.startswith("PermissionError")


def test_its_own_folder_is_empty_writable_and_gone_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    program = (
        "import os, tempfile\nassert os.listdir() == []\nopen('a', 'w').write('1')\n"
        "os.mkdir('b'); os.rename('a', 'b/a'); assert open('b/a').read() == '1'\n"
        "with tempfile.TemporaryFile() as file: file.write(b'x')\nos.remove('b/a'); os.rmdir('b')"
    )
    found = run(program)
    assert found.passed, found.reason
    assert list(tmp_path.iterdir()) == []


def test_secrets_of_the_environment_are_not_handed_on(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    assert run("import os", "assert 'SECRET_TOKEN' not in os.environ").passed


def test_sets_have_the_same_order_in_every_run():
    shown = subprocess.run(
        [sys.executable, "-c", "print(hash('a'))"], env={"PYTHONHASHSEED": "0"}, capture_output=True
    )
    assert run("", f"assert hash('a') == {int(shown.stdout)}").passed


def test_usual_modules_can_be_imported():
    names = (
        "array, bisect, cmath, collections, copy, dataclasses, datetime, decimal, enum, fractions, "
        "functools, heapq, itertools, json, math, operator, random, re, statistics, string, typing"
    )
    program = f"import {names}\n@dataclasses.dataclass\nclass A:\n    x: int = 1\n"
    found = run(program, "import copy, pickle\nassert pickle.loads(pickle.dumps(A(2))) == A(2)")
    assert found.passed, found.reason
