"""What to try first, by situation; links are written as of the index of the methods' pages.

The words follow the methods' own advice and the results of the labs (`docs/results`), whose
families have five to eight experts of full fine-tuning.
"""

from __future__ import annotations

from collections.abc import Iterator

TITLE = "Where to start"

ABOUT = (
    "Measure before and after (`mergewise evaluate`): the labs' orders differ from family to "
    "family, and none of them is of your models. `linear` is the merge to beat. Where a method "
    "has a `lambda`, choose it on held-out data."
)

SITUATIONS = (
    (
        "two models of one base",
        "[`slerp`](slerp.md), at a position; [`nuslerp`](nuslerp.md), by weights, with or without "
        "the base",
        "on pairs of experts `nuslerp` with the base was ahead of `slerp` at default settings, "
        "and [`tsv_m`](tsv_m.md) or [`regmean`](regmean.md) first "
        "([digits](../results/digits-pairs.md), [vision](../results/vision-pairs.md), "
        "[text](../results/text-pairs.md), [language](../results/language-pairs.md)); a position "
        "for each layer is a "
        "[gradient](../guide.md#values-that-differ-from-tensor-to-tensor)",
    ),
    (
        "a base and one fine-tune of it, to be blended or softened",
        "[`linear`](linear.md) of the two ([WiSE-FT](../arithmetic.md#between-two-models-and-"
        "beyond))",
        "[`bcwi`](bcwi.md) if right answers must stay right and Fisher information can be "
        "collected",
    ),
    (
        "several full fine-tunes for different tasks, no data",
        "[`tsv_m`](tsv_m.md) at its defaults; [`task_arithmetic`](task_arithmetic.md) as the "
        "baseline",
        "at default settings `tsv_m` was first of those without data in the labs of "
        "[digits](../results/digits.md) and [vision](../results/vision.md); for "
        "[language](../results/language.md) [`iso_c`](iso_c.md) was, for "
        "[text](../results/text.md) [`optmerge`](optmerge.md)",
    ),
    (
        "the same, and unlabelled examples of each task",
        "[`regmean`](regmean.md), by the guide [calibrate](../guides.md#calibrate); "
        "[`mats`](mats.md) if gradients can be collected",
        "first for [language](../results/language.md), where 16 examples were enough (not "
        "so for [digits](../results/digits.md)), and "
        "`mats` for [vision](../results/vision.md) and [text](../results/text.md) (`regmean` "
        "was behind `tsv_m` there)",
    ),
    (
        "LoRA adapters of one base",
        "`mergewise lora merge`, exactly their "
        "[weighted sum](../guide.md#merging-adapters-into-an-adapter); "
        "[`core_space`](core_space.md) or [`knots`](knots.md)",
        "`mergewise lora overlap` says whether they interfere at all; no lab has adapters",
    ),
    (
        "many experts",
        "[`tsv_m`](tsv_m.md), [`iso_c`](iso_c.md); [`opcm`](opcm.md) if they come one by one",
        "sums of many task vectors go too far: lower `lambda` first with every method that starts "
        "from the sum, as its page says",
    ),
    (
        "a task to be forgotten, or a skill to be carried over",
        "[`task_arithmetic`](task_arithmetic.md) with a negative weight, or with another base: "
        "[recipes](../arithmetic.md); [`ext_sub`](ext_sub.md)",
        "`ext_sub` subtracts what an anti-expert alone knows",
    ),
    (
        "the checkpoints of one training run",
        "[`mergewise average`](../trajectories.md)",
        "equal weights, EMA, SWA, LAWA and others",
    ),
    (
        "several fine-tunings on the same data",
        "[`linear`](linear.md), [`model_stock`](model_stock.md)",
        "with a score on held-out data the guide [greedy_soup](../guides.md#greedy_soup) leaves "
        "out those that do harm; not `model_stock` for experts of different tasks",
    ),
    (
        "layers to be stacked, or parts to be copied",
        "[`passthrough`](passthrough.md) with [slices](../slices.md)",
        "what is stacked usually needs training afterwards",
    ),
)  # fmt: skip
"""What one has, what to try, and what else there is to know."""


def where_to_start() -> Iterator[str]:
    """The lines of the section."""
    yield from (
        "",
        f"## {TITLE}",
        "",
        ABOUT,
        "",
        "| you have | start with | and |",
        "|---|---|---|",
    )
    yield from (f"| {' | '.join(row)} |" for row in SITUATIONS)
    yield from (
        "",
        "Weights, densities and lambdas for each layer can be [measured](../guides.md) instead of "
        "guessed; whether that paid in the labs: [guided against uniform](../results/guides.md).",
    )
