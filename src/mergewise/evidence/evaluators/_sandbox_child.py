"""The process in which a program runs; `_sandbox` starts this file as a script.

It imports nothing of ours, gives up what it can, runs the program, then its tests, and says how
it went over its first standard output.
"""

import json
import os
import resource
import struct
import sys
import types
from typing import Any

NEW_USER, NEW_NET, NEW_IPC = 0x10000000, 0x40000000, 0x08000000
NO_NEW_PRIVS = 38

# Landlock (Linux 5.13 and later): system calls, and rights by the version that brought them
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
EXECUTE = 1
WRITES = (1 << 1) | sum(1 << bit for bit in range(4, 13))
MOVES, TRUNCATES = 1 << 13, 1 << 14
SIGNALS_AND_SOCKETS = 3

REFUSED = (
    "socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork",
    "os.kill", "pty.", "ctypes.", "gc.get_", "resource.setrlimit", "resource.prlimit",
    "signal.pthread_kill", "os.chown", "os.lchown", "os.chmod", "os.chflags", "os.setxattr",
    "os.removexattr", "os.link", "os.symlink", "sqlite3.", "webbrowser.", "syslog.",
    "sys._current_frames", "sys.setprofile", "sys.settrace", "cpython.PyInterpreterState_New",
)  # fmt: skip
REFUSED_MODULES = frozenset(
    ("ctypes", "_ctypes", "_socket", "_posixsubprocess", "_multiprocessing", "_posixshmem",
     "_dbm", "_gdbm", "_testcapi", "_testinternalcapi", "_xxsubinterpreters", "_interpreters")
)  # fmt: skip
# functions that reach other processes or make files, and of which no audit hook is told
UNWATCHED = (
    "pidfd_open", "pidfd_send_signal", "setpriority", "sched_setaffinity", "sched_setparam",
    "sched_setscheduler", "mkfifo", "mknod", "chroot", "setns", "unshare",
)  # fmt: skip
# event: how many of its first arguments are paths, and where its folder descriptors are
CHANGES = {
    "os.remove": (1, (1,)), "os.rmdir": (1, (1,)), "os.mkdir": (1, (2,)), "os.truncate": (1, ()),
    "os.rename": (2, (2, 3)), "os.utime": (1, (3,)),
}  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main() -> None:
    """One job from standard input."""
    job = json.loads(sys.stdin.buffer.read())
    result = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    layers = isolate()
    limit(job["seconds"], job["memory"])
    tell(result, layers)
    program = module("program")
    if job["guard"]:
        take_away(UNWATCHED)
        sys.addaudithook(guard(os.path.realpath(".")))
    run(job, program, result)


def isolate() -> dict[str, bool]:
    """Give up the network and the file system where the kernel allows it; says which it did."""
    try:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        return {
            "namespace": any(libc.unshare(user | NEW_NET | NEW_IPC) == 0 for user in (NEW_USER, 0)),
            "landlock": only_this_folder(libc, ctypes),
        }
    except (ImportError, AttributeError, OSError):
        return {"namespace": False, "landlock": False}
    finally:
        # imported again, it meets the guard
        for name in [n for n in sys.modules if "ctypes" in n]:
            del sys.modules[name]


def only_this_folder(libc: Any, ctypes: types.ModuleType) -> bool:
    """Landlock: no writing outside the working folder, no executing, no signals to others."""
    call = libc.syscall
    version = call(CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if sys.platform != "linux" or version < 1:
        return False
    rights = WRITES | (MOVES if version >= 2 else 0) | (TRUNCATES if version >= 3 else 0)
    rules = struct.pack("QQQ", rights | EXECUTE, 0, SIGNALS_AND_SOCKETS)
    size = 24 if version >= 6 else 8
    ruleset = call(CREATE_RULESET, rules, ctypes.c_size_t(size), 0)
    folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    beneath = struct.pack("=Qi", rights, folder)
    done = (
        ruleset >= 0
        and call(ADD_RULE, ruleset, 1, beneath, 0) == 0
        and libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0) == 0
        and call(RESTRICT_SELF, ruleset, 0) == 0
    )
    os.close(folder)
    os.close(ruleset)
    return bool(done)


