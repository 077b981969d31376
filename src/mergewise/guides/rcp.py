"""RCP-Merging: a reasoning model, and of a domain model what does not disturb its reasoning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mergewise.errors import GuideError
from mergewise.evidence import Evidence, collect, load_evidence
from mergewise.guides._base import Ask, Expert, Guide, Guided, Needs
from mergewise.guides._document import explicit
from mergewise.guides._found import found_record
from mergewise.guides._lines import Lines
from mergewise.guides._losses import feeder, look_at, opened
from mergewise.guides._names import file_name, place_of
from mergewise.methods import Param, Settings, get_method
from mergewise.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor

_COLLECTING = ("template", "max_length", "batch_size", "dtype", "device", "trust_remote_code",
               "progress", "memory", "prepare")  # fmt: skip
_STATISTIC = "gradient_weight"


class Rcp(Guide):
    """Element by element, by a vote of domain examples against the reasoning model's Fisher."""

    name = "rcp"
    summary = "adds to a reasoning model what a domain model's examples want and reasoning allows"
    data = "labelled"
    source = "RCP-Merging, 2025, arXiv 2508.03140"
    verified = "code"
    variant = (
        "squares of the models' difference in float32, where the authors' code has bfloat16; the "
        "domain's data are the prompts alone, as there, if the user gives prompts"
    )
    params = {
        "reasoning": Param(
            str, None, "which of the two experts is the reasoning model, as the recipe calls it "
            "or by the last part of its path; by default the first",
        ),
        "penalty": Param(
            float, 1000.0, "weight of what reasoning loses (lambda in the paper)", ge=0
        ),
    }  # fmt: skip

    def problem(self, settings: Settings, recipe: Recipe) -> str | None:
        """See `Guide.problem`."""
        method = get_method(recipe.output.method)
        if method.base == "ignored":
            return f"{method.name} knows no base; start from task_arithmetic"
        return None

    def needs(self, settings: Settings) -> Needs:
        return Needs(data=True)

    def run(self, ask: Ask) -> Guided:
        """The explicit recipe: the domain's masked change as a stage, then the sum.

        Raises:
            GuideError: unless there are two experts, one of them the reasoning model.
            MergewiseError: as models are run.
        """
        reasoning, domain = _roles(ask)
        _look(ask)
        prior = _prior(ask, reasoning)
        masks = _masks(ask, reasoning, domain, prior)
        file = _kept(ask, domain, masks)
        text, recipe, notes = explicit(
            self, ask, edit=lambda d: _stages(d, ask, (reasoning, domain), file)
        )
        method = ask.stage.stage.method
        notes.append(f"merge_method {method} and its parameters become the sum of both changes")
        share = sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())
        notes.append(f"{share:.2%} of {domain.label}'s changes are added to {reasoning.label}")
        return Guided(text, recipe, notes=tuple(notes), warnings=ask.warnings)

    @classmethod
    def describe(cls) -> str:
        return (
            "F = mean over reasoning examples of (g w_R)^2, g the gradient of the example's mean "
            "loss in the reasoning model R.\n"
            "Each domain example votes for an element's change where "
            "g w_D + penalty F (w_R - w_D)^2 <= 0, g its gradient in the domain model D, else "
            "against it.\n"
            "w = w_R + m (w_D - w_base), m = 1 where more vote for than against."
        )


def _roles(ask: Ask) -> tuple[Expert, Expert]:
    """The reasoning and the domain model."""
    if len(ask.experts) != 2:
        raise GuideError(
            f"rcp: {ask.plan.recipe.path}: it takes a reasoning and a domain model, and there are "
            f"{len(ask.experts)} experts"
        )
    first, second = ask.experts
    name = ask.settings.reasoning
    if name is None or place_of(name, [first.label, second.label], "rcp: reasoning") == 0:
        return first, second
    return second, first


def _look(ask: Ask) -> None:
    if ask.options.get("offload"):
        raise GuideError("gradients need the whole model in memory; leave out `offload`")
    for expert in ask.experts:
        look_at(ask, ask.data[expert.label])


def _prior(ask: Ask, reasoning: Expert) -> Evidence:
    """Squares of gradient times weight of the reasoning model."""
    ask.tell(f"what reasoning rests on: {reasoning.label} on {ask.data[reasoning.label].name}")
    options = {k: v for k, v in ask.options.items() if k in _COLLECTING and v is not None}
    return collect(
        _STATISTIC, reasoning.checkpoint.path, ask.data[reasoning.label],
        ask.keep(f"{file_name(reasoning.label)}.squares.safetensors"),
        options={_STATISTIC: {"keep": "square", "labels": "data"}}, overwrite=True, **options,
    )  # fmt: skip


def _masks(ask: Ask, reasoning: Expert, domain: Expert, prior: Evidence) -> dict[str, Tensor]:
    from mergewise.evidence.models import StoredTensors
    from mergewise.guides._votes import voted

    ask.tell(f"votes: {domain.label} on {ask.data[domain.label].name}")
    mine, theirs = (StoredTensors(one.checkpoint) for one in (reasoning, domain))
    penalties = {}
    for name in prior.tensors(_STATISTIC):
        planned = ask.stage.tensors.get(name)
        if planned is None or planned.fate != "merge":
            continue
        examples = prior.counts(_STATISTIC, name)["examples"]
        square = prior.sums(_STATISTIC, name)["square"].float() / examples
        penalties[name] = ask.settings.penalty * square * (mine[name] - theirs[name]).square()
    model = opened(domain.checkpoint, ask.options)
    batches = feeder(model, ask.data[domain.label], ask.options)
    lines = Lines(ask)
    return voted(
        model, tuple(domain.checkpoint.tensors), batches, penalties,
        lambda count: lines(f"votes of {domain.label}: {count:,} examples"),
    )  # fmt: skip


def _kept(ask: Ask, domain: Expert, masks: dict[str, Tensor]) -> Evidence:
    """The mask as evidence of the domain model."""
    from mergewise.evidence import entries_of_masks
    from mergewise.evidence.statistics import write_evidence

    options = {"guide": "rcp", "penalty": ask.settings.penalty}
    record = found_record(ask, domain, "mask", options, masks)
    out = ask.keep(f"{file_name(domain.label)}.mask.safetensors")
    write_evidence(out, record, entries_of_masks({n: m.cpu() for n, m in masks.items()}))
    return load_evidence(out)


def _stages(
    document: dict[str, Any], ask: Ask, experts: tuple[Expert, Expert], mask: Evidence
) -> list[dict[str, Any]]:
    """base + m (domain - base) as a stage, then its change and the reasoning model's, added."""
    reasoning, domain = experts
    base = document["base_model"]
    taken = {base, *(model["model"] for model in document["models"])}
    called = next(n for n in ("domain", "domain_2", "domain_3", "domain_4") if n not in taken)
    kept: dict[str, Any] = {
        k: document[k] for k in ("dtype", "missing", "exclude") if k in document
    }
    stage: dict[str, Any] = {
        "name": called,
        "merge_method": "localize_and_stitch",
        "base_model": base,
        "models": [{"model": domain.label, "evidence": ask.refer(mask.path)}],
        "parameters": {"localize": "mask"},
        **kept,
    }
    added: dict[str, Any] = {
        "merge_method": "task_arithmetic",
        "models": [
            {"model": reasoning.label, "parameters": {"weight": 1.0}},
            {"model": called, "parameters": {"weight": 1.0}},
        ],
    }
    rest = {k: v for k, v in document.items() if k not in ("merge_method", "models", "parameters")}
    return [stage, added | rest]
