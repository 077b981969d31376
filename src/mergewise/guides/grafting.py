"""Skill grafting: the few changes of one expert that carry its skill."""

from __future__ import annotations

from mergewise.evidence import MaskSettings
from mergewise.guides._base import Ask, Guide, Guided, Needs
from mergewise.guides._masks import guided_by_masks, problem_of
from mergewise.methods import Param, Settings
from mergewise.recipe import Recipe


class Grafting(Guide):
    """Trains a mask over one expert's changes, starting from its largest ones."""

    name = "grafting"
    summary = "a mask for one expert, trained on labelled examples: the changes that carry a skill"
    data = "labelled"
    source = "Task-Specific Skill Localization, Panigrahi et al. 2023, arXiv 2302.06600"
    verified = "paper"
    variant = (
        "of all epochs the mask with the best loss on the examples is kept, where the official "
        "code keeps the best accuracy on training and validation examples together; exactly the "
        "asked-for number of changes at the start, where it takes one fewer"
    )
    params = {
        "density": Param(
            float, 1e-5, "share of the changes, the largest, in the mask that training starts from",
            ge=0, le=1,
        ),
        "most": Param(
            float, 1.0, "at most this share of the changes stays in the mask: the surest", gt=0,
            le=1,
        ),
        "bias": Param(float, 10.0, "size of the first logits, less a random part below 1", gt=1),
        "epochs": Param(int, 10, "steps, each over all examples; 0 for the largest changes", ge=0),
        "lr": Param(float, 1e7, "learning rate of plain gradient descent", gt=0),
        "keep": Param(
            str, "best", "the mask of the last epoch, or that with the best loss on the examples",
            choices=("last", "best"),
        ),
        "seed": Param(int, 0, "of the first logits", ge=0),
        "tensors": Param(
            str, None, "which tensors: names with *, separated by commas; by default all of the "
            "layers; the others keep the base's values",
        ),
    }  # fmt: skip

    def problem(self, settings: Settings, recipe: Recipe) -> str | None:
        """See `Guide.problem`."""
        stage = recipe.output
        experts = [model for model in stage.models if model != stage.base_model]
        if len(experts) != 1:
            return (
                f"it grafts one expert, and there are {len(experts)}; leave one, or use the guide "
                "localize_and_stitch"
            )
        return problem_of(recipe)

    def needs(self, settings: Settings) -> Needs:
        return Needs(data=True)

    def run(self, ask: Ask) -> Guided:
        given = {name: value for name, value in vars(ask.settings).items() if name != "tensors"}
        return guided_by_masks(self, ask, MaskSettings(noise=1.0, l1=0.0, **given))

    @classmethod
    def describe(cls) -> str:
        return (
            "b: 1 where |tau|, tau = expert - base, is in the top density over all tensors "
            "together, else 0. S: random in [0, 1).\n"
            "m(S) = b + (1 - 2 b) sigmoid(S - bias); each epoch: S <- S - lr dL/dS, L the mean "
            "loss of a prediction of base + m(S) tau on the examples.\n"
            "The merge: base + round(m(S)) tau, S of the epoch with the least loss so rounded."
        )
