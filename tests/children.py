"""Functions run in processes that may be killed: forked from one that has torch loaded already."""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

_PRELOADED = ["pytest", "torch", "safetensors.torch", "jinja2", "yaml", "mergewise.engine"]
needs_fork = pytest.mark.skipif(os.name != "posix", reason="needs fork and SIGKILL")


def start(function: Callable[..., Any], log: Path, *arguments: Any) -> BaseProcess:
    """Run ``function(*arguments)`` in a child; what it raises is written to `log`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    child = context.Process(target=_run, args=(function, log, arguments), daemon=True)
    child.start()
    return child


def _run(function: Callable[..., Any], log: Path, arguments: tuple[Any, ...]) -> None:
    sys.stderr = log.open("w")
    try:
        function(*arguments)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def finish(child: BaseProcess, seconds: float = 60) -> int:
    """Wait for a child; its exit code (negative: the signal that ended it)."""
    child.join(seconds)
    if child.is_alive():
        child.kill()
        child.join()
        raise AssertionError("the child hangs")
    assert child.exitcode is not None
    return child.exitcode
