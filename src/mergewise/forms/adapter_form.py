"""A recipe's result as an adapter of its base: the key `form: adapter`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise._units import parse_bytes
from mergewise.checkpoint import (
    ChangedRef,
    Checkpoint,
    FileReader,
    LowRank,
    TensorRef,
    open_checkpoint,
    provenance,
    sha256_file,
)
from mergewise.engine import MergeResult, ResultTensors
from mergewise.errors import Diagnostic, MergewiseError, NonFiniteError, OutputError, RecipeError
from mergewise.forms._adapter_files import (
    WEIGHTS_FILE,
    check_folder,
    read_tensor,
    usual_dtype,
    write_notes,
)
from mergewise.forms._changes import Sum, difference
from mergewise.forms._factor_space import factor_wise
from mergewise.forms._svd import Rank, product_norm
from mergewise.forms.lora_extract import Extracted, Extraction, LayerError
from mergewise.methods import Settings, get_method
from mergewise.plan import MergePlan, TensorMeta, TensorPlan, build_plan

if TYPE_CHECKING:
    from torch import Tensor

_ROUNDING = 1e-6
"""A change this much smaller than its weight is what float32 makes of equal numbers."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class MadeAdapter(MergeResult):
    """A merge whose result is an adapter.

    Attributes:
        adapter: its weights' ranks and errors; see `Extracted`.
    """

    adapter: Extracted | None = None

    @property
    def layers(self) -> tuple[LayerError, ...]:
        return self.adapter.layers if self.adapter else ()


def merge_into_adapter(
    plan: MergePlan,
    out: Path | str,
    *,
    device: str = "auto",
    workers: int | None = None,
    memory: str | int | None = None,
    overwrite: bool = False,
    allow_nonfinite: bool = False,
    progress: Progress | None = None,
    **without_effect: Any,
) -> MadeAdapter:
    """Run a recipe whose `form` is ``adapter``: the result minus the base, as a LoRA of it.

    Any method, guide and parameters per tensor apply. Where the result is the base plus a
    weighted sum of adapters' ``s * B @ A`` (`Method.summed`), these are put side by side, and cut
    without making their product; anything else is merged in float32, one tensor in memory at a
    time, and cut by a randomised SVD, which takes a `rank` or an `energy`. Inputs and stages are
    not rounded to the recipe's `dtype`: it is the type of the factors (by default the adapters').

    With ``space: factor`` the method is given the adapters' A, and apart from that their B, and
    bases of zeros.

    Args:
        device, workers, memory, overwrite: as `mergewise.engine.merge` takes them.
        allow_nonfinite: has no effect but a refusal: adapters hold finite numbers.

    Raises:
        RecipeError: at the form's place, for what an adapter cannot be made of.
        MergewiseError: as `extract_lora` and `mergewise.engine.merge` raise.
    """
    form = plan.recipe.output.makes
    if form is None or form.name != "adapter":
        raise MergewiseError("the recipe does not ask for an adapter: `form: adapter`")
    if allow_nonfinite:
        raise MergewiseError("--allow-nonfinite: factors of NaN or infinity are of no use")
    base = _base(plan)
    _refuse_own_inputs(plan, Path(out))
    check_folder(Path(out), overwrite)
    wide = build_plan(_unrounded(plan))
    rank = Rank(form.rank, form.energy)
    result = ResultTensors(
        wide, device=device, workers=workers, memory=parse_bytes(memory) if memory else None
    )
    changes = _PlanChanges(plan, base, result, form.space)
    if form.space == "factor" or rank == Rank():
        _check_exact(plan, changes)
    with result:
        made = Extraction(
            changes, Path(out), rank, form.rest, _dtype(plan), overwrite, progress
        ).run()
    _write_notes(plan, Path(out))
    return MadeAdapter(
        out=Path(out), files=(WEIGHTS_FILE,), bytes_written=made.bytes_written, resumed=0,
        warnings=plan.warnings, adapter=made,
    )  # fmt: skip


def _refuse_own_inputs(plan: MergePlan, out: Path) -> None:
    for label, checkpoint in plan.checkpoints.items():
        folders = {checkpoint.folder.resolve(), *(f.resolve().parent for f in checkpoint.files)}
        if checkpoint.adapter is not None:
            folders.add(checkpoint.adapter.resolve())
        if out.resolve() in folders:
            raise OutputError(
                f"{out}: is a folder of the input {label}, or holds its files; choose another "
                "output folder"
            )


