"""Programs written by a language model, judged by tests."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from mergewise.errors import TaskError
from mergewise.evidence._data import Record
from mergewise.evidence.evaluators._base import Evaluator, Metric, Score, Task
from mergewise.evidence.evaluators._generate import Generation, generate
from mergewise.evidence.evaluators._programs import Problem, layout_of, problem_of, program_of
from mergewise.evidence.evaluators._prompts import PROMPT_PARAMS, Prompter, stop_strings
from mergewise.evidence.evaluators._records import LIMIT, first_records, records
from mergewise.evidence.evaluators._sandbox import Outcome, require_sandbox, run
from mergewise.evidence.evaluators.generation import generation_notes
from mergewise.evidence.models._live import LiveModel
from mergewise.methods import Param


class Code(Evaluator):
    """Generates a program from each prompt and runs it and its tests in `_sandbox`.

    Two layouts of records are known, both tested by one call: MBPP (``text``, ``test_list``,
    ``test_setup_code``), where the model is shown description and tests as a docstring, and
    HumanEval (``prompt``, ``test``, ``entry_point``), where it completes the function. One greedy
    program a problem, or `samples` drawn ones; pass@k of n drawn ones, c of them right, is
    1 - C(n - c, k) / C(n, k), which does not depend on n in expectation (Chen et al. 2021,
    arXiv 2107.03374).
    """

    name = "code"
    summary = "programs judged by tests, in a sandbox: MBPP, HumanEval"
    fields = "text and test_list (MBPP), or prompt, test and entry_point (HumanEval)"
    params = {
        "allow_code": Param(bool, False, "must be true: programs a model wrote will be run"),
        "prompt": Param(str, None, "instead of the layout's own; {tests} are MBPP's tests"),
        "max_new_tokens": Param(int, 384, "at most as many tokens a program", ge=1),
        "stop": Param(str, None, "strings that end a program, with | between them"),
        "samples": Param(int, 1, "programs a problem", ge=1),
        "k": Param(int, 1, "pass@k besides pass@1; at most `samples`", ge=1),
        "temperature": Param(float, 0.0, "of drawing; 0 takes the likeliest token", ge=0),
        "seed": Param(int, 0, "of drawing", ge=0),
        "seconds": Param(float, 10.0, "for each program with its tests", gt=0),
        "memory_mb": Param(int, 1024, "for each program", ge=64),
        **PROMPT_PARAMS,
        "shot": Param(str, "{text}\n{code}\n\n", "a solved example"),
        "batch_size": Param(int, 8, "prompts that run together", ge=1),
        **LIMIT,
    }
    metrics = {
        "pass@1": Metric("max", "share of programs that pass all tests"),
        "compiles": Metric("max", "share of programs that are Python at all"),
    }
    example = """
- name: programs
  kind: code
  data: mbpp.jsonl.gz
  allow_code: true
  limit: 100
"""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        if task.options.k > 1:
            k = f"pass@{task.options.k}"
            self.metrics = {**Code.metrics, k: Metric("max", "chance that one of k passes")}

    def check(self) -> None:
        name, options = self.task.name, self.task.options
        if not options.allow_code:
            raise TaskError(
                f"task {name} runs programs that a model wrote; they are kept from the network "
                "and from your files as far as this system allows; to agree, say `allow_code: true`"
            )
        require_sandbox()
        if options.samples > 1 and options.temperature == 0:
            raise TaskError(
                f"task {name}: {options.samples} samples of temperature 0 are all the same; set "
                "`temperature`, such as 0.8"
            )
        if options.k > options.samples:
            raise TaskError(f"task {name}: k {options.k} is more than samples {options.samples}")
        Prompter(self.task).check()
        for record in first_records(self.task):
            self._problem(record, 0)

    def score(self, model: LiveModel, split: str) -> Score:
        begun = time.perf_counter()
        self.check()
        options = self.task.options
        problems = [
            self._problem(record, row) for row, record in enumerate(records(self.task, split))
        ]
        prompts = [
            {"prompt": problem.prompt} for problem in problems for _ in range(options.samples)
        ]
        texts = generate(
            model,
            Prompter(self.task).prompts(prompts, "{prompt}", model.tokenizer, split),
            self._how(problems[0].layout),
            options.batch_size,
            self.task.name,
            lambda done, total: self.progress(done, 2 * total),
        )
        each = [problem for problem in problems for _ in range(options.samples)]
        programs = [program_of(p, text.text) for p, text in zip(each, texts, strict=True)]
        outcomes = self._run(programs, [problem.tests for problem in each])
        return Score(
            metrics=self._metrics(outcomes),
            outcomes=_first(outcomes, programs, options.samples),
            examples=len(problems),
            seconds=time.perf_counter() - begun,
            notes=(*generation_notes(texts, options.max_new_tokens), *_isolation(outcomes)),
        )

    def _problem(self, record: Record, row: int) -> Problem:
        where = f"task {self.task.name}, row {row + 1}"
        return problem_of(record, row, where, self.task.options.prompt)

    def _how(self, layout: str) -> Generation:
        options = self.task.options
        stop = stop_strings(options.stop)
        if options.stop is None and not options.chat:
            stop = layout_of(layout).stop
        return Generation(options.max_new_tokens, stop, options.temperature, options.seed)

    def _run(self, programs: Sequence[str], tests: Sequence[str]) -> list[Outcome]:
        seconds, memory = self.task.options.seconds, self.task.options.memory_mb << 20
        found = []
        with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
            jobs = [
                pool.submit(run, program, test, seconds=seconds, memory_bytes=memory)
                for program, test in zip(programs, tests, strict=True)
            ]
            try:
                for job in jobs:
                    found.append(job.result())
                    self.progress(len(jobs) + len(found), 2 * len(jobs))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return found

    def _metrics(self, outcomes: Sequence[Outcome]) -> dict[str, float]:
        n, k = self.task.options.samples, self.task.options.k
        rights = [sum(o.passed for o in outcomes[i : i + n]) for i in range(0, len(outcomes), n)]
        metrics = {
            "pass@1": sum(rights) / len(outcomes),
            "compiles": sum(outcome.compiled for outcome in outcomes) / len(outcomes),
        }
        if k > 1:
            metrics[f"pass@{k}"] = sum(pass_at(n, c, k) for c in rights) / len(rights)
        return metrics


def pass_at(n: int, c: int, k: int) -> float:
    """The chance that k of n programs, drawn without replacement, hold one of the c right ones."""
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def _first(
    outcomes: Sequence[Outcome], programs: Sequence[str], samples: int
) -> dict[str, list[object]]:
    return {
        "correct": [int(outcome.passed) for outcome in outcomes[::samples]],
        "prediction": list(programs[::samples]),
        "reason": [outcome.reason for outcome in outcomes[::samples]],
    }


def _isolation(outcomes: Sequence[Outcome]) -> tuple[str, str]:
    network = all(outcome.no_network for outcome in outcomes)
    writing = all(outcome.no_writing for outcome in outcomes)
    hook = "an audit hook alone"
    return (
        f"programs kept from the network by {'the kernel' if network else hook}",
        f"programs kept from other files by {'the kernel' if writing else hook}",
    )
