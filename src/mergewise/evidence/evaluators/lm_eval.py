"""Tasks of EleutherAI's lm-evaluation-harness."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mergewise.errors import MissingExtraError, TaskError
from mergewise.evidence.evaluators._base import Evaluator, Metric, Score, Task
from mergewise.evidence.evaluators._likelihood import tokenizer_of
from mergewise.evidence.evaluators._records import LIMIT
from mergewise.evidence.models._live import LiveModel
from mergewise.methods import REQUIRED, Param

_USUAL = ("acc_norm", "acc", "exact_match", "f1", "bleu", "word_perplexity", "perplexity")


class LmEval(Evaluator):
    """Runs tasks of the harness on the model in memory, and flattens what it returns.

    A metric is called ``task/metric`` (``task/metric/filter`` where a filter is named), or just
    ``metric`` where there is one task. `metric` names the one by which models are compared; by
    default the first of acc_norm, acc, exact_match and a few others of the first task. Whether
    more is better is the harness's own word. Task files of one's own lie in `include_path`. The
    harness loads data of its own, from the Hub unless the task's file names local files; so
    nothing is cached, and the split named to us is not used.
    """

    name = "lm_eval"
    summary = "tasks of lm-evaluation-harness, also local task files"
    fields = "the harness's own data"
    params = {
        "tasks": Param(str, REQUIRED, "names, with commas between them"),
        "include_path": Param(str, None, "folder of task files (YAML) of one's own"),
        "metric": Param(str, None, "the metric by which models are compared"),
        "num_fewshot": Param(int, None, "solved examples; default: the task's own", ge=0),
        "chat": Param(bool, False, "put prompts through the model's chat template"),
        "batch_size": Param(int, 8, "requests that run together", ge=1),
        **LIMIT,
        "best": Param(str, None, "whether more or less is better", choices=("max", "min")),
        "unsafe_code": Param(bool, False, "allow tasks that run programs the model wrote"),
    }
    metrics = {"score": Metric("max", "named by the harness")}
    example = """
- name: reasoning
  kind: lm_eval
  tasks: arc_easy,hellaswag
  metric: arc_easy/acc_norm
  limit: 200
"""
    paths = ("include_path",)
    needs_data = False

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        if task.options.metric:
            self.metrics = {task.options.metric: Metric(task.options.best or "max", "by lm-eval")}

    def check(self) -> None:
        if importlib.util.find_spec("lm_eval") is None:
            raise MissingExtraError("eval", "lm-eval")
        include = self.task.options.include_path
        if include is not None and not Path(include).is_dir():
            raise TaskError(f"task {self.task.name}: include_path {include} is not a folder")
        if not self._names():
            raise TaskError(f"task {self.task.name}: tasks is empty; name at least one")

    def mark(self) -> str | None:
        """None: the harness's data are not known here."""
        return None

    def score(self, model: LiveModel, split: str) -> Score:
        begun = time.perf_counter()
        self.check()
        tokenizer_of(model, self.task.name)
        results = self._evaluated(model)
        metrics = self._primary_first(dict(_flat(results)), results)
        counts = results.get("n-samples", {})
        return Score(
            metrics=metrics,
            examples=sum(int(count.get("effective", 0)) for count in counts.values()),
            seconds=time.perf_counter() - begun,
            notes=(f"lm-eval {results.get('lm_eval_version', '')}".strip(),),
        )

    def _names(self) -> list[str]:
        return [name.strip() for name in self.task.options.tasks.split(",") if name.strip()]

    def _evaluated(self, model: LiveModel) -> Mapping[str, Any]:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        options = self.task.options
        manager = TaskManager(include_path=options.include_path)
        if unknown := [name for name in self._names() if name not in manager.all_tasks]:
            raise TaskError(
                f"task {self.task.name}: lm-eval knows no task {', '.join(unknown)}; "
                "`lm-eval ls tasks` lists them, and `include_path` adds your own"
            )
        results = lm_eval.simple_evaluate(
            model=HFLM(
                pretrained=model.module, tokenizer=model.tokenizer, batch_size=options.batch_size
            ),
            tasks=self._names(),
            task_manager=manager,
            num_fewshot=options.num_fewshot,
            limit=options.limit,
            apply_chat_template=options.chat,
            confirm_run_unsafe_code=options.unsafe_code,
            bootstrap_iters=0,
            log_samples=False,
        )
        if not results or not results.get("results"):
            raise TaskError(f"task {self.task.name}: lm-eval returned no results")
        return results

    def _primary_first(
        self, metrics: dict[str, float], results: Mapping[str, Any]
    ) -> dict[str, float]:
        name = self.task.options.metric or _usual(metrics)
        if name not in metrics:
            raise TaskError(
                f"task {self.task.name}: no metric {name!r}; lm-eval returned {', '.join(metrics)}"
            )
        best = self.task.options.best or _best(name, results)
        self.metrics = {name: Metric(best, "by lm-eval")}
        return {name: metrics.pop(name), **metrics}


def _flat(results: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    every = results["results"]
    for task, values in every.items():
        for key, value in values.items():
            metric, _, how = key.partition(",")
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or metric.endswith("_stderr") or metric == "sample_len":
                continue
            name = metric if how in ("", "none") else f"{metric}/{how}"
            yield (name if len(every) == 1 else f"{task}/{name}"), float(value)


def _usual(metrics: Mapping[str, float]) -> str:
    for wanted in _USUAL:
        for name in metrics:
            if wanted in name.split("/"):
                return name
    return next(iter(metrics), "score")


def _best(name: str, results: Mapping[str, Any]) -> Any:
    for by_metric in results.get("higher_is_better", {}).values():
        for metric, higher in by_metric.items():
            if metric in name.split("/"):
                return "max" if higher or higher is None else "min"
    return "max"
