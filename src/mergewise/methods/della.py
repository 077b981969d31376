"""DELLA: drop at random, small changes more likely than large ones."""

from __future__ import annotations

from mergewise.methods._delta import SIGN, DeltaMethod, delta_params
from mergewise.methods._select import RankedChance

_SOURCE = "DELLA-Merging (Deep, Bhardwaj and Poria 2024, arXiv 2406.11617)"
_VARIANT = "mergekit: rescaled to the L1 norm; the paper's 1/probability is rescale_by: density"


class Della(DeltaMethod):
    """Magnitude-ranked random sparsification, then TIES' sign election and average."""

    name = "della"
    summary = "keeps larger changes with higher probability, elects a sign, averages who agrees"
    advice = (
        "As dare_ties, but large changes are more likely to stay. It needs density and epsilon to "
        "fit together, and more time than dare for its ranks; lambda 0.5 to 0.7 was best for most "
        "of the lab's experts, and at 1 five language experts came out worse than their base."
    )
    formula = "as ties, m_i ~ Bernoulli(density - eps + 2 eps rank/(columns - 1)), ranks by row"
    source = _SOURCE
    variant = _VARIANT
    params = delta_params(normalize=True, rescale=True, **RankedChance.params, sign=SIGN)
    selection = RankedChance()
    consensus = True
    random = True
    symmetric = False  # each place in the list has its own random mask
    example = """
merge_method: della
base_model: base
models:
  - model: expert_a
    parameters: {weight: 0.5, density: 0.5, epsilon: 0.1}
  - model: expert_b
    parameters: {weight: 0.5, density: 0.5, epsilon: 0.1}
"""


class DellaLinear(DeltaMethod):
    """Magnitude-ranked random sparsification, then the weighted sum."""

    name = "della_linear"
    summary = "keeps larger changes with higher probability, rescaled, and adds them"
    advice = (
        "As dare_linear, but large changes are more likely to stay. It needs density and "
        "epsilon to fit together, and more time than dare for its ranks."
    )
    formula = "b + lambda sum_i w_i f_i m_i d_i, m_i as in della"
    source = _SOURCE
    variant = _VARIANT
    params = delta_params(normalize=False, rescale=True, **RankedChance.params)
    selection = RankedChance()
    random = True
    symmetric = False  # each place in the list has its own random mask
    example = Della.example.replace("merge_method: della", "merge_method: della_linear")