def _unrounded(plan: MergePlan) -> Any:
    stages = [replace(s, dtype=None, out_dtype="float32") for s in plan.recipe.stages]
    return replace(plan.recipe, stages=tuple(stages))


def _dtype(plan: MergePlan) -> str | None:
    """The type of the factors: the recipe's, else the adapters' own; None if there are none."""
    refs = [ref for c in plan.checkpoints.values() for ref in c.tensors.values()]
    changes = [ref.change for ref in refs if isinstance(ref, ChangedRef)]
    codes = {part.dtype for change in changes for part in change.parts}
    return plan.recipe.output.dtype or (usual_dtype(codes) if codes else None)


def _write_notes(plan: MergePlan, out: Path) -> None:
    record = provenance(
        recipe=plan.recipe.text,
        seeds=plan.seeds,
        inputs={label: c.files for label, c in plan.checkpoints.items()},
        outputs={WEIGHTS_FILE: f"sha256:{sha256_file(out / WEIGHTS_FILE)}"},
        config={"recipe_digest": plan.recipe.digest},
    )
    write_notes(out, plan.recipe.text, record)


def _problem(plan: MergePlan, message: str) -> RecipeError:
    at = plan.recipe.output.positions["form"]
    return RecipeError([Diagnostic(at.path, at.line, at.column, f"form: adapter: {message}")])


def _base(plan: MergePlan) -> Checkpoint:
    """The checkpoint that the adapter is to be an adapter of."""
    base, planned = _found_base(plan), plan.output.tensors
    mapped = plan.output.vocabulary
    resized = any(
        name in planned and planned[name].meta.shape != ref.shape
        for name, ref in base.tensors.items()
    )
    if resized or (mapped is not None and (mapped.maps or mapped.tokenizer.edited)):
        raise _problem(
            plan,
            "an adapter has its base's vocabulary; leave tokenizer_source and tokenizer out, and "
            "adapters that have another vocabulary than their base",
        )
    return base


def _found_base(plan: MergePlan) -> Checkpoint:
    stage = plan.output.stage
    if stage.base_model is not None:
        found = plan.checkpoints.get(str(stage.base_model))
        if found is None or found.adapter is not None:
            raise _problem(
                plan, f"base_model {stage.base_model}: a checkpoint expected, without an adapter"
            )
        return found
    folders = {c.folder for c in plan.checkpoints.values() if c.adapter is not None}
    if len(folders) != 1:
        raise _problem(
            plan, "an adapter of which model? Give base_model, or adapters of one base alone"
        )
    return open_checkpoint(folders.pop())


