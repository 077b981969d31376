"""A function of the user's as an evaluator."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any

from mergewise.errors import MergewiseError, TaskError
from mergewise.evidence.evaluators._base import Evaluator, Metric, Score, Task
from mergewise.evidence.evaluators._records import LIMIT, records
from mergewise.evidence.models._live import LiveModel, Role
from mergewise.methods import REQUIRED, Param

_ROLES = ("causal_lm", "body", "text_classifier", "image_classifier")


class PythonFunction(Evaluator):
    """Calls ``module:function`` as ``f(model, records, split)``.

    It gets the `LiveModel`, the records of the split as a list (empty for a task without data)
    and the split's name. It returns a mapping of metrics, numbers by name, of which the one
    called by the option `metric`, else the first, is the primary one; or a pair of such a mapping
    and one of outcomes, each with a value for every record. Only functions one trusts: they run
    in this process.
    """

    name = "python"
    summary = "any Python function, module:function"
    fields = "whatever the function reads"
    params = {
        "function": Param(str, REQUIRED, "module:function"),
        "path": Param(str, None, "folder in which the module lies"),
        "metric": Param(str, "score", "the metric by which models are compared"),
        "best": Param(str, "max", "whether more or less of it is better", choices=("max", "min")),
        "role": Param(str, "causal_lm", "what the checkpoint is loaded as", choices=_ROLES),
        **LIMIT,
    }
    metrics = {"score": Metric("max", "what the function returns; named by `metric`")}
    example = """
- name: rhymes
  kind: python
  function: my_metrics:rhymes
  path: metrics
  metric: rhymed
  data: poems.jsonl
"""
    paths = ("path",)
    needs_data = False

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        options = task.options
        self.metrics = {options.metric: Metric(options.best, f"of {options.function}")}

    def role(self) -> Role:
        return self.task.options.role

    def check(self) -> None:
        self._function()

    def mark(self) -> str | None:
        """None: what the function calls cannot be known, so its results are not cached."""
        return None

    def score(self, model: LiveModel, split: str) -> Score:
        begun = time.perf_counter()
        rows = records(self.task, split) if self.task.data else []
        function = self._function()
        with self._importable(), self._reported():
            returned = function(model, rows, split)
        metrics, outcomes = self._parts(returned, len(rows))
        return Score(metrics, outcomes, len(rows), time.perf_counter() - begun)

    def _function(self) -> Callable[..., Any]:
        name = self.task.options.function
        module, colon, attribute = name.partition(":")
        if not (module and colon and attribute):
            raise TaskError(
                f"task {self.task.name}: function {name!r}: expected module:function, "
                "such as my_metrics:score"
            )
        with self._importable(), self._reported():
            found: Any = self._module(module)
        for part in attribute.split("."):
            found = getattr(found, part, None)
        if not callable(found) or inspect.isclass(found):
            raise TaskError(f"task {self.task.name}: {name} is not a function of that module")
        return found

    def _module(self, name: str) -> Any:
        if self.task.options.path is None:
            return self._imported(name)
        # two tasks may have modules of one name in different folders
        place = Path(self.task.options.path).resolve().joinpath(*name.split("."))
        mine = (place.with_name(f"{place.name}.py"), place / "__init__.py")
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is not None and Path(file).resolve() not in mine and any(m.is_file() for m in mine):
            del sys.modules[name]
        importlib.invalidate_caches()
        return self._imported(name)

    def _imported(self, name: str) -> Any:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # one that it imports itself
            raise TaskError(
                f"task {self.task.name}: no module {name!r}; `path` names the folder it lies in"
            ) from None

    @contextmanager
    def _importable(self) -> Iterator[None]:
        path = self.task.options.path
        if path is None:
            yield
            return
        if not Path(path).is_dir():
            raise TaskError(f"task {self.task.name}: path {path} is not a folder")
        sys.path.insert(0, str(Path(path).resolve()))
        try:
            yield
        finally:
            sys.path.remove(str(Path(path).resolve()))

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except MergewiseError:
            raise
        except Exception as error:
            last = traceback.format_exception_only(error)[-1].strip()
            frame = traceback.extract_tb(error.__traceback__)[-1]
            raise TaskError(
                f"task {self.task.name}: {self.task.options.function}: {last} "
                f"({Path(frame.filename).name}, line {frame.lineno})"
            ) from error

    def _parts(self, returned: Any, rows: int) -> tuple[dict[str, float], dict[str, list[Any]]]:
        metrics, outcomes = returned if isinstance(returned, tuple) else (returned, {})
        said = f"task {self.task.name}: {self.task.options.function}"
        if not isinstance(metrics, Mapping) or not all(map(_is_number, metrics.values())):
            raise TaskError(f"{said} must return finite numbers by name, got {returned!r:.200}")
        if self.primary not in metrics:
            raise TaskError(
                f"{said} returned {', '.join(map(str, metrics)) or 'no metrics'}, and not "
                f"{self.primary!r}; name one of them as `metric`"
            )
        lists = {str(name): list(values) for name, values in dict(outcomes).items()}
        for name, values in lists.items():
            if len(values) != rows:
                raise TaskError(f"{said}: outcome {name!r} has {len(values)} values, not {rows}")
        return {str(name): float(value) for name, value in metrics.items()}, lists


def _is_number(value: Any) -> bool:
    # numpy's and torch's scalars count, through float
    if isinstance(value, bool) or not (isinstance(value, Real) or hasattr(value, "item")):
        return False
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError, RuntimeError):
        return False
