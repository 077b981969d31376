"""LiNeS: weights that grow from the first layer to the last."""

from __future__ import annotations

from mergewise.guides._base import Ask, Guide, Guided, Needs
from mergewise.guides._cells import find_cells, tensor_map
from mergewise.guides._document import Values, explicit
from mergewise.guides._layers import by_depth
from mergewise.guides._takes import SAME, cannot_weigh, refuse_normalized
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
        "alpha for a sum of task vectors; after methods that shorten them the paper multiplies it "
        "by the ratio of L1 norms, which is left to you"
    )
    verified = "code"
    writes = "weight"
    params = {
        "alpha": Param(
            float, None, "weight in the first layer, and outside the layers (1 / experts)", ge=0
        ),
        "beta": Param(
            float, REQUIRED,
            "how much more in the last layer; the paper tries 0.1 to 2 on validation data", ge=0,
        ),
    }  # fmt: skip

    def problem(self, settings: Settings, recipe: Recipe) -> str | None:
        return cannot_weigh(recipe)

    def needs_for(self, settings: Settings, plan: MergePlan) -> Needs:
        """Nothing.

        Raises:
            GuideError: if the recipe divides weights by their sum.
        """
        refuse_normalized(self.name, plan, SAME)
        return Needs()

    def run(self, ask: Ask) -> Guided:
        alpha, beta = ask.settings.alpha, ask.settings.beta
        if alpha is None:
            alpha = 1 / len(ask.experts)
        found = by_depth(ask.stage, lambda depth: alpha + beta * depth)
        values = [Values("weight", found, alpha)] * len(ask.experts)
        text, recipe, notes = explicit(self, ask, values)
        cells = find_cells(ask.stage)
        maps = tuple(tensor_map(expert, "weight", found, cells) for expert in ask.experts)
        return Guided(text, recipe, maps, tuple(notes), ask.warnings)

    @classmethod
    def describe(cls) -> str:
        return "w_l = alpha + beta l / (L - 1) in layer l of L; alpha elsewhere."
