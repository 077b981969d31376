"""The random masks: uniform, independent, and decided by seed, tensor, expert and position."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch

from mergewise import merge_state_dicts
from mergewise.engine._block import Keys
from mergewise.engine._random import hash_positions, uniform

N = 200_000


def noise(seed: int = 0, tensor: str = "model.layers.0.w", expert: int = 0, n: int = N) -> Any:
    keys = Keys.of(seed, tensor, expert + 1)
    return uniform(hash_positions(torch.arange(n), keys.tensor, keys.noise[expert]))


def test_uniform() -> None:
    """Chi-square over 256 bins: 255 degrees of freedom, standard deviation 22.6."""
    for seed in range(5):
        x = noise(seed)
        assert x.min() >= 0 and x.max() < 1
        counts = torch.histc(x, 256, 0, 1)
        expected = N / 256
        assert abs(float(((counts - expected) ** 2 / expected).sum()) - 255) < 6 * 22.6


def test_streams_are_independent() -> None:
    """Between seeds, tensors and experts, and between neighbours in one stream."""
    streams = [
        noise(0), noise(1), noise(2), noise(0, "model.layers.1.w"), noise(0, "model.layers.2.w"),
        noise(0, expert=1), noise(0, expert=2), noise(0, "x", 1),
    ]  # fmt: skip
    first = noise(0, n=N + 2000)
    streams += [first[lag : lag + N] for lag in (1, 2, 64, 1024)]
    for one, other in combinations(streams, 2):
        correlation = float(torch.corrcoef(torch.stack([one, other]))[0, 1])
        assert abs(correlation) < 6 / N**0.5
        both = float(((one < 0.1) & (other < 0.1)).float().mean())
        assert abs(both - 0.01) < 6 * (0.01 / N) ** 0.5


def test_beyond_four_thousand_million_elements() -> None:
    """The position's upper half counts too."""
    at = torch.arange(1000)
    near, far = (hash_positions(at + offset, 1, 2) for offset in (0, 1 << 32))
    assert int((near == far).sum()) < 3


def kept(base: Any, experts: Any, seed: int, density: float = 0.3) -> Any:
    parameters = {"weight": [1.0, 2.0], "density": density, "rescale": False}
    out = merge_state_dicts(
        experts, "dare_linear", base=base, parameters=parameters, seed=seed, block_size=10_000
    )
    return {name: (t.long() & 1 > 0, t.long() & 2 > 0) for name, t in out.items()}


def test_masks_of_a_merge() -> None:
    """Two experts whose weights mark their bits show which elements were kept."""
    base = {name: torch.zeros(N // 2) for name in ("a", "b")}
    experts = [{name: torch.ones(N // 2) for name in base}] * 2
    masks = kept(base, experts, 1)
    every = [mask.float() for pair in masks.values() for mask in pair]
    every += [mask.float() for pair in kept(base, experts, 2).values() for mask in pair]
    for mask in every:
        assert abs(float(mask.mean()) - 0.3) < 6 * (0.21 / (N / 2)) ** 0.5
    for one, other in combinations(every, 2):
        assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 6 / (N / 2) ** 0.5
    again = kept(base, experts, 1)
    assert all(torch.equal(a, b) for n in masks for a, b in zip(masks[n], again[n], strict=True))


def test_a_mask_depends_on_the_place_of_its_expert_only() -> None:
    """Not on how many experts there are, nor on their values."""
    base = {"w": torch.zeros(1000)}
    one = {"w": torch.ones(1000)}
    parameters = {"density": 0.5, "rescale": False, "weight": 1.0}
    alone = merge_state_dicts([one], "dare_linear", base=base, parameters=parameters)
    more = merge_state_dicts([one, base], "dare_linear", base=base, parameters=parameters)
    assert torch.equal(alone["w"], more["w"])
