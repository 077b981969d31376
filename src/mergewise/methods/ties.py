"""TIES: trim, elect sign, merge."""

from __future__ import annotations

from mergewise.methods._delta import SIGN, DeltaMethod, delta_params
from mergewise.methods._select import Largest


class Ties(DeltaMethod):
    """Keep each task vector's largest elements, then average those of the majority's sign."""

    name = "ties"
    summary = "trims task vectors to their largest elements, elects a sign, averages who agrees"
    advice = (
        "For several experts whose changes disagree in sign. As published it keeps a fifth of "
        "each task vector (density 0.2); mergekit's default of 1 trims nothing."
    )
    formula = "b + lambda sum_i w_i m_i d_i / sum_i w_i m_i, m_i = kept and of the majority's sign"
    source = "TIES-Merging (Yadav et al. 2023, arXiv 2306.01708)"
    variant = (
        "mergekit: trimmed per tensor, exactly k elements, sign of the weighted sum. As published: "
        "granularity: model, density: 0.2, weight: 1 (the authors' code keeps one element more, "
        "and gives sums of exactly 0 the sign of most elements, where they are + here)"
    )
    params = delta_params(normalize=True, rescale=False, **Largest.params, sign=SIGN)
    selection = Largest()
    consensus = True
    example = """
merge_method: ties
base_model: base
models:
  - model: expert_a
    parameters: {weight: 1.0, density: 0.5}
  - model: expert_b
    parameters: {weight: 1.0, density: 0.5}
"""
