"""Arithmetic with task vectors: worked examples of the papers, properties, degenerate input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from _driver import merge_tensor

from mergewise import merge_state_dicts
from mergewise.errors import MergewiseError
from mergewise.methods.fednova import effective_steps
from mergewise.methods.rotate import power


def tensor(values: Any) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float32)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def delta(method: str, *deltas: Any, **more: Any) -> torch.Tensor:
    """The merged task vector over a base of zeros."""
    given = [tensor(d) for d in deltas]
    return merge_tensor(given, method, torch.zeros_like(given[0]), **more)


def close(found: torch.Tensor, wanted: Any, within: float = 1e-5) -> None:
    torch.testing.assert_close(found, tensor(wanted), rtol=within, atol=within)


# --- add_perpendicular


def test_what_is_parallel_adds_nothing_and_what_is_perpendicular_all() -> None:
    close(delta("add_perpendicular", [1.0, 0], [3.0, 0]), [1.0, 0])
    close(delta("add_perpendicular", [1.0, 0], [0, 3.0], weight=[1.0, 0.5]), [1.0, 1.5])
    close(delta("add_perpendicular", [0.0, 0], [0, 3.0]), [0, 3.0])


def test_a_third_expert_adds_what_neither_of_the_first_two_said() -> None:
    found = delta("add_perpendicular", [1.0, 0, 0], [1.0, 1, 0], [5.0, 7, 2])
    close(found, [1.0, 1, 2])
    again = delta("add_perpendicular", [1.0, 0, 0], [1.0, 1e-9, 0], [5.0, 7, 2])
    close(again, [1.0, 7, 2])


# --- geometric_median


def test_one_stray_expert_does_not_pull_the_median() -> None:
    near = [random(5, 4, seed=i) * 0.01 for i in range(4)]
    found = merge_tensor([*near, torch.full((5, 4), 1e4)], "geometric_median")
    assert float(found.abs().max()) < 0.1
    mean = merge_tensor([*near, torch.full((5, 4), 1e4)], "linear", weight=1.0)
    assert float(mean.abs().min()) > 1e3


def test_the_median_of_a_triangle_is_its_fermat_point() -> None:
    # of an equilateral triangle its centre; where an angle exceeds 120 degrees that corner
    corners = [[0.0, 0], [2.0, 0], [1.0, 3**0.5]]
    close(merge_tensor([tensor(c) for c in corners], "geometric_median"), [1.0, 3**-0.5])
    flat = [[-3.0, 0.2], [0.0, 0], [3.0, 0.2]]
    found = merge_tensor([tensor(c) for c in flat], "geometric_median", max_iter=5000)
    close(found, [0.0, 0], within=1e-3)


def test_a_base_has_no_say_in_the_median_and_the_heavier_of_two_wins() -> None:
    experts = [random(3, 4, seed=i) for i in range(3)]
    plain = merge_tensor(experts, "geometric_median")
    close(merge_tensor(experts, "geometric_median", random(3, 4, seed=9)), plain)
    found = merge_tensor(experts[:2], "geometric_median", weight=[3.0, 1.0])
    close(found, experts[0], within=1e-3)


def test_a_median_of_whole_models_is_one_for_all_tensors() -> None:
    # each tensor alone would follow its two near models; together b and c outvote a
    models = [
        {"x": torch.full((1,), x), "y": torch.full((50,), y)}
        for x, y in ((0.0, 0.0), (0.1, 9.0), (5.0, 9.1))
    ]
    alone = merge_state_dicts(models, "geometric_median")
    whole = merge_state_dicts(models, "geometric_median", parameters={"granularity": "model"})
    joined = [torch.cat([m["x"], m["y"]]) for m in models]
    close(torch.cat([whole["x"], whole["y"]]), merge_tensor(joined, "geometric_median"), 1e-4)
    assert not torch.allclose(alone["x"], whole["x"], atol=1e-2)


# --- ext_sub


def test_ext_sub_as_worked_out() -> None:
    close(delta("ext_sub", [[1.0, 0]], [[0, 1.0]]), [[1.5, -0.5]])
    close(delta("ext_sub", [[1.0, 2]], [[1.0, 2]]), [[1.0, 2]])
    close(delta("ext_sub", [[1.0, 2]], [[0.0, 0]]), [[1.0, 2]])
    close(delta("ext_sub", [[0.0, 0]], [[1.0, 2]]), [[-1.0, -2]])
    close(delta("ext_sub", [[1.0, 0]], [[-2.0, 0]], alpha=0.5), [[2.0, 0]])
    assert torch.isfinite(delta("ext_sub", [[1.0, 1e-7]], [[-1.0, 0]])).all()


def test_a_row_is_an_output_however_it_is_stored() -> None:
    a, b = random(6, 4), random(6, 4, seed=1)
    straight = delta("ext_sub", a, b)
    close(delta("ext_sub", a.T, b.T, turned=True), straight.T)
    stack = [torch.stack([d, 2 * d]) for d in (a, b)]
    close(delta("ext_sub", *stack, kind="stack"), torch.stack([straight, 2 * straight]))


# --- fednova


def test_fednova_as_worked_out() -> None:
    # gradients 1 and 3, of 1 and 3 steps at 0.1: every step counts alike
    found = delta("fednova", [-0.1], [-0.9], steps=[1, 3])
    close(found, [-0.4])
    close(delta("linear", [-0.1], [-0.9], weight=1.0), [-0.5])
    close(delta("fednova", [-0.1], [-0.9], steps=7), [-0.5])
    close(delta("fednova", [-0.1], [-0.9], steps=[1, 3], weight=2.0), [-0.4])
    close(delta("fednova", [-0.1], [-0.9], steps=[1, 3], weight=2.0, normalize=False), [-1.6])


def test_the_steps_that_a_run_is_worth() -> None:
    assert effective_steps(2, 0.9, 0) == pytest.approx(2.9)
    assert effective_steps(3, 0.9, 0) == pytest.approx(5.61)
    assert effective_steps(3, 0, 0.1) == pytest.approx(1 + 0.9 + 0.81)
    assert effective_steps(5, 0, 0) == 5


def test_fednova_refuses_what_has_no_meaning() -> None:
    states = [{"x": torch.ones(2)}] * 2
    for wrong, message in (
        ({"weight": 0.0}, "all weights are 0"),
        ({"momentum": 0.9, "proximal": 0.1}, "leave one out"),
    ):
        with pytest.raises(MergewiseError, match=message):
            merge_state_dicts(states, "fednova", base=states[0], parameters={"steps": 1, **wrong})


# --- adamergex


def test_adamergex_multiplies() -> None:
    w, task, target, source = (random(3, 4, seed=i) for i in range(4))
    experts = [w * task, w * target, w * source]
    close(merge_tensor(experts, "adamergex"), w * task * target / source, 1e-4)
    same = [experts[0], experts[1], experts[1]]
    close(merge_tensor(same, "adamergex"), experts[0])
    close(merge_tensor(experts, "adamergex", lambda_=0.0), experts[0])


def test_quotients_of_nothing_stay_finite() -> None:
    rows = [tensor([2.0, 2.0, 2.0]), tensor([1.0, 0.0, 1e30]), tensor([0.0, 0.0, 1e-30])]
    close(merge_tensor(rows, "adamergex", limit=10.0), [2.0, 2.0, 20.0])


# --- rotate


@pytest.mark.parametrize("shape", [(5, 5), (9, 4), (4, 6), (4, 9), (1, 5), (5, 1)])
def test_rotation_ends(shape: tuple[int, int]) -> None:
    a, b = random(*shape), random(*shape, seed=1)

    def turned(**given: float) -> torch.Tensor:
        return merge_tensor([b], "rotate", a, **given)

    close(turned(alignment=0.0, alpha=0.0), a)
    close(turned(alignment=1.0, alpha=1.0), b, 1e-4)
    # turning keeps the rows' lengths and angles about their mean
    for alignment in (0.3, 1.0):
        found = turned(alignment=alignment)
        centred = [one - one.mean(0, keepdim=True) for one in (found, a)]
        close(centred[0] @ centred[0].T, centred[1] @ centred[1].T, 1e-4)


def test_a_model_that_was_only_turned_is_found_again() -> None:
    a = random(8, 5)
    q = torch.linalg.qr(random(5, 5, seed=3)).Q
    close(merge_tensor([a @ q], "rotate", a), a @ q, 1e-4)
    wide = random(3, 20)
    q = torch.linalg.qr(random(20, 20, seed=3)).Q
    close(merge_tensor([wide @ q], "rotate", wide, center=False), wide @ q, 1e-4)


def test_turning_part_of_the_way_adds_up() -> None:
    q = torch.linalg.qr(random(6, 6).double()).Q
    q = q if torch.linalg.det(q) > 0 else q.flip(0)
    close(power(q, 1.0).float(), q.float())
    close((power(q, 0.4) @ power(q, 0.6)).float(), q.float())
    for size in (2, 4):
        half = -torch.eye(size).double()
        root = power(half, 0.5)
        close((root @ root).float(), half.float())
        close((root @ root.T).float(), torch.eye(size))


def test_degenerate_matrices_are_turned_without_a_hitch() -> None:
    a, zero = random(4, 6), torch.zeros(4, 6)
    for alignment in (0.5, 1.0):
        for pair in ((a, zero), (zero, a), (zero, zero), (a, -a), (zero[:0], zero[:0])):
            found = merge_tensor([pair[1]], "rotate", pair[0], alignment=alignment, alpha=0.3)
            assert found.shape == pair[0].shape
            assert torch.isfinite(found).all()


# --- crossover, copy_region


def test_low_frequencies_of_one_high_ones_of_the_other() -> None:
    t = torch.arange(32) / 32 * 2 * torch.pi
    low, high = torch.cos(t), torch.cos(15 * t)
    close(merge_tensor([5 * low + 2 * high], "crossover", low + high, alpha=0.5), low + 2 * high)


def test_crossover_ends_and_mixture() -> None:
    a, b = random(6, 7), random(6, 7, seed=1)
    assert torch.equal(merge_tensor([b], "crossover", a, alpha=0.0), a)
    assert torch.equal(merge_tensor([b], "crossover", a, alpha=1.0), b)
    close(merge_tensor([b], "crossover", a, alpha=0.3, tilt=1.0), torch.lerp(a, b, 0.3))
    stack = [torch.stack([m, 2 * m]) for m in (a, b)]
    one = merge_tensor([b], "crossover", a, alpha=0.4)
    close(merge_tensor([stack[1]], "crossover", stack[0], alpha=0.4, kind="stack")[0], one)


def test_a_region_is_copied_bit_by_bit_and_runs_over_the_end() -> None:
    a, b = random(10, 3), random(10, 3, seed=1)
    found = merge_tensor([b], "copy_region", a, width=0.3, offset=0.8)
    theirs = [0, 8, 9]
    for row in range(10):
        assert torch.equal(found[row], (b if row in theirs else a)[row])
    turned = merge_tensor([b.T], "copy_region", a.T, width=0.3, offset=0.8, turned=True)
    assert torch.equal(turned, found.T)
    assert torch.equal(merge_tensor([b], "copy_region", a, width=1.0), b)
    assert torch.equal(merge_tensor([b], "copy_region", a, width=1.0, offset=0.4), b)
    assert torch.equal(merge_tensor([b], "copy_region", a, width=0.0, offset=0.4), a)