@dataclass
class _PlanChanges:
    """A planned result beside its base; see `Changes`."""

    plan: MergePlan
    base: Checkpoint
    result: ResultTensors
    space: str

    @property
    def label(self) -> str:
        return "the result"

    @property
    def origin(self) -> str:
        return ", ".join(c.path.name for c in self.plan.checkpoints.values())

    @cached_property
    def tensors(self) -> Mapping[str, TensorMeta]:
        return {name: planned.meta for name, planned in self.plan.output.tensors.items()}

    def same(self, name: str) -> bool:
        planned = self.plan.output.tensors[name]
        if planned.fate == "merge" and self._sum_of(planned) == []:
            return True
        return all(self._is_base(item.view.ref(item.meta.name)) for item in planned.inputs)

    def equal(self, name: str) -> bool:
        return self.same(name)

    def factors(self, name: str) -> Sum | None:
        planned = self.plan.output.tensors[name]
        if self.space == "factor":
            return self._factor_wise(planned)
        terms = self._sum_of(planned)
        if terms is None:
            return None
        pairs = [(weight, *_factors(ref, self.plan)) for weight, ref in terms]
        b = torch.cat([weight * b for weight, b, _ in pairs], dim=1)
        a = torch.cat([a for _, _, a in pairs])
        return b, a, sum(abs(weight) * product_norm(b, a) for weight, b, a in pairs)

    def read(self, name: str) -> Tensor:
        return self.result.read(name)

    def delta(self, name: str) -> tuple[Tensor, Tensor]:
        mine = self.read(name)
        delta = difference(self, name, mine)
        if float(delta.double().norm()) <= _ROUNDING * float(mine.double().norm()):
            delta = torch.zeros_like(delta)
        return mine, delta

    def exact(self, name: str) -> bool:
        """Whether a tensor's factors are known without an SVD, if it has any."""
        planned = self.plan.output.tensors[name]
        if self.same(name) or len(planned.meta.shape) < 2:
            return True
        if self.space == "factor":
            return self._all_low_rank(planned) is not None
        return self._sum_of(planned) is not None

    def _factor_wise(self, planned: TensorPlan) -> Sum | None:
        refs = self._all_low_rank(planned)
        if refs is None:
            return None
        stage = self.plan.output.stage
        each = [_factors(ref, self.plan) for ref in refs]
        b, a = factor_wise(each, stage.method, planned.values, stage.seed or 0)
        return b, a, 0.0

    def _all_low_rank(self, planned: TensorPlan) -> list[ChangedRef] | None:
        refs = [item.view.ref(item.meta.name) for item in planned.experts]
        found = [ref for ref in refs if self._is_low_rank(ref) and isinstance(ref, ChangedRef)]
        ranks = {ref.change.rank for ref in found if isinstance(ref.change, LowRank)}
        return found if len(found) == len(refs) and len(ranks) == 1 else None

    def _sum_of(self, planned: TensorPlan) -> list[tuple[float, ChangedRef]] | None:
        """The changes that the result is a weighted sum of; None if it is not one."""
        if planned.fate != "merge":
            return None
        method = get_method(self.plan.output.stage.method)
        weights = method.summed(Settings(planned.values))
        if weights is None:
            return None
        found: list[tuple[float, ChangedRef]] = []
        for weight, item in zip(weights, planned.experts, strict=True):
            ref = item.view.ref(item.meta.name)
            if isinstance(ref, ChangedRef) and self._is_low_rank(ref):
                found += [(weight, ref)] if weight else []
            elif not self._is_base(ref):
                return None
        return found

    def _is_low_rank(self, ref: TensorRef | None) -> bool:
        if not isinstance(ref, ChangedRef) or not isinstance(ref.change, LowRank):
            return False
        return ref.change.magnitude is None and self._is_base(ref.stored)

    def _is_base(self, ref: TensorRef | None) -> bool:
        """Whether a tensor is the base's own, told by where it lies."""
        if ref is None or isinstance(ref, ChangedRef):
            return False
        own = self.base.tensors.get(ref.name)
        if own is None:
            return False
        return (ref.start, ref.end) == (own.start, own.end) and _resolved(ref) == _resolved(own)


def _resolved(ref: TensorRef) -> Path:
    return ref.file.resolve()


def _factors(ref: ChangedRef, plan: MergePlan) -> tuple[Tensor, Tensor]:
    """B ``[outputs, rank]``, with the scale, and A ``[rank, inputs]``."""
    change = ref.change
    assert isinstance(change, LowRank)
    stamps = {p: s for c in plan.checkpoints.values() for p, s in c.stamps.items()}
    read = {}
    with FileReader({part.file: stamps[part.file] for part in change.parts}) as reader:
        for part in change.parts:
            read[part.name] = read_tensor(reader, part)
            if not torch.isfinite(read[part.name]).all():
                raise NonFiniteError(
                    f"tensor {part.name} of {part.file} holds NaN or infinity; repair that adapter"
                )
    b = read[change.b.name].reshape(-1, change.rank) * change.scale
    if change.middle is not None:
        b = b * read[change.middle.name].reshape(-1)
    return b, read[change.a.name].flatten(1)


def _check_exact(plan: MergePlan, changes: _PlanChanges) -> None:
    """Without a rank every factor must be known; what is not is named before any work."""
    odd = [name for name in changes.tensors if not changes.exact(name)]
    if not odd:
        return
    if changes.space == "factor":
        raise _problem(
            plan,
            f"space: factor takes LoRAs of one base that change the same weights with equal ranks; "
            f"{odd[0]} has other inputs; leave space out, and give a rank",
        )
    raise _problem(
        plan,
        f"{plan.output.stage.method} gives dense matrices here ({_some(odd)}), so that factors "
        "need a limit; add `rank`, `energy` or both",
    )


def _some(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if names[1:] else "")
