"""Model Breadcrumbs: drop the smallest and the very largest changes."""

from __future__ import annotations

from mergewise.methods._delta import SIGN, DeltaMethod, delta_params
from mergewise.methods._select import Middle

_SOURCE = "Model Breadcrumbs (Davari and Belilovsky 2023, arXiv 2312.06795)"
_VARIANT = "mergekit: thresholds per tensor; the authors select by row (granularity: row)"


class Breadcrumbs(DeltaMethod):
    """The middle of each task vector's magnitudes, summed."""

    name = "breadcrumbs"
    summary = "drops each task vector's outliers and smallest elements, and adds the rest"
    advice = (
        "When a few outlying changes dominate an expert, besides many small ones. The share "
        "of outliers (gamma) is small; what it drops may also be what matters most."
    )
    formula = "b + lambda sum_i w_i m_i d_i, m_i = the density_i n largest below the gamma_i n top"
    source = _SOURCE
    variant = _VARIANT
    params = delta_params(normalize=False, rescale=False, **Middle.params)
    selection = Middle()
    example = """
merge_method: breadcrumbs
base_model: base
models:
  - model: expert_a
    parameters: {weight: 0.5, density: 0.9, gamma: 0.01}
  - model: expert_b
    parameters: {weight: 0.5, density: 0.9, gamma: 0.01}
"""


class BreadcrumbsTies(DeltaMethod):
    """The middle of each task vector's magnitudes, then TIES' sign election and sum."""

    name = "breadcrumbs_ties"
    summary = "breadcrumbs, summing only elements of the majority's sign"
    advice = (
        "Breadcrumbs with the election of signs of ties, for experts that disagree. Two "
        "sparsities to be chosen, best on held-out data."
    )
    formula = "as breadcrumbs, over the elements of the majority's sign"
    source = _SOURCE
    variant = _VARIANT
    params = delta_params(normalize=False, rescale=False, **Middle.params, sign=SIGN)
    selection = Middle()
    consensus = True
    example = Breadcrumbs.example.replace("breadcrumbs", "breadcrumbs_ties")
