"""OTA: task vectors weighted by the curvature that each expert's training left behind."""

from __future__ import annotations

from typing import Any

from mergewise.guides._base import Ask, Guide, Guided, Needs
from mergewise.guides._document import explicit
from mergewise.guides._evidence import OPTIONS, given_options, name_files, options_problem
from mergewise.methods import Param, Settings, get_method
from mergewise.recipe import Recipe

_SET = ("moment", "power", "granularity", "fallback")
"""Settings that are parameters of the method, for all models alike."""


class Ota(Guide):
    """Any merge of task vectors, made one by OTA with its mask (Fast Fisher Grafting)."""

    name = "ota"
    summary = "curvature from trainers' optimizer files (or data), for a merge by OTA with its mask"
    data = "log"
    source = "OTA Merging with Fast Fisher Grafting, 2025, arXiv 2509.11167"
    verified = "code"
    variant = (
        "a mask by the share kept, where the authors' configurations state absolute thresholds "
        "tuned for such shares; `moment: fisher` measures the curvature on texts instead"
    )
    calibrates = True
    params = {
        "moment": Param(
            str, "adam", "Adam's second moments, data being each expert's trainer checkpoint (its "
            "folder, or its optimizer file); or Fisher information, data being texts",
            choices=("adam", "fisher"),
        ),
        "density": Param(
            float, 0.4, "share of the changes that the mask keeps, of models whose `density` the "
            "recipe leaves open", ge=0, le=1,
        ),
        "granularity": Param(
            str, "tensor", "over what the mask ranks changes", choices=("tensor", "model")
        ),
        "power": Param(float, 0.5, "of the curvature, as a weight", gt=0),
        "fallback": Param(
            str, "base", "what stays where all experts are masked", choices=("base", "mean")
        ),
        "collect": OPTIONS,
    }  # fmt: skip

    def problem(self, settings: Settings, recipe: Recipe) -> str | None:
        """See `Guide.problem`."""
        if problem := options_problem(settings.collect, (settings.moment,)):
            return problem
        method = get_method(recipe.output.method)
        if method.base != "ignored" and method.experts[1] is None:
            return None
        return (
            f"it turns a merge of task vectors into one by ota, and {method.name} is none; start "
            "from ota or task_arithmetic"
        )

    def needs(self, settings: Settings) -> Needs:
        return Needs((settings.moment,), options=given_options(settings.collect))

    def run(self, ask: Ask) -> Guided:
        notes: list[str] = []

        def edit(document: dict[str, Any]) -> list[dict[str, Any]]:
            notes.extend(_turned(document, ask))
            own = {e.index: [e.evidence[ask.settings.moment]] for e in ask.experts}
            notes.extend(name_files(document, ask, own))
            return [document]

        text, recipe, replaced = explicit(self, ask, edit=edit)
        return Guided(text, recipe, notes=(*notes, *replaced), warnings=ask.warnings)

    @classmethod
    def describe(cls) -> str:
        return (
            "v_i: Adam's second moments at the end of expert i's training, d_i = expert_i - base.\n"
            "Mask m_i: the density share of the elements with the largest v_i d_i^2.\n"
            "merge_method ota: base + sum_i P_i d_i / sum_i P_i, P_i = v_i^power m_i."
        )


def _turned(document: dict[str, Any], ask: Ask) -> list[str]:
    """Make the document a merge by OTA; what was dropped, in words."""
    taken = get_method("ota").params
    shared = document.get("parameters") or {}
    levels = [document, *document["models"]]
    dropped = _drop(levels, taken)
    common = document.get("parameters") or {}
    document["parameters"] = common | {name: getattr(ask.settings, name) for name in _SET}
    if not {"density", "threshold"} & set(shared):
        for expert in ask.experts:
            own = document["models"][expert.index].setdefault("parameters", {})
            if "threshold" not in own:
                own.setdefault("density", ask.settings.density)
    before, document["merge_method"] = document["merge_method"], "ota"
    notes = [] if before == "ota" else [f"merge_method {before} becomes ota"]
    return [*notes, *(f"{name} is dropped: ota has no such parameter" for name in dropped)]


def _drop(levels: list[dict[str, Any]], taken: Any) -> list[str]:
    """Take out what OTA does not know; the names."""
    dropped: dict[str, None] = {}
    for level in levels:
        given = level.pop("parameters", None) or {}
        dropped |= dict.fromkeys(name for name in given if name not in taken)
        if kept := {name: value for name, value in given.items() if name in taken}:
            level["parameters"] = kept
    return list(dropped)
