"""From a recipe and data to a guided recipe, and on to a merged model, in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mergewise._paths import exists, expanded
from mergewise.checkpoint import refuse_packed
from mergewise.engine import MergeResult, check_out
from mergewise.engine import merge as run_merge
from mergewise.errors import Diagnostic, GuideError, RecipeError
from mergewise.evidence import Data, Tasks, load_evidence, load_tasks
from mergewise.evidence.models import DTYPES
from mergewise.forms import merge_into_adapter
from mergewise.guides._ask import (
    Files,
    base_of,
    checkpoint_of,
    experts_of,
    guide,
    planned,
    settings_of,
)
from mergewise.guides._base import Expert, Guided, Progress
from mergewise.guides._collect import Source, collect_for, data_by_expert
from mergewise.guides._kin import unlike_base
from mergewise.methods import Param
from mergewise.plan import MergePlan, build_plan
from mergewise.recipe import Recipe, load_recipe

_READING: Mapping[str, Param] = {
    "limit": Param(int, None, "records", ge=1),
    "template": Param(str, None, "text of a record"),
    "max_length": Param(int, None, "tokens of a sequence", ge=1),
    "batch_size": Param(int, None, "sequences at a time", ge=1),
    "dtype": Param(str, None, "of the models", choices=DTYPES),
    "device": Param(str, None, "that runs them"),
    "offload": Param(bool, None, "leave weights on disk"),
    "split": Param(str, None, "of the data"),
    "task_split": Param(str, None, "of the tasks' data"),
    "separator": Param(str, None, "of records in a text file"),
}
_APART = ("separator", "task_split")
"""Those of them that are no options of `collect`."""
_OWN = {"name", "data", "evidence", "tasks"}


def write_recipe(
    recipe: Recipe | str | Path | Mapping[str, Any],
    name: str,
    out: Path | str,
    *,
    data: Source | None = None,
    each: Mapping[str, Source] | None = None,
    evidence: Mapping[str, Files] | None = None,
    tasks: Tasks | str | Path | Mapping[str, Any] | None = None,
    split: str = "validation",
    folder: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    reuse: bool = False,
    told: Callable[[str], None] | None = None,
    collected: Callable[[Any], None] | None = None,
    progress: Progress | None = None,
) -> Guided:
    """Collect what a guide needs, let it write the explicit recipe, and keep that in a file.

    Args:
        out: the recipe's file.
        data: for the experts that `each` does not name.
        evidence: what there is already, by model.
        tasks, split: for guides that score models.
        folder: for evidence; by default ``<out>.evidence``.
        settings: of the guide.
        options: how models are run and data is read: those of `mergewise.evidence.collect`.
        overwrite: replace evidence that is there.
        reuse: take evidence of the same models and data that is there.
        told: called with a line before each long step.
        collected: called as statistics are collected; see `collect`.
        progress: called with (bytes, bytes in all) while weights are read.

    Raises:
        MergewiseError: as `collect_for` and `guide` raise.
    """
    out = Path(out)
    place = out.with_name(f"{out.stem}.evidence") if folder is None else Path(folder)
    made = _guided(
        load_recipe(recipe) if not isinstance(recipe, Recipe) else recipe, name, out, place,
        data=data, each=each or {}, evidence=evidence or {}, tasks=tasks, split=split,
        settings=settings or {}, options=options or {}, overwrite=overwrite, reuse=reuse,
        told=told, collected=collected, progress=progress,
    )  # fmt: skip
    made.write(out)
    return made


def _guided(
    recipe: Recipe,
    name: str,
    out: Path | None,
    folder: Path,
    *,
    data: Source | None,
    each: Mapping[str, Source],
    evidence: Mapping[str, Files],
    tasks: Tasks | str | Path | Mapping[str, Any] | None,
    split: str,
    settings: Mapping[str, Any],
    options: Mapping[str, Any],
    overwrite: bool,
    reuse: bool,
    told: Callable[[str], None] | None,
    collected: Callable[[Any], None] | None,
    progress: Progress | None,
) -> Guided:
    from mergewise.guides import get_guide

    chosen = get_guide(name)
    checked = settings_of(chosen, settings)
    plan = planned(chosen, recipe, checked)
    needs = chosen.needs_for(checked, plan)
    _warn(plan, told)
    if data is not None or each or needs.data or needs.tasks:
        for checkpoint in plan.checkpoints.values():
            refuse_packed(checkpoint, f"{name} runs models, which does")
    known: Mapping[str, Any] = evidence
    if (needs.experts or needs.base) and (data is not None or each):
        known = collect_for(
            recipe, name, data, folder, each=each, evidence=evidence, settings=settings,
            overwrite=overwrite, reuse=reuse, told=told, progress=collected, **options,
        )  # fmt: skip
    found: dict[str, Data] = {}
    if needs.data or data is not None or each:
        sources = data_by_expert(plan, data, each, None if needs.data else known)
        found = {label: _as_data(source, options) for label, source in sources.items()}
    return guide(
        recipe, name, known, data=found, tasks=tasks, split=split, options=options, out=out,
        folder=folder, told=told, progress=progress, **settings,
    )  # fmt: skip


def _warn(plan: MergePlan, told: Callable[[str], None] | None) -> None:
    """Tell of models that do not belong together before any long work."""
    base = base_of(plan)
    if base is None or told is None:
        return
    models = [str(source.model) for _, source in experts_of(plan)]
    experts = [Expert(label, 0, checkpoint_of(plan, label)) for label in models]
    for line in unlike_base(checkpoint_of(plan, base), experts):
        told(f"warning: {line}")


def _as_data(source: Source, options: Mapping[str, Any]) -> Data:
    found = (
        source if isinstance(source, Data) else Data(source, split=options.get("split", "train"))
    )
    return found.first(options["limit"]) if options.get("limit") else found


def merge(
    recipe: Recipe | MergePlan | str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    trust_remote_code: bool = False,
    told: Callable[[str], None] | None = None,
    collected: Callable[[Any], None] | None = None,
    **options: Any,
) -> MergeResult:
    """Merge checkpoints as a recipe says; one with a ``guide`` is guided first.

    What a guide finds is kept in ``<out>.evidence``: statistics, which a second run on the same
    models and data takes from there, and the explicit recipe, ``recipe.yml``.

    Args:
        trust_remote_code: let a guide run Python code of checkpoints and of tasks; a recipe cannot
            ask for that.
        told: called with a line before each long step of a guide.
        collected: called as statistics are collected.
        options: of `mergewise.engine.merge`.

    Raises:
        MergewiseError: as the engine's merge and the guide raise.
    """
    if isinstance(recipe, MergePlan):
        return _run(recipe, out, options)
    if not isinstance(recipe, Recipe):
        chosen = {key: options.pop(key) for key in ("lenient", "overrides") if key in options}
        recipe = load_recipe(recipe, **chosen)
    if recipe.output.guide is None:
        return _run(recipe, out, options)
    guided = follow(
        recipe, Path(out), overwrite=bool(options.get("overwrite")),
        trust_remote_code=trust_remote_code, told=told, collected=collected,
        progress=options.get("progress"),
    )  # fmt: skip
    return _run(guided.recipe, out, options)


def _run(recipe: Recipe | MergePlan, out: str | Path, options: Mapping[str, Any]) -> MergeResult:
    """The recipe's result, in the form that it asks for."""
    loaded = recipe.recipe if isinstance(recipe, MergePlan) else recipe
    if loaded.output.makes is None:
        return run_merge(recipe, out, **options)
    plan = recipe if isinstance(recipe, MergePlan) else build_plan(recipe)
    return merge_into_adapter(plan, out, **options)


