"""LM-Cocktail: weights of models from their losses on a few examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, pstdev

from mergewise.checkpoint import Checkpoint
from mergewise.errors import GuideError
from mergewise.evidence import Data
from mergewise.guides._base import Ask, Guide, Guided, Needs
from mergewise.guides._document import explicit
from mergewise.guides._losses import look_at, mean_loss
from mergewise.guides._names import place_of
from mergewise.guides._scoring import Scored, Scorer
from mergewise.guides._takes import refuse_normalized
from mergewise.guides._weighting import commented, weight_problem, weights
from mergewise.methods import Param, Settings
from mergewise.recipe import Recipe


class LmCocktail(Guide):
    """Weights that fall with the loss on a few examples of the wanted task."""

    name = "lm_cocktail"
    summary = "weights from losses on a few examples: softmax(-loss / temperature)"
    data = "labelled"
    source = "LM-Cocktail, Xiao et al. 2023, arXiv 2311.13534"
    variant = (
        "the official code, with weights that do sum to 1; losses on data are of all tokens (the "
        "official ones of answers only: by=tasks, with a task that has a prompt), and a scale "
        "for losses is ours"
    )
    verified = "code"
    writes = "weight"
    based = False
    params = {
        "by": Param(
            str, "data", "losses on examples (--data), or a metric of tasks (--tasks)",
            choices=("data", "tasks"),
        ),
        "metric": Param(str, "loss", "of tasks: what is taken for the loss; less is better"),
        "temperature": Param(
            float, 5.0, "of the softmax, in the losses' unit: nats (official default)", gt=0
        ),
        "scale": Param(
            str, "none", "spread: losses are divided by their standard deviation first, so that "
            "the temperature has no unit", choices=("none", "spread"),
        ),
        "base": Param(
            bool, False, "the base takes part too, for methods that add task vectors as they are"
        ),
        "target": Param(str, None, "a model of the recipe that gets the share alpha in any case"),
        "alpha": Param(float, 0.5, "share of the target; the others divide the rest", ge=0, le=1),
    }  # fmt: skip

    def problem(self, settings: Settings, recipe: Recipe) -> str | None:
        if settings.base and recipe.output.base_model is None:
            return "base=true needs a `base_model`; or list it under `models`"
        return weight_problem(recipe)

    def needs(self, settings: Settings) -> Needs:
        return Needs(data=settings.by == "data", tasks=settings.by == "tasks")

    def run(self, ask: Ask) -> Guided:
        settings, models = ask.settings, _models(ask)
        target = settings.target
        if target is not None:
            target = place_of(target, list(models), "lm_cocktail: target")
        losses, source = _losses(self, ask, models)
        shares = cocktail(losses, settings.temperature, settings.scale, target, settings.alpha)
        text, recipe, notes = explicit(self, ask, weights(shares[: len(ask.experts)]))
        told = [
            f"{label}: loss {loss:.6g}, weight {share:.6g}"
            for label, loss, share in zip(models, losses, shares, strict=True)
        ]
        told.append(source)
        return Guided(commented(text, told), recipe, (), (*told, *notes), ask.warnings)

    @classmethod
    def describe(cls) -> str:
        return (
            "w_i = exp(-l_i / T) / sum_j exp(-l_j / T); l_i the mean loss of model i, for "
            "scale=spread over the standard deviation of all l.\n"
            "With a target: alpha for it, (1 - alpha) w_i for the others, w over those alone.\n"
            "With base=true the base has a weight too, and those of the experts add up to the rest."
        )


def cocktail(
    losses: Sequence[float],
    temperature: float,
    scale: str = "none",
    target: int | None = None,
    alpha: float = 0.5,
) -> list[float]:
    """Weights with sum 1.

    Args:
        target: the place of the model that gets `alpha`; None for a softmax over all.
    """
    spread = pstdev(losses) if scale == "spread" else 1.0
    unit = temperature * (spread or 1.0)
    peers = [i for i in range(len(losses)) if i != target]
    least = min((losses[i] for i in peers), default=0.0)
    powers = {i: math.exp((least - losses[i]) / unit) for i in peers}
    rest = 1.0 if target is None else 1 - alpha
    shares = {i: rest * power / sum(powers.values()) for i, power in powers.items()}
    if target is not None:
        shares[target] = alpha if peers else 1.0
    return [shares[i] for i in range(len(losses))]


def _models(ask: Ask) -> dict[str, Checkpoint]:
    """Those that take part by label, the base last."""
    found = {expert.label: expert.checkpoint for expert in ask.experts}
    if ask.settings.base:
        refuse_normalized(
            "lm_cocktail", ask.plan, "{} divides by the sum of weights, which leaves "
            "nothing for the base",
        )  # fmt: skip
        found[str(ask.plan.recipe.output.base_model)] = ask.foundation
    return found


def _losses(guide: Guide, ask: Ask, models: dict[str, Checkpoint]) -> tuple[list[float], str]:
    """Of every model, and what they are losses of."""
    if ask.settings.by == "data":
        data = _data(ask)
        look_at(ask, data)
        found = []
        for number, (label, checkpoint) in enumerate(models.items(), 1):
            ask.tell(f"loss of {label} on {data.name} ({number} of {len(models)})")
            found.append(mean_loss(checkpoint, data, ask.options))
        return found, f"losses are of {data.name}, in nats a prediction"
    scorer = Scorer(guide, ask, len(models))
    scored = scorer.models({label: checkpoint.path for label, checkpoint in models.items()})
    return [_metric(scored[label], ask.settings.metric) for label in models], scorer.summary()


def _data(ask: Ask) -> Data:
    """The examples, which are the same for all models."""
    first, *others = (ask.data[expert.label] for expert in ask.experts)
    if any(other != first for other in others):
        raise GuideError(
            "lm_cocktail compares losses on the same examples, and models have data of their "
            "own here; give examples of the wanted task for all of them: --data FILE"
        )
    return first


def _metric(scored: Scored, name: str) -> float:
    for task, score in scored.scores.items():
        if not math.isfinite(score.metrics.get(name, math.nan)):
            raise GuideError(
                f"lm_cocktail: {scored.label}: task {task} has no finite {name}; it has "
                f"{', '.join(score.metrics)}. Set metric=NAME, or by=data"
            )
    return fmean(score.metrics[name] for score in scored.scores.values())
