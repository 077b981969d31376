"""DARE: drop task-vector elements at random, and rescale."""

from __future__ import annotations

from mergewise.methods._delta import SIGN, DeltaMethod, delta_params
from mergewise.methods._select import Chance

_SOURCE = "DARE, Language Models are Super Mario (Yu et al. 2023, arXiv 2311.03099)"
_VARIANT = "mergekit: rescaled to the L1 norm; the paper's 1/density is rescale_by: density"


class DareLinear(DeltaMethod):
    """Random sparsification, then the weighted sum."""

    name = "dare_linear"
    summary = "keeps random elements of each task vector, rescaled, and adds them"
    advice = (
        "For experts whose changes are small and redundant, as of instruction tuning. Random: "
        "another seed gives another model, and at low densities the noise can cost more than "
        "the overlap did."
    )
    formula = "b + lambda sum_i w_i f_i m_i d_i, m_i ~ Bernoulli(density_i), f_i by rescale_by"
    source = _SOURCE
    variant = _VARIANT
    params = delta_params(normalize=False, rescale=True, **Chance.params)
    selection = Chance()
    random = True
    copies = 4
    symmetric = False  # each place in the list has its own random mask
    example = """
merge_method: dare_linear
base_model: base
models:
  - model: expert_a
    parameters: {weight: 0.5, density: 0.5}
  - model: expert_b
    parameters: {weight: 0.5, density: 0.5}
"""


class DareTies(DeltaMethod):
    """Random sparsification, then TIES' sign election and sum."""

    name = "dare_ties"
    summary = "keeps random elements of each task vector, rescaled, and sums the majority's sign"
    advice = (
        "Dare's random dropping in front of the election of signs of ties. At low densities "
        "the noise can cost more than the overlap did; compare with ties."
    )
    formula = "b + lambda sum_i w_i f_i m_i d_i over those of the majority's sign"
    source = _SOURCE
    variant = _VARIANT
    params = delta_params(normalize=False, rescale=True, **Chance.params, sign=SIGN)
    selection = Chance()
    consensus = True
    random = True
    copies = 4
    symmetric = False  # each place in the list has its own random mask
    example = DareLinear.example.replace("dare_linear", "dare_ties")
