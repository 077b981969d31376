"""`factors`: what holds for every method of task vectors that takes them."""

from __future__ import annotations

import pytest
import torch

from mergewise import merge_state_dicts
from mergewise.methods import all_methods

METHODS = sorted(name for name, method in all_methods().items() if "factors" in method.params)
SHAPE = (6, 8)


def merged(name, factors=None, weights=(0.5, 0.25), seed=0):
    draw = torch.Generator().manual_seed(seed)
    base, *experts = ({"w": torch.randn(SHAPE, generator=draw)} for _ in range(3))
    more = {} if factors is None else {
        "evidence": [{"factor": {"w": factor}} for factor in factors]
    }  # fmt: skip
    parameters = {"weight": list(weights), "normalize": False, "factors": factors is not None}
    if "density" in all_methods()[name].params:
        parameters["density"] = 0.5
    return merge_state_dicts(experts, name, base=base, parameters=parameters, **more)["w"]


@pytest.mark.parametrize("name", METHODS)
def test_factors_that_are_all_alike_are_a_weight(name):
    alike = [torch.full((1, 1), 1.5), torch.full((6, 1), 3.0)]
    assert torch.allclose(merged(name, alike), merged(name, weights=(0.75, 0.75)), atol=1e-6)
    assert not torch.allclose(merged(name, alike), merged(name), atol=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_each_row_has_its_own(name):
    """Where selection does not depend on factors, rows are merged as with that weight alone."""
    rows = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5, 1.0])[:, None]
    found = merged(name, [rows, rows])
    for i, factor in enumerate(rows.flatten().tolist()):
        alone = merged(name, weights=(0.5 * factor, 0.25 * factor))
        assert torch.allclose(found[i], alone[i], atol=1e-6)


def test_they_are_not_read_beside_a_score_of_evidence():
    with pytest.raises(Exception, match="would both read evidence"):
        merge_state_dicts(
            [{"w": torch.ones(SHAPE)}], "ties", base={"w": torch.zeros(SHAPE)},
            parameters={"weight": 1.0, "factors": True, "score": "fisher"},
            evidence=[{"factor": {"w": torch.ones(1, 1)}, "fisher": {"w": torch.ones(SHAPE)}}],
        )  # fmt: skip
