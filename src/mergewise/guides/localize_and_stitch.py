"""Localize-and-Stitch: a trained mask for every expert."""

from __future__ import annotations

from mergewise.evidence import MaskSettings
from mergewise.guides._base import Ask, Guide, Guided, Needs
from mergewise.guides._masks import guided_by_masks, problem_of
from mergewise.methods import Param, Settings
from mergewise.recipe import Recipe


class LocalizeAndStitch(Guide):
    """Trains, for every expert on its own examples, which of its changes its task needs."""

    name = "localize_and_stitch"
    summary = "a mask for every expert, trained on labelled examples: the changes its task needs"
    data = "labelled"
    source = "Localize-and-Stitch, He et al. 2024, arXiv 2408.13656"
    verified = "paper"
    variant = (
        "the paper's L1 penalty, which shrinks masks (the official code's sign polarises them: "
        "`regularizer: polarize`); gradients of the mean over all predictions, where the official "
        "code adds the means of batches, so that its `lr` is this one divided by the number of "
        "batches; tensors of the layers only, as its language experiments"
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
        "bias": Param(float, 5.0, "size of the first logits", gt=0),
        "epochs": Param(int, 10, "steps, each over all examples; 0 for the largest changes", ge=0),
        "lr": Param(float, 1e7, "learning rate of plain gradient descent", gt=0),
        "l1": Param(
            float, 1.0, "weight of the regulariser in a step, not multiplied by lr", ge=0
        ),
        "regularizer": Param(
            str, "l1", "l1 makes masks smaller (the paper); polarize pushes logits away from 0 "
            "(the official code's sign)",
            choices=("l1", "polarize"),
        ),
        "keep": Param(
            str, "last", "the mask of the last epoch, or that with the best loss on the examples",
            choices=("last", "best"),
        ),
        "tensors": Param(
            str, None, "which tensors: names with *, separated by commas; by default all of the "
            "layers; the others keep the base's values",
        ),
    }  # fmt: skip

    def problem(self, settings: Settings, recipe: Recipe) -> str | None:
        """See `Guide.problem`."""
        return problem_of(recipe)

    def needs(self, settings: Settings) -> Needs:
        return Needs(data=True)

    def run(self, ask: Ask) -> Guided:
        given = {name: value for name, value in vars(ask.settings).items() if name != "tensors"}
        return guided_by_masks(self, ask, MaskSettings(**given))

    @classmethod
    def describe(cls) -> str:
        return (
            "S_i: logits over tau_i = expert_i - base, +bias where |tau_i| is in the top density "
            "over all tensors together, else -bias.\n"
            "Each epoch: S <- S - lr dL/dS - l1 sigmoid'(S), L the mean loss of a prediction of "
            "base + sigmoid(S) tau on the expert's examples.\n"
            "Mask m_i = [S_i > 0]; the merge: base + sum_i m_i tau_i / max(1, sum_i m_i)."
        )