def follow(
    recipe: Recipe,
    out: Path,
    *,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    told: Callable[[str], None] | None = None,
    collected: Callable[[Any], None] | None = None,
    progress: Progress | None = None,
) -> Guided:
    """Do what the ``guide`` of a recipe says, for a merge into the folder `out`.

    Args:
        overwrite: whether the merge may replace what `out` holds.
        trust_remote_code: run Python code of checkpoints and of tasks.

    Raises:
        RecipeError: at the guide's line, for what it cannot do.
        OutputError: if `out` cannot be merged into.
        MergewiseError: as `collect_for` and `guide` raise.
    """
    call = dict(recipe.output.guide or {})
    home = Path(recipe.path).parent
    folder = out.with_name(f"{out.name}.evidence")
    settings = {k: v for k, v in call.items() if k not in _OWN | _READING.keys()}
    check_out(out, overwrite)
    try:
        _check_reading(call)
        data, each = _sources(call, home)
        trust = {"trust_remote_code": True} if trust_remote_code else {}
        made = _guided(
            recipe, call["name"], None, folder,
            data=data, each=each, evidence=_evidence(call, home),
            tasks=_tasks(call, home, trust_remote_code),
            split=str(call.get("task_split") or "validation"), settings=settings,
            options=_options(call) | trust,
            overwrite=False, reuse=True, told=told, collected=collected, progress=progress,
        )  # fmt: skip
    except GuideError as problem:
        at = recipe.output.positions["guide"]
        raise RecipeError(
            [Diagnostic(at.path, at.line, at.column, f"guide: {problem}")]
        ) from problem
    if folder.is_dir():
        _placed(made, home).write(folder / "recipe.yml")
    return made


