"""AIM: after a merge, weights are drawn back to the base where its inputs are strong."""

from __future__ import annotations

from typing import Any

from mergewise.evidence import Evidence
from mergewise.guides._base import Ask, Guide, Guided, Needs
from mergewise.guides._document import explicit
from mergewise.guides._evidence import of_base
from mergewise.methods import Param, Settings, get_method
from mergewise.recipe import Recipe

_KEPT = ("dtype", "out_dtype", "missing", "exclude")
"""What holds for the result as it did for the merge."""


class Aim(Guide):
    """A second stage behind any merge, with the base's activations on generic text."""

    name = "aim"
    summary = "a second stage that draws any merge back to the base along its strongest inputs"
    data = "unlabelled"
    source = "Activation-Informed Merging, Nobari et al. 2025, arXiv 2502.02421"
    verified = "code"
    variant = (
        "texts are not joined and cut into blocks of 512 tokens; an input's magnitude is the mean "
        "over tokens"
    )
    params = {
        "omega": Param(
            float, 0.4, "share of its change that the strongest channel keeps; the authors "
            "recommend 0.2 to 0.6", ge=0, le=1,
        ),
    }  # fmt: skip

    def problem(self, settings: Settings, recipe: Recipe) -> str | None:
        """See `Guide.problem`."""
        method = recipe.output.method
        if get_method(method).base != "ignored":
            return None
        return (
            f"it draws the result of {method} to the base, and {method} knows no base but would "
            "merge it with the others; an average around a base is task_arithmetic with "
            "`normalize: true`"
        )

    def needs(self, settings: Settings) -> Needs:
        return Needs(base=("input_moments",))

    def run(self, ask: Ask) -> Guided:
        driven = of_base(ask, "input_moments")
        text, recipe, notes = explicit(self, ask, edit=lambda d: _stages(d, ask, driven))
        return Guided(text, recipe, notes=tuple(notes), warnings=ask.warnings)

    @classmethod
    def describe(cls) -> str:
        return (
            "a_j: mean of |x_j| over tokens, x the inputs of a weight in the base model.\n"
            "Second stage, method aim: W = W_base + (W_merged - W_base) r_j, "
            "r_j = 1 - (1 - omega) a_j / max(a); norms element by element; embeddings and biases "
            "stay merged."
        )


def _stages(document: dict[str, Any], ask: Ask, driven: Evidence) -> list[dict[str, Any]]:
    """The given merge under a name, and the result."""
    called = document.pop("name", None)
    name = _free_name(document)
    relaxed = {"name": called} if called else {}
    relaxed |= {
        "merge_method": "aim",
        "base_model": document["base_model"],
        "models": [
            {"model": document["base_model"], "evidence": ask.refer(driven.path)},
            {"model": name},
        ],
        "parameters": {"omega": ask.settings.omega},
    }
    kept = {key: document[key] for key in _KEPT if key in document}
    return [{"name": name, **document}, relaxed | kept]


def _free_name(document: dict[str, Any]) -> str:
    """A stage's name hides a model that is called so."""
    taken = {document["base_model"], *(one["model"] for one in document["models"])}
    names = ("merged", *(f"merged_{i}" for i in range(2, len(taken) + 3)))
    return next(name for name in names if name not in taken)
