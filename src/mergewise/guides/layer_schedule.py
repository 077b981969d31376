"""A weight or a density that follows a curve over the layers."""

from __future__ import annotations

from mergewise.guides._base import Ask, Guide, Guided, Needs
from mergewise.guides._document import Values, explicit_alike
from mergewise.guides._layers import by_depth, curve_through
from mergewise.guides._measures._cells import find_cells, tensor_map
from mergewise.guides._takes import INSTEAD, MERGED, SAME, cannot_write, refuse_normalized
from mergewise.methods import REQUIRED, Param, Settings, get_method
from mergewise.plan import MergePlan
from mergewise.recipe import Recipe


class LayerSchedule(Guide):
    """The same curve for every expert, through evenly spaced points from first to last layer."""

    name = "layer_schedule"
    summary = "weights, densities or lambdas that follow a curve over the layers"
    data = "none"
    source = "mergekit's gradients over layers, as a guide"
    variant = "one number a layer, written out"
    verified = "code"
    params = {
        "points": Param(str, REQUIRED, "numbers from the first layer to the last, as '0.2,0.5,1'"),
        "shape": Param(
            str, "linear", "between points: straight, level at each, or one step each",
            choices=("linear", "cosine", "step"),
        ),
        "parameter": Param(
            str, "weight", "which parameter of the method is written",
            choices=("weight", "density", MERGED),
        ),
        "other": Param(float, None, "outside the layers (the mean of the points)"),
    }  # fmt: skip

    def problem(self, settings: Settings, recipe: Recipe) -> str | None:
        try:
            points = _points(settings.points)
        except ValueError:
            return f"points: numbers with commas expected, as '0.2,0.5,1', got {settings.points!r}"
        if problem := cannot_write(settings.parameter, recipe):
            return problem
        param = get_method(recipe.output.method).params[settings.parameter]
        for name, value in [*(("points", one) for one in points), ("other", settings.other)]:
            if value is not None and (problem := param.problem(value)):
                return f"{name}: {settings.parameter} of {recipe.output.method}: {problem}"
        return None

    def needs_for(self, settings: Settings, plan: MergePlan) -> Needs:
        """Nothing.

        Raises:
            GuideError: if the recipe divides weights by their sum.
        """
        if settings.parameter == "weight":
            refuse_normalized(self.name, plan, SAME, INSTEAD)
        return Needs()

    def run(self, ask: Ask) -> Guided:
        points = _points(ask.settings.points)
        other = ask.settings.other
        if other is None:
            other = sum(points) / len(points)
        found = by_depth(ask.stage, curve_through(points, ask.settings.shape))
        values = Values(ask.settings.parameter, found, other)
        text, recipe, notes = explicit_alike(self, ask, values)
        cells = find_cells(ask.stage)
        maps = tuple(tensor_map(e, ask.settings.parameter, found, cells) for e in ask.experts)
        return Guided(text, recipe, maps, tuple(notes), ask.warnings)

    @classmethod
    def describe(cls) -> str:
        return "The value in layer l of L is the curve's at l / (L - 1)."


def _points(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]