def _placed(made: Guided, home: Path) -> Guided:
    """With a line that says where its relative paths begin, for it lies elsewhere."""
    if all(Path(part).is_absolute() for part in _paths(made.recipe)):
        return made
    places = dict.fromkeys([str(Path.cwd()), str(home.resolve())])
    return replace(made, text=f"# Relative paths: from {', else '.join(places)}\n{made.text}")


def _paths(recipe: Recipe) -> list[str]:
    """Of models, and of adapters on top of them."""
    models = recipe.output.models
    return [part.path for one in models for part in (one, one.lora) if part is not None]


def _tasks(call: Mapping[str, Any], home: Path, trusted: bool) -> Tasks | None:
    """A recipe may come from anywhere: what it names does not run as code unasked."""
    given = call.get("tasks")
    if given is None:
        return None
    if not isinstance(given, str):
        raise GuideError(f"tasks: the path of a tasks file expected, got {type(given).__name__}")
    tasks = load_tasks(_found(given, home))
    code = [entry.name for entry in tasks if entry.kind == "python"]
    if code and not trusted:
        raise GuideError(
            f"tasks: {code[0]} of {given} runs Python code, which a recipe cannot ask for; if you "
            "trust it, pass --trust-remote-code (trust_remote_code=True)"
        )
    return tasks


def _check_reading(call: Mapping[str, Any]) -> None:
    if "trust_remote_code" in call:
        raise GuideError(
            "trust_remote_code is not a recipe's to say; pass --trust-remote-code "
            "(trust_remote_code=True)"
        )
    for name, param in _READING.items():
        if name in call and (problem := param.problem(call[name])):
            raise GuideError(f"{name}: {problem}")


def _options(call: Mapping[str, Any]) -> dict[str, Any]:
    """How models are run and data is read, as far as the guide says it."""
    wanted = [name for name in _READING if name not in _APART]
    found = {k: call[k] for k in wanted if call.get(k) is not None}
    return {k: _READING[k].convert(v) for k, v in found.items()}


def _sources(call: Mapping[str, Any], home: Path) -> tuple[Source | None, dict[str, Source]]:
    """The data of all experts, and that of single ones."""
    given = call.get("data")

    def source(text: Any) -> Data:
        if not isinstance(text, str):
            raise GuideError(f"data: a file, or a file for each expert expected, got {text!r}")
        path: str | Path = text if text.startswith("datasets:") else _found(text, home)
        between = str(call.get("separator") or "")
        return Data(path, split=str(call.get("split") or "train"), separator=between)

    if isinstance(given, dict):
        opened: dict[str, Data] = {}
        for text in given.values():
            opened.setdefault(str(text), source(text))
        return None, {str(label): opened[str(text)] for label, text in given.items()}
    return (None if given is None else source(given)), {}


def _evidence(call: Mapping[str, Any], home: Path) -> dict[str, Files]:
    given = call.get("evidence") or {}
    if not isinstance(given, dict):
        raise GuideError("evidence: a mapping from models to files expected")
    return {
        str(label): [load_evidence(_found(str(f), home)) for f in _listed(files)]
        for label, files in given.items()
    }


def _listed(files: Any) -> list[Any]:
    return files if isinstance(files, list) else [files]


def _found(text: str, home: Path) -> Path:
    """A file from the current folder, else from the recipe's."""
    path = expanded(text)
    return home / path if not exists(path) and exists(home / path) else path
