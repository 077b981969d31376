"""A stage against its method: base, number of models, required parameters."""

from __future__ import annotations

from mergewise.errors import MergewiseError, RecipeError
from mergewise.methods import Method, get_method
from mergewise.methods import Settings as MethodSettings
from mergewise.recipe._problems import Position, Problems
from mergewise.recipe._recipe import Module, Slice, Source, Stage
from mergewise.recipe._resolve import settings_for


def check_stage(stage: Stage, problems: Problems) -> None:
    """Report what the method cannot do with these models and parameters."""
    method = get_method(stage.method)
    if stage.exclude and stage.base_model is None:
        problems.error(
            stage.positions["exclude"],
            "exclude keeps the base's values, and there is no base: add base_model",
        )
    merged = _merged_slices(stage, method)
    for module in stage.modules:
        for slice_ in module.slices:
            if merged and slice_ not in merged:
                continue
            if slice_.sources and _base_is_there(stage, method, slice_, problems):
                _check_duplicates(slice_, problems)
                _check_base_parameters(method, slice_, problems)
                _check_number(stage, method, slice_, problems)
                if _required_are_there(stage, method, module, slice_, problems):
                    _check_together(stage, method, module, slice_, problems)


def _merged_slices(stage: Stage, method: Method) -> list[Slice]:
    """The slices that more than one model goes into, or enough for the method."""
    slices = [slice_ for module in stage.modules for slice_ in module.slices]
    return [s for s in slices if not s.copied(method.base, method.experts[0])]


def _base_is_there(stage: Stage, method: Method, slice_: Slice, problems: Problems) -> bool:
    if method.base != "required" or slice_.base_model is not None:
        return True
    at = stage.positions.get("merge_method", stage.position)
    problems.error(
        at, f"{method.name} needs `base_model`, and there is none: add it at the top level"
    )
    return False


def _check_duplicates(slice_: Slice, problems: Problems) -> None:
    """One model may give different layers to one slice, but then it cannot be the base."""
    seen: dict[object, Source] = {}
    for source in slice_.sources:
        is_base = source.model == slice_.base_model
        key = source.model if is_base else (source.model, source.layer_range)
        first = seen.setdefault(key, source)
        if first is not source:
            problems.error(
                source.position,
                f"{source.model} is here twice; the first is on line {first.position.line}: "
                "remove one, or give one entry the sum of both weights",
            )


def _check_base_parameters(method: Method, slice_: Slice, problems: Problems) -> None:
    base = slice_.base
    if base is None or method.base == "ignored":
        return
    for name, setting in base.parameters.items():
        if name in method.params and method.params[name].per_model:
            problems.warn(
                setting.position,
                f"{setting.where} has no effect: {base.model} is the base model of {method.name}",
            )


def _check_number(stage: Stage, method: Method, slice_: Slice, problems: Problems) -> None:
    least, most = method.experts
    experts = [slice_.sources[i] for i in slice_.experts(method.base)]
    if least <= len(experts) and (most is None or len(experts) <= most):
        return
    wanted = (
        f"exactly {least}"
        if least == most
        else f"{least} to {most}"
        if most
        else f"at least {least}"
    )
    plural = "model" if wanted.endswith(" 1") else "models"
    base = next((s for s in slice_.sources if s.model == slice_.base_model), None)
    has_base = base is not None and method.base != "ignored"
    text = f"{method.name} takes {wanted} {plural}{' besides the base' if has_base else ''}"
    text += f", got {len(experts)}"
    at = slice_.position
    if base is not None and base.implicit and most is not None and len(experts) > most:
        at = base.position
        text += f"; base_model {base.model} is not one of them"
        text += (
            ", and is added as a source: remove it"
            if not has_base
            else ": list it in the place of another"
        )
    problems.error(at, text)


def _required_are_there(
    stage: Stage, method: Method, module: Module, slice_: Slice, problems: Problems
) -> bool:
    """Whether every required parameter is given somewhere. A lenient load only warns: then
    `settings_for` refuses, should the recipe be run."""
    complete = True
    shared = {**stage.parameters, **module.parameters, **slice_.parameters}
    report = problems.warn if problems.lenient else problems.error
    for name, param in method.params.items():
        if not param.required or name in shared:
            continue
        if not param.per_model:
            complete = False
            at = stage.positions.get("parameters", stage.positions.get("merge_method"))
            report(
                at or stage.position,
                f"{method.name} needs `{name}`: add it under `parameters:` at the top level",
            )
            continue
        for i in slice_.experts(method.base):
            source = slice_.sources[i]
            if name in source.parameters:
                continue
            complete = False
            text = f"{method.name} needs `{name}` for {source.model}"
            if source.implicit:
                text += (
                    f": {method.name} treats base_model like any other model; list it with "
                    f"`parameters: {{{name}: ...}}`, or remove base_model"
                )
            else:
                text += f": add `parameters: {{{name}: ...}}` to it, or `{name}` for all models"
            report(source.position, text)
    return complete


def _check_together(
    stage: Stage, method: Method, module: Module, slice_: Slice, problems: Problems
) -> None:
    """Ask the method about the parameters of the first and the last layer of the slice.

    A tensor that no filter mentions is what is asked about; the plan asks again for every tensor.
    """
    if problems.failed:
        return
    for t in (0.0, 1.0):
        try:
            values, _ = settings_for(
                stage, method, module, slice_, t, "", [""] * len(slice_.sources)
            )
            problem = method.problem(MethodSettings(values), len(slice_.experts(method.base)))
        except RecipeError:
            return
        except MergewiseError as error:
            problem = str(error)
        if problem:
            problems.error(_place(stage, slice_), f"{method.name}: {problem}")
            return


def _place(stage: Stage, slice_: Slice) -> Position:
    if stage.form == "models":
        return stage.positions.get("parameters", slice_.position)
    return slice_.position
