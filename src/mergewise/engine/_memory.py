"""Merge state dicts in memory, by the same tasks that merge files."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from mergewise._device import pick_device
from mergewise._lazy import torch
from mergewise.checkpoint import Orientation, is_end, tensor_kind
from mergewise.constants import FUSE_FROM_ELEMENTS
from mergewise.engine import _compile
from mergewise.engine._block import Shared
from mergewise.engine._device import explained_memory, processors
from mergewise.engine._evidence import Statistics, in_memory
from mergewise.engine._model import whole_model
from mergewise.engine._pool import PoolTask
from mergewise.engine._schedule import Scheduler
from mergewise.engine._sources import Source, TensorSource
from mergewise.engine._task import Options, TensorTask
from mergewise.engine._threads import one_torch_thread
from mergewise.engine._work import Parallel, Range, Work
from mergewise.errors import IncompatibleModelsError, MergewiseError
from mergewise.methods import Method, Need, Settings, get_method, placed
from mergewise.plan import is_statistic, prefix_between, sibling

if TYPE_CHECKING:
    from torch import Tensor

StateDict = Mapping[str, "Tensor"]


def merge_state_dicts(
    experts: Sequence[StateDict],
    method: str,
    *,
    base: StateDict | None = None,
    parameters: Mapping[str, Any] | None = None,
    evidence: Sequence[Statistics] | None = None,
    base_evidence: Statistics | None = None,
    seed: int = 0,
    batch_norm: Literal["pool", "merge"] = "pool",
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    workers: int | None = None,
    block_size: int | None = None,
    allow_nonfinite: bool = False,
) -> dict[str, Tensor]:
    """Merge models given as state dicts.

    Args:
        experts: the models besides the base, all with the same tensor names and shapes.
        method: a name from `mergewise methods`.
        base: the base model, for methods that use one. A method that ignores bases takes it as
            one more model, before the experts.
        parameters: the method's parameters; a per-model one is a scalar for all experts or a
            list with one value for each.
        evidence: for methods that need it, each model's mean statistics: by statistic
            (``fisher``, ``input_gram``, ``input_moments``: mean squares by input channel), then
            by tensor. A tensor that some model's evidence lacks is merged as the method merges
            tensors without evidence.
        base_evidence: the base's, for methods that need statistics of the base.
        seed: for methods with random masks.
        batch_norm: running means and variances (``….running_mean``, ``….running_var``) of several
            models are pooled by the models' shares, or merged by the method like any tensor.
        dtype: the type of floating-point results; by default each tensor's own (the base's).
        device: where to compute: ``cpu``, ``cuda:N``, or ``auto``.
        workers: threads; by default one per processor.
        block_size: elements per block, for experiments; results differ at most in rounding.
        allow_nonfinite: go on when an input holds NaN or infinity.

    Returns:
        A new tensor, on the CPU, for every name. Inputs are not changed. Integer and boolean
        tensors are copied from the base (or the first model). Names that share a tensor in every
        model (tied embeddings) share the result.

    Raises:
        MergewiseError: for an unknown method, parameters out of range, models that do not fit
            together, or numbers that are not finite.

    Example:
        >>> import torch
        >>> a, b = {"w": torch.tensor([1.0, 3.0])}, {"w": torch.tensor([3.0, 5.0])}
        >>> merge_state_dicts([a, b], "linear", parameters={"weight": 0.5})["w"]
        tensor([2., 4.])
    """
    chosen = get_method(method)
    models = [*([base] if base is not None and chosen.base == "ignored" else []), *experts]
    used_base = base if chosen.base != "ignored" else None
    _check_models(chosen, models, used_base)
    values = complete_parameters(chosen, parameters or {}, len(models))
    lack = chosen.baseless(Settings(values)) if used_base is None else None
    if lack:
        raise MergewiseError(f"{method}: {lack}, and there is none; pass base=")
    every = [*([used_base] if used_base is not None else []), *models]
    needs = chosen.needs(Settings(values))
    statistics = _check_evidence(chosen, needs, evidence, models)
    _check_base_evidence(chosen, needs, base_evidence)
    device = pick_device(device)
    names = _names_of(every)
    donor = {name: every[0][name] for name in names}
    elements = sum(t.numel() for t in donor.values())
    options = Options(
        seed=seed,
        device=device,
        block=block_size,
        fuse=elements >= FUSE_FROM_ELEMENTS and _compile.helpers() is not None,
        check=not allow_nonfinite,
    )
    out = {name: torch.empty(t.shape, dtype=_out(t, dtype)) for name, t in donor.items()}
    tasks: list[TensorTask | PoolTask] = []
    stored = Orientation(donor)
    for name, tensor in donor.items():
        if not tensor.is_floating_point():
            out[name].copy_(tensor)
            continue
        if batch_norm == "pool" and len(every) > 1 and _is_pooled(name, every):
            shares = chosen.mixture(Settings(values), used_base is not None, len(models))
            tasks.append(_pooled(name, every, shares, out[name].dtype, options))
            continue
        sources: list[Source] = [
            TensorSource(_label(i, used_base is not None), name, model[name])
            for i, model in enumerate(every)
        ]
        has_base = used_base is not None
        kind = tensor_kind(name, tensor.shape)
        means, turned = in_memory(needs, statistics, base_evidence, tensor, name)
        tasks.append(
            TensorTask(
                name=name,
                shape=tuple(tensor.shape),
                method=chosen,
                values=placed(chosen, values, kind, stored.turned(name, kind), is_end(name)),
                base=sources[0] if has_base else None,
                experts=sources[has_base:],
                out_dtype=_out(tensor, dtype),
                options=options,
                evidence=means,
                turned=turned,
            )
        )
    scheduler = Scheduler(workers or processors())
    with one_torch_thread(), explained_memory(device):
        merges = [task for task in tasks if isinstance(task, TensorTask)]
        shared = scheduler.run_one(whole_model(merges))
        scheduler.run(_fill(task, shared.get(task.name), out[task.name]) for task in tasks)
    first = {name: same[0] for same in names.values() for name in same}
    return {name: out[first[name]] for name in every[0]}


def _is_pooled(name: str, models: Sequence[StateDict]) -> bool:
    other = sibling(name)
    return is_statistic(name) and all(
        other in m and m[other].shape == m[name].shape and m[other].is_floating_point()
        for m in models
    )


def _pooled(
    name: str,
    models: Sequence[StateDict],
    shares: Sequence[float],
    dtype: torch.dtype,
    options: Options,
) -> PoolTask:
    names = [name, sibling(name)] if name.endswith("running_var") else [name]
    values, *means = [
        [TensorSource(f"models[{i}]", n, model[n]) for i, model in enumerate(models)] for n in names
    ]
    shape = tuple(models[0][name].shape)
    return PoolTask(name, shape, values, shares, means[0] if means else (), dtype, options)


def _names_of(models: Sequence[StateDict]) -> dict[str, list[str]]:
    """Every name that one tensor has in all of the models alike, by the first of them."""
    groups: dict[Hashable, list[str]] = {}
    for name in models[0]:
        places = tuple(_place(model[name]) for model in models)
        groups.setdefault(name if None in places else places, []).append(name)
    return {names[0]: names for names in groups.values()}


def _place(tensor: Tensor) -> Hashable:
    """What tensors of the same memory have in common; None for tensors without elements."""
    if not tensor.numel():
        return None
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())


def _fill(task: TensorTask | PoolTask, shared: Shared | None, target: Tensor) -> Work:
    yield from task.prepare(shared)
    flat = target.view(-1)

    def write(where: Range) -> None:
        flat[where[0] : where[0] + where[1]] = task.merged(where)

    yield Parallel(write, task.ranges())


def _check_evidence(
    method: Method,
    every: Sequence[Need],
    evidence: Sequence[Statistics] | None,
    models: Sequence[StateDict],
) -> Sequence[Statistics]:
    """One for each model, each with all that the method needs of it."""
    needs = [need for need in every if need.of == "experts"]
    if not needs:
        _refuse_unread(method, evidence or (), "evidence", "the models")
        return ()
    wanted = ", ".join(need.statistic for need in needs)
    asked = "".join(f" for `{need.asked_by}`" for need in needs[:1] if need.asked_by)
    if evidence is None or len(evidence) != len(models):
        got = "none" if evidence is None else f"{len(evidence)}"
        raise MergewiseError(
            f"{method.name} needs {wanted}{asked} of each of the {len(models)} models: "
            f"pass evidence=, one mapping a model; got {got}"
        )
    for i, model in enumerate(evidence):
        for need in needs:
            if not model.get(need.statistic):
                have = ", ".join(model) or "nothing"
                raise MergewiseError(
                    f"evidence[{i}] has no {need.statistic}, which {method.name} needs{asked}; "
                    f"it has {have}"
                )
    return evidence


def _refuse_unread(method: Method, given: Sequence[Statistics], key: str, whose: str) -> None:
    """Evidence that would have no effect is not what its giver expects."""
    if any(any(model.values()) for model in given):
        names = ", ".join(dict.fromkeys(name for model in given for name in model))
        raise MergewiseError(
            f"{method.name} reads no evidence of {whose} with these parameters, and got {names}; "
            f"leave {key}= out, or choose what reads it: mergewise methods {method.name}"
        )


def _check_base_evidence(method: Method, needs: Sequence[Need], given: Statistics | None) -> None:
    if given and all(need.of != "base" for need in needs):
        _refuse_unread(method, [given], "base_evidence", "the base")
    for need in needs:
        if need.of == "base" and not (given or {}).get(need.statistic):
            have = ", ".join(given or {}) or "nothing"
            raise MergewiseError(
                f"{method.name} needs {need.statistic} of the base model: pass base_evidence=, "
                f"means by statistic, then by tensor; got {have}"
            )


def _label(index: int, has_base: bool) -> str:
    if has_base and index == 0:
        return "base"
    return f"experts[{index - has_base}]"


def _out(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype


def _check_models(method: Method, experts: Sequence[StateDict], base: StateDict | None) -> None:
    if method.base == "required" and base is None:
        raise MergewiseError(f"{method.name} needs a base model: pass base=")
    if isinstance(experts, Mapping):
        raise MergewiseError("a list of state dicts expected, got one state dict; put it in [ ]")
    least, most = method.experts
    if len(experts) < least or (most is not None and len(experts) > most):
        wanted = str(least) if most == least else f"{least} to {most}" if most else f"{least}+"
        raise MergewiseError(
            f"{method.name} takes {wanted} models besides the base, got {len(experts)}"
        )
    donor = base if base is not None else experts[0]
    for i, model in enumerate(experts):
        odd = sorted(donor.keys() ^ model.keys())
        if odd:
            raise IncompatibleModelsError(
                f"experts[{i}] and the first model differ in {len(odd)} tensor names: "
                f"{', '.join(odd[:5])}; {_same_names(i, donor, model)}"
            )
        for name, tensor in donor.items():
            if model[name].shape != tensor.shape:
                raise IncompatibleModelsError(
                    f"tensor {name}: shape {tuple(model[name].shape)} in experts[{i}], "
                    f"{tuple(tensor.shape)} in the first model"
                )


def _same_names(index: int, donor: StateDict, model: StateDict) -> str:
    """What to do about names that differ."""
    found = prefix_between(donor, model)
    if found is None:
        return "give models with the same tensors"
    theirs, ours = found
    new = f"name.removeprefix({theirs!r})" if theirs else "name"
    new = f"{ours!r} + {new}" if ours else new
    return (
        f"its names begin with {theirs!r}, the first model's with {ours!r}: give "
        f"{{{new}: tensor for name, tensor in model.items()}}"
    )


def complete_parameters(method: Method, given: Mapping[str, Any], experts: int) -> dict[str, Any]:
    """All of a method's parameters: given values checked, defaults filled in, one per expert.

    Raises:
        MergewiseError: naming the parameter and what was expected.
    """
    unknown = given.keys() - method.params.keys()
    if unknown:
        raise MergewiseError(
            f"{method.name} has no parameter {', '.join(sorted(unknown))}; it has "
            f"{', '.join(method.params)}"
        )
    values: dict[str, Any] = {}
    for name, param in method.params.items():
        if name not in given and param.required:
            raise MergewiseError(f"{method.name} needs the parameter {name}: {param.help}")
        value = given.get(name, param.default)
        each = value if isinstance(value, list | tuple) and param.per_model else [value]
        if param.per_model and len(each) not in (1, experts):
            raise MergewiseError(
                f"{name}: one value, or {experts} for as many models, expected; got {len(each)}"
            )
        for item in each:
            problem = param.problem(item)
            if problem:
                raise MergewiseError(f"{method.name}: {name}: {problem}")
        converted = [param.convert(item) for item in each]
        if param.per_model:
            values[name] = converted * experts if len(converted) == 1 else converted
        else:
            values[name] = converted[0]
    problem = method.problem(Settings(values), experts)
    if problem:
        raise MergewiseError(f"{method.name}: {problem}")
    return values
