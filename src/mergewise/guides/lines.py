"""LiNeS: weights that grow from the first layer to the last."""

from __future__ import annotations

from mergewise.guides._base import Ask, Guide, Guided, Needs
from mergewise.guides._document import Values, explicit_alike
from mergewise.guides._layers import by_depth
from mergewise.guides._measures._cells import find_cells, tensor_map
from mergewise.guides._takes import (
    INSTEAD,
    MERGED,
    SAME,
    WRITTEN,
    cannot_weigh,
    cannot_write,
    refuse_normalized,
)
from mergewise.methods import REQUIRED, Param, Settings
from mergewise.plan import MergePlan
from mergewise.recipe import Recipe


class LiNeS(Guide):
    """Little of the first layers, which hold what is general, and more of the later ones."""

    name = "lines"
    summary = "weights that grow linearly over the layers"
    data = "none"
    source = "LiNeS, Wang et al. 2024, arXiv 2410.17146"
    variant = (
        "alpha for a sum of task vectors; after methods that shorten them (parameter: lambda) the "
        "paper multiplies it by the ratio of L1 norms, which is left to you"
    )
    verified = "code"
    writes = "weight"
    params = {
        "alpha": Param(
            float, None, "weight in the first layer, and outside the layers (1 / experts; has to "
            "be said for lambda)", ge=0,
        ),
        "beta": Param(
            float, REQUIRED,
            "how much more in the last layer; the paper tries 0.1 to 2 on validation data", ge=0,
        ),
        "parameter": WRITTEN,
    }  # fmt: skip

    def problem(self, settings: Settings, recipe: Recipe) -> str | None:
        if settings.parameter != MERGED:
            return cannot_weigh(recipe)
        if settings.alpha is None:
            return "parameter lambda: say alpha, such as 0.5; it depends on the method"
        return cannot_write(MERGED, recipe)

    def needs_for(self, settings: Settings, plan: MergePlan) -> Needs:
        """Nothing.

        Raises:
            GuideError: if the recipe divides weights by their sum.
        """
        if settings.parameter != MERGED:
            refuse_normalized(self.name, plan, SAME, INSTEAD)
        return Needs()

    def run(self, ask: Ask) -> Guided:
        alpha, beta = ask.settings.alpha, ask.settings.beta
        if alpha is None:
            alpha = 1 / len(ask.experts)
        found = by_depth(ask.stage, lambda depth: alpha + beta * depth)
        written = ask.settings.parameter
        text, recipe, notes = explicit_alike(self, ask, Values(written, found, alpha))
        cells = find_cells(ask.stage)
        maps = tuple(tensor_map(expert, written, found, cells) for expert in ask.experts)
        return Guided(text, recipe, maps, tuple(notes), ask.warnings)

    @classmethod
    def describe(cls) -> str:
        return "w_l = alpha + beta l / (L - 1) in layer l of L; alpha elsewhere."
