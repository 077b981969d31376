"""LoRA-LEGO's clustered units, and how far adapters overlap."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_adapters import dense, lora
from small_models import State, llama_shapes, random_state

from mergewise.errors import IncompatibleModelsError
from mergewise.forms import adapter_overlap, merge_adapters
from mergewise.forms._units import clustered, merged_units

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
BASE = random_state(llama_shapes(), 0, torch.float32)
Pair = tuple[torch.Tensor, torch.Tensor]


def pair(rank: int, seed: int) -> Pair:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(5, rank, generator=draw), torch.randn(rank, 7, generator=draw)


def product(factors: Pair) -> torch.Tensor:
    return factors[0] @ factors[1]


def test_as_many_clusters_as_units_are_the_sum() -> None:
    pairs = [pair(3, 0), pair(2, 1)]
    wanted = product(pairs[0]) + product(pairs[1])
    torch.testing.assert_close(product(merged_units(pairs, 5, "parameter", 0)), wanted)
    # 2.5 ranks each on average, 5 now
    both = product(merged_units(pairs, 9, "both", 0))
    torch.testing.assert_close(both, wanted * 0.5**0.5)


@pytest.mark.parametrize("count", [1, 2])
def test_the_scaling_of_the_output_is_that_of_other_code(count: int) -> None:
    """`LoRA_LEGO` of wonyoung01/nsc_merging 412098b, without its scaling of parameters."""
    golden = Path(__file__).resolve().parents[1] / "golden/lora-units.json"

    def draw(seed: int, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    pairs = []
    for i in range(3):  # copies of two units far apart, in one of them in the other order
        a, b = draw(0, 2, 7) + 0.05 * draw(10 + i, 2, 7), draw(1, 2, 5) + 0.05 * draw(20 + i, 2, 5)
        pairs.append((b.flip(0).mT, a.flip(0)) if i == 1 else (b.mT, a))
    wanted = torch.tensor(json.loads(golden.read_text())[str(count)]).reshape(5, 7)
    got = product(merged_units(pairs, count, "output", 0))
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reweight", ["both", "none"])
def test_equal_adapters_are_that_adapter(reweight: str) -> None:
    one = pair(4, 0)
    made = merged_units([one, one, one], 4, reweight, 0)  # type: ignore[arg-type]
    torch.testing.assert_close(product(made), product(one), rtol=1e-4, atol=1e-5)


def test_the_order_of_ranks_and_adapters_is_immaterial() -> None:
    one, two = pair(4, 0), pair(3, 1)
    turned = [2, 0, 3, 1]
    shuffled = (one[0][:, turned], one[1][turned])
    made = product(merged_units([one, two], 3, "both", 0))
    torch.testing.assert_close(product(merged_units([two, shuffled], 3, "both", 0)), made)
    assert torch.equal(product(merged_units([one, two], 3, "both", 0)), made)


def test_clusters_are_found_and_centroids_have_their_members_norm() -> None:
    draw = torch.Generator().manual_seed(0)
    centres = 10 * torch.randn(3, 8, generator=draw, dtype=torch.float64)
    units = (centres[:, None] + torch.randn(3, 6, 8, generator=draw, dtype=torch.float64)).flatten(
        0, 1
    )
    labels = clustered(units, 3, 0).reshape(3, 6)
    assert sorted(labels[:, 0].tolist()) == [0, 1, 2]
    assert (labels == labels[:, :1]).all()
    b, a = merged_units([(torch.tensor([[3.0], [0]]), torch.tensor([[4.0, 0]])),
                         (torch.tensor([[0], [3.0]]), torch.tensor([[4.0, 0]]))],
                        1, "parameter", 0)  # fmt: skip
    unit = torch.cat([a[0], b[:, 0]])
    torch.testing.assert_close(unit.norm(), torch.tensor(5.0))
    torch.testing.assert_close(unit[2], unit[3])


def test_zero_units_and_units_that_cancel() -> None:
    zero = (torch.zeros(5, 2), torch.zeros(2, 7))
    assert merged_units([zero, zero], 2, "both", 0)[1].shape == (0, 7)
    one = pair(2, 0)
    opposite = (-one[0], -one[1])
    for made in merged_units([one, opposite, zero], 1, "both", 0):
        assert torch.isfinite(made).all()


def delta(adapter: Path) -> State:
    return {n: t - BASE[n].double() for n, t in dense(BASE, adapter).items()}


def test_adapters_of_unequal_ranks_and_modules(tmp_path: Path) -> None:
    a = lora(tmp_path / "a", BASE, [Q, DOWN], rank=3, alpha=6, seed=1)
    b = lora(tmp_path / "b", BASE, [Q], rank=2, seed=2)
    made = merge_adapters([a, b], tmp_path / "out", space="units", rank=4)
    assert {layer.name: layer.rank for layer in made.layers} == {
        f"{Q}.weight": 4,
        f"{DOWN}.weight": 3,
    }
    merge_adapters([a, b], tmp_path / "all", space="units", rank=5, reweight="none")
    one, two, both = delta(a), delta(b), delta(tmp_path / "all")
    for name in both:
        torch.testing.assert_close(both[name], one[name] + two[name], rtol=1e-4, atol=1e-5)


def test_overlap_is_zero_for_orthogonal_and_largest_for_equal_ones(tmp_path: Path) -> None:
    a = lora(tmp_path / "a", BASE, [Q, DOWN], rank=3, seed=1)
    b = lora(tmp_path / "b", BASE, [Q], rank=2, seed=2)
    found = adapter_overlap([a, b, a])
    assert [(one.module, one.first, one.second) for one in found] == [
        (Q, 0, 1), (Q, 0, 2), (Q, 1, 2), (DOWN, 0, 2)
    ]  # fmt: skip
    assert found[1].inputs > found[0].inputs > 0
    from mergewise.forms.adapter_overlap import _cosine

    basis = torch.linalg.qr(torch.randn(6, 6))[0]
    assert _cosine(basis[:2], basis[2:5]) < 1e-6
    assert _cosine(basis[:4], basis[:4]) == pytest.approx(0.5, abs=1e-6)
    wide = lora(tmp_path / "w", BASE | {f"{Q}.weight": torch.zeros(16, 20)}, [Q])
    with pytest.raises(IncompatibleModelsError, match="different shapes"):
        adapter_overlap([a, wide])
