"""What a guide is asked, checked before any work: settings, recipe, evidence of every model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mergewise._settings import checked
from mergewise.checkpoint import Checkpoint, refuse_packed
from mergewise.errors import (
    Diagnostic,
    EvidenceError,
    GuideError,
    NotBuiltYetError,
    RecipeError,
)
from mergewise.evidence import Data, Evidence, Tasks, fingerprint_of, load_evidence, load_tasks
from mergewise.evidence.statistics import all_statistics
from mergewise.guides._base import Ask, Expert, Guide, Guided, Needs, Progress
from mergewise.guides._kin import unlike_base
from mergewise.guides._looks import see_all_tokens, see_split
from mergewise.methods import Settings, get_method
from mergewise.plan import MergePlan, build_plan
from mergewise.recipe import Position, Recipe, Source, Stage, load_recipe

if TYPE_CHECKING:
    from mergewise.recipe import Setting

Files = Evidence | Path | str | Sequence[Evidence | Path | str]


def guide(
    recipe: Recipe | str | Path | Mapping[str, Any],
    name: str,
    evidence: Mapping[str, Files] | None = None,
    *,
    data: Mapping[str, Data] | None = None,
    tasks: Tasks | str | Path | Mapping[str, Any] | None = None,
    split: str = "validation",
    options: Mapping[str, Any] | None = None,
    out: Path | str | None = None,
    folder: Path | str | None = None,
    told: Callable[[str], None] | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Guided:
    """The explicit recipe that a guide makes of a recipe and evidence about its models.

    Args:
        recipe: of one document with ``models`` and a ``base_model``, or anything `load_recipe`
            takes.
        name: the guide.
        evidence: by model, as the recipe calls it or by the last part of its path: an evidence
            file or several. The base's files are told apart by their data. For experts that are
            not named, the files that the recipe names. `collect_for` collects it.
        data: by expert, for guides that run models themselves.
        tasks: for guides that score models: a tasks file, its path, or its content.
        split: of the tasks' data; choose by one split, report another.
        options: how models are run: those of `mergewise.evidence.collect`.
        out: where the recipe will be written; by default where the given one is. Relative paths
            in it are found from there.
        folder: for files that the recipe names, such as masks; by default ``<out>.evidence``.
        told: called with a line before each long step.
        progress: called with (bytes, bytes in all) while weights are read.
        settings: of the guide; `mergewise guides NAME` lists them.

    Raises:
        GuideError: for an unknown guide or setting, or a recipe that it cannot guide.
        RecipeError: if the recipe cannot be run.
        EvidenceError: if evidence is missing, or fits neither the models nor the base's data.
        TasksFileError: for mistakes in the tasks file.
    """
    from mergewise.guides import get_guide

    chosen = get_guide(name)
    ours = settings_of(chosen, settings)
    plan = planned(chosen, recipe, ours)
    files = {label: _opened(given) for label, given in by_label(plan, evidence or {}).items()}
    needs = chosen.needs_for(ours, plan)
    if needs.data or needs.tasks:
        for checkpoint in plan.checkpoints.values():
            refuse_packed(checkpoint, f"{name} runs models, which does")
    ask = _ask(chosen, plan, ours, files, by_label(plan, data or {}))
    if needs.data:
        see_all_tokens(ask, options or {})
    place = Path(out) if out is not None else Path(plan.recipe.path)
    if folder is None and (out is not None or place.is_file()):
        folder = place.with_name(f"{place.stem}.evidence")
    return chosen.run(
        replace(
            ask,
            tasks=_tasks(chosen, ours, tasks, split),
            split=split,
            options=dict(options or {}),
            out=None if out is None else place,
            folder=None if folder is None else Path(folder),
            told=told,
            progress=progress,
        )
    )


def _tasks(
    guide: Guide,
    settings: Settings,
    given: Tasks | str | Path | Mapping[str, Any] | None,
    split: str,
) -> Tasks | None:
    if not guide.needs(settings).tasks:
        return None
    if given is None:
        raise GuideError(
            f"{guide.name} scores models: give a tasks file (--tasks FILE; tasks=); "
            "`mergewise evaluate --list` shows what it can say"
        )
    tasks = given if isinstance(given, Tasks) else load_tasks(given)
    for entry in tasks:
        see_split(entry, split)
    return tasks


def settings_of(guide: Guide, given: Mapping[str, Any]) -> Settings:
    """A guide's settings, checked and converted.

    Raises:
        GuideError: for an unknown one, or a value that is not allowed.
    """
    values = checked(guide, given, GuideError)
    if problem := guide.contradiction({n: values[n] for n in given if values[n] is not None}):
        raise GuideError(f"{guide.name}: {problem}")
    return Settings(values)


def planned(
    guide: Guide, recipe: Recipe | str | Path | Mapping[str, Any], settings: Settings
) -> MergePlan:
    """The plan of a recipe that can be guided.

    Raises:
        RecipeError: if it cannot be run, or sets what the guide is to find.
        GuideError: if the guide cannot work on it.
        NotBuiltYetError: for slices, modules and several documents.
    """
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if len(loaded.stages) > 1 or loaded.output.form != "models":
        raise NotBuiltYetError(
            f"{loaded.path}: only recipes of one document with `models` are guided yet, not "
            "stages, slices or modules"
        )
    if problem := guide.problem(settings, loaded):
        raise GuideError(f"{guide.name}: {loaded.path}: {problem}")
    if guide.based and loaded.output.base_model is None:
        raise GuideError(
            f"{guide.name}: {loaded.path}: it compares experts with their base; add `base_model`"
        )
    for parameter in guide.written(settings):
        _refuse_set(loaded.output, parameter, guide.name)
    return build_plan(loaded, collected=not guide.calibrates)


def _refuse_set(stage: Stage, parameter: str, name: str) -> None:
    """Numbers for single tensors or layers are somebody's decision, not to be overwritten."""
    found: list[Setting] = [
        level[parameter]
        for level in (stage.parameters, *(s.parameters for s in _sources(stage)))
        if parameter in level
    ]
    problems = [
        _at(
            setting.position,
            f"{setting.where} differs between tensors already, and {name} would replace it; "
            "remove it, or write one number",
        )
        for setting in found
        if setting.conditional or any(isinstance(c.value, tuple) for c in setting.conditions)
    ]
    if problems:
        raise RecipeError(problems)