def limit(seconds: float, memory: int) -> None:
    """Bounds of the kernel's: processor time, memory, files, processes."""
    bounds = {
        "RLIMIT_CPU": int(seconds) + 1,
        "RLIMIT_AS": memory,
        "RLIMIT_FSIZE": 16 << 20,
        "RLIMIT_NOFILE": 64,
        "RLIMIT_CORE": 0,
        "RLIMIT_NPROC": 0,
    }
    for name, most in bounds.items():
        try:
            resource.setrlimit(getattr(resource, name), (most, most))
        except (AttributeError, ValueError, OSError):
            continue  # the parent's clock and the guard remain


def module(name: str) -> types.ModuleType:
    """An empty module under `name`, and nothing of this file under ``__main__``."""
    new = types.ModuleType(name)
    sys.modules[name] = sys.modules["__main__"] = new
    return new


def take_away(names: tuple[str, ...]) -> None:
    """Delete functions of the system's modules."""
    import signal

    for home in (os, signal, sys.modules["posix"], sys.modules["_signal"]):
        for name in names:
            if hasattr(home, name):
                delattr(home, name)


def guard(folder: str) -> Any:
    """An audit hook that refuses processes, sockets, native code and writing outside `folder`."""
    realpath, fsdecode, isdir, inside = os.path.realpath, os.fsdecode, os.path.isdir, folder + "/"
    refused, modules, changes, writing = REFUSED, REFUSED_MODULES, CHANGES, WRITING

    def outside(path: Any) -> bool:
        if isinstance(path, int):
            return False
        place = realpath(fsdecode(path))
        return place != folder and not place.startswith(inside)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "import":
            if args[0] in modules:
                raise ImportError(f"{args[0]} is refused here")
        elif event == "open":
            path, mode, flags = args
            if isinstance(flags, int) and flags & writing:
                if outside(path):
                    raise PermissionError(f"writing {path!r} is refused here")
            elif mode is None and isinstance(path, str | bytes) and isdir(path):
                # a folder's descriptor would make relative paths mean something else
                raise PermissionError(f"opening the folder {path!r} is refused here")
        elif event in changes:
            count, folders = changes[event]
            if any(map(outside, args[:count])) or any(args[i] != -1 for i in folders):
                raise PermissionError(f"{event} is refused here")
        elif event.startswith(refused):
            raise PermissionError(f"{event} is refused here")

    return hook


def run(job: dict[str, Any], program: types.ModuleType, result: int) -> None:
    """The program, then its tests; never returns."""
    # bound now: the program may change modules, but not these
    execute, leave, say, reason_of = exec, os._exit, tell, describe
    passed = {"token": job["token"], "passed": True, "reason": "", "compiled": True}
    state = {"token": "", "passed": False, "reason": "", "compiled": False}
    try:
        code = compile(job["program"], "program", "exec")
        tests = compile(job["tests"], "tests", "exec")
        state["compiled"] = True
        execute(code, program.__dict__)
        execute(tests, program.__dict__)
        state = passed
    except BaseException as error:  # whatever a program may raise is its failure
        state["reason"] = reason_of(error)
    say(result, state)
    leave(0)


def describe(error: BaseException) -> str:
    """The error in one line."""
    try:
        lines = str(error).splitlines() or [""]
        return f"{type(error).__name__}: {lines[0][:200]}".removesuffix(": ")
    except BaseException:
        return "an error that cannot be printed"


def tell(
    result: int, message: dict[str, Any], dumps: Any = json.dumps, write: Any = os.write
) -> None:
    """One line of JSON to the parent."""
    write(result, (dumps(message) + "\n").encode())


if __name__ == "__main__":
    main()