def _at(place: Position, message: str) -> Diagnostic:
    return Diagnostic(place.path, place.line, place.column, message)


def _sources(stage: Stage) -> tuple[Source, ...]:
    return stage.modules[0].slices[0].sources


def experts_of(plan: MergePlan) -> list[tuple[int, Source]]:
    """The experts of a recipe with their places in its list of models."""
    stage = plan.recipe.output
    [slice_] = stage.modules[0].slices
    places = slice_.experts(get_method(stage.method).base)
    chosen = [(i, slice_.sources[i]) for i in places]
    return [(i, source) for i, source in chosen if source.model != stage.base_model]


def checkpoint_of(plan: MergePlan, label: str) -> Checkpoint:
    """The files of a model that the recipe names."""
    return plan.checkpoints[label]


def base_of(plan: MergePlan) -> str | None:
    """What the recipe calls its base model."""
    base = plan.recipe.output.base_model
    return None if base is None else str(base)


def by_label(plan: MergePlan, given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` with the recipe's own names of models as keys.

    Raises:
        GuideError: if a key names no model of the recipe, or several.
    """
    base = base_of(plan)
    experts = [str(source.model) for _, source in experts_of(plan)]
    labels = list(dict.fromkeys([*([base] if base else []), *experts]))
    found: dict[str, Any] = {}
    for key, value in given.items():
        named = [x for x in labels if x == key] or [x for x in labels if Path(x).name == key]
        if len(named) != 1:
            what = f"{len(named)} models of the recipe are" if named else "no model of it is"
            raise GuideError(
                f"{plan.recipe.path}: {what} called {key!r}; its models: {', '.join(labels)}"
            )
        if named[0] in found:
            raise GuideError(f"{named[0]} is given twice, once as {key!r}; leave one out")
        found[named[0]] = value
    return found


def listed(given: Files) -> list[Evidence | Path | str]:
    """One file or several, as a list."""
    return [given] if isinstance(given, Evidence | Path | str) else list(given)


def _opened(given: Files) -> list[Evidence]:
    return [one if isinstance(one, Evidence) else load_evidence(one) for one in listed(given)]


def _ask(
    guide: Guide,
    plan: MergePlan,
    settings: Settings,
    files: Mapping[str, Sequence[Evidence]],
    data: Mapping[str, Data],
) -> Ask:
    needs = guide.needs_for(settings, plan)
    base = base_of(plan)
    base_files = [] if base is None else files.get(base) or _named_in(plan, base)
    base_files = _fitting_first(base_files, needs)
    experts = []
    for index, source in experts_of(plan):
        label = str(source.model)
        own = files.get(label) or [plan.evidence[text] for text in source.evidence]
        own = _fitting_first(own, needs)
        found = {name: _find(own, name, label, guide) for name in needs.experts}
        theirs = {
            name: _like(base_files, name, str(base), guide, found, data.get(label))
            for name in (needs.base if base else ())
        }
        experts.append(Expert(label, index, checkpoint_of(plan, label), found, theirs))
        if needs.data and label not in data:
            raise GuideError(f"no data for {label}; give --data {label}=FILE, or --data FILE")
    foundation = None if base is None else checkpoint_of(plan, base)
    warnings = _strangers(foundation, experts)
    if foundation is not None:
        warnings += unlike_base(foundation, experts)
    return Ask(settings, plan, foundation, tuple(experts), warnings, data=data)


def _strangers(base: Checkpoint | None, experts: Sequence[Expert]) -> tuple[str, ...]:
    """Warnings of evidence that was collected on another checkpoint than the recipe's."""
    marks: dict[Path, str] = {}
    found: dict[str, None] = {}
    pairs = [(one, e.checkpoint) for e in experts for one in e.evidence.values()]
    if base is not None:
        pairs += [(one, base) for e in experts for one in e.base.values()]
    for evidence, checkpoint in pairs:
        model = evidence.record.model
        if checkpoint.path not in marks:
            marks[checkpoint.path] = fingerprint_of(checkpoint.path)
        vouched = model.get("kind", "checkpoint") == "checkpoint" and model.get("fingerprint")
        if vouched and model["fingerprint"] != marks[checkpoint.path]:
            found[
                f"{evidence.path} was collected on other files, called {model.get('name')}, than "
                f"{checkpoint.path} holds now; is it this model's?"
            ] = None
    return tuple(found)


def _named_in(plan: MergePlan, label: str) -> list[Evidence]:
    sources = _sources(plan.recipe.output)
    return [plan.evidence[t] for s in sources if str(s.model) == label for t in s.evidence]


def _fitting_first(files: Sequence[Evidence], needs: Needs) -> list[Evidence]:
    """Files in their order, those before the others that were collected with the options asked."""
    known = all_statistics()

    def fits(one: Evidence) -> bool:
        for name in {*needs.experts, *needs.base} & {*one.statistics} & {*known}:
            wanted = {k: p.default for k, p in known[name].params.items()}
            wanted |= needs.options.get(name, {})
            record = one.record.statistics[name].options
            if any(record.get(key, value) != value for key, value in wanted.items()):
                return False
        return True

    return sorted(files, key=lambda one: not fits(one))


def _find(files: Sequence[Evidence], statistic: str, label: str, guide: Guide) -> Evidence:
    for one in files:
        if statistic in one.statistics:
            return one
    _lacks(files, statistic, label, guide)


def _lacks(files: Sequence[Evidence], statistic: str, label: str, guide: Guide) -> NoReturn:
    have = ", ".join(sorted({name for file in files for name in file.statistics}))
    got = f"its evidence has {have}" if files else "there is no evidence of it"
    raise EvidenceError(
        f"{guide.name} reads {statistic} of {label}, and {got}; give data to collect it "
        f"(--data; `data` under `guide`), or a file (--evidence {label}=FILE; `evidence`)"
    )


def _like(
    files: Sequence[Evidence],
    statistic: str,
    base: str,
    guide: Guide,
    expert: Mapping[str, Evidence],
    data: Data | None,
) -> Evidence:
    """The base's file that was collected on the data of an expert's, or on that expert's data."""
    known = [one for one in files if statistic in one.statistics]
    if not known:
        _lacks(files, statistic, base, guide)
    if not expert:
        return _of_data(known, data, statistic, base, guide)
    own = next(iter(expert.values()))
    for one in known:
        if _same_data(one, own):
            return one
    raise EvidenceError(
        f"{guide.name} compares {base} with an expert on the same data, and {own.path} is of "
        f"{_data(own)}, {', '.join(f'{one.path} of {_data(one)}' for one in known)}; collect "
        f"{statistic} of {base} on the expert's data as well"
    )


def _of_data(
    known: Sequence[Evidence], data: Data | None, statistic: str, base: str, guide: Guide
) -> Evidence:
    """The only file, or the one that was collected on some data."""
    mark = None if data is None else replace(data, rows=(0, None), share=(0, 1)).fingerprint()
    same = [one for one in known if mark in [part.get("sha256") for part in one.record.parts]]
    if len(known) > 1 and not (mark and same):
        raise EvidenceError(
            f"{guide.name} reads {statistic} of {base}, and there are {len(known)} files of it: "
            f"{', '.join(str(one.path) for one in known)}; name one"
        )
    return same[0] if mark and same else known[0]


def _data(evidence: Evidence) -> str:
    return ", ".join(str(part.get("data")) for part in evidence.record.parts) or "no data"


def _same_data(one: Evidence, other: Evidence) -> bool:
    """Whether the same was fed, or the same rows of the same file read in the same way."""
    read = ("sha256", "rows", "share", "template", "max_length", "split")
    for keys in (("content",), read):
        marks = [
            sorted(repr([part.get(key) for key in keys]) for part in evidence.record.parts)
            for evidence in (one, other)
        ]
        known = all(part.get(keys[0]) for e in (one, other) for part in e.record.parts)
        if known and marks[0] == marks[1] and marks[0]:
            return True
    return False
