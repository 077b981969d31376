"""EMR, LoTA, WIDEN, PCB, sparse soups: the papers' worked examples and properties."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from _driver import merge_tensor

from mergewise import merge_state_dicts
from mergewise.errors import MergewiseError
from mergewise.methods.emr import emr_mask, emr_rescaler


def t(*values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def delta(method: str, *deltas: torch.Tensor, **more: Any) -> torch.Tensor:
    """The merged task vector over a base of zeros."""
    return merge_tensor(list(deltas), method, torch.zeros_like(deltas[0]), **more)


ONE = {"lambda_": 1.0}
EMR = [
    ([t(1, -2, 3), t(3, 1, -1)], t(3, -2, 3), [[1, 1, 1], [1, 0, 0]], [0.75, 5 / 3]),
    ([t(1, -2, 3), t(2, 1, -1)], t(2, -2, 3), [[1, 1, 1], [1, 0, 0]], [6 / 7, 2.0]),
]


@pytest.mark.parametrize(("tasks", "unified", "masks", "rescalers"), EMR)
def test_emr_unifies_and_its_tasks_come_back(
    tasks: list[torch.Tensor], unified: torch.Tensor, masks: Any, rescalers: list[float]
) -> None:
    assert torch.equal(delta("emr", *tasks), unified)
    for task, mask, factor in zip(tasks, masks, rescalers, strict=True):
        assert emr_mask(task, unified).long().tolist() == mask
        assert emr_rescaler([task], [unified]) == pytest.approx(factor)


def test_emr_of_one_task_is_that_task() -> None:
    task = t(1, -2, 0, 3)
    assert torch.equal(delta("emr", task), task)
    assert emr_rescaler([task], [task]) == 1
    assert emr_rescaler([0 * task], [0 * task]) == 1


def test_emr_where_changes_cancel_the_sign_is_minus() -> None:
    assert delta("emr", t(2), t(-2)).item() == -2


def test_emr_rescaler_of_the_code_counts_tensors_alike() -> None:
    tasks, unified = [t(1, 1, 1, 1), t(4)], [t(2, 2, 2, 2), t(4)]
    assert emr_rescaler(tasks, unified) == pytest.approx(8 / 12)
    assert emr_rescaler(tasks, unified, over="tensors") == pytest.approx(5 / 6)
    with pytest.raises(MergewiseError, match="rows"):
        emr_rescaler(tasks, unified, over="rows")


def test_lota_adds_what_does_not_overlap_exactly() -> None:
    tasks = [t(5, 0.1, 0.2, 0, 0, 4), t(0.1, 3, 0, -2, 0.1, 0)]
    for overlap in ("sum", "mean", "first"):
        got = delta("lota", *tasks, density=0.34, overlap=overlap, tensors="all")
        assert got.tolist() == [5, 3, 0, -2, 0, 4]


@pytest.mark.parametrize(("overlap", "shared"), [("sum", 4.0), ("mean", 2.0), ("first", 5.0)])
def test_lota_where_masks_overlap(overlap: str, shared: float) -> None:
    tasks = t(5, 3, 0.1), t(-1, 0, 0.1)
    got = delta("lota", *tasks, density=[0.67, 0.34], overlap=overlap, tensors="all")
    assert got.tolist() == [shared, 3, 0]


def test_lota_selects_over_the_whole_model() -> None:
    base = {"a": torch.zeros(4), "b": torch.zeros(6)}
    expert = {"a": t(1, 2, 3, 4), "b": t(5, 6, 7, 8, 9, 10)}
    given = {"density": 0.3, "tensors": "all"}
    merged = merge_state_dicts([expert], "lota", base=base, parameters=given)
    assert torch.equal(merged["a"], torch.zeros(4))
    assert merged["b"].tolist() == [0, 0, 0, 8, 9, 10]


def test_lota_by_the_mean_is_localize_and_stitch() -> None:
    tasks = torch.randn(3, 200, generator=torch.Generator().manual_seed(4))
    more = {"density": 0.2, "granularity": "tensor", "tensors": "all"}
    averaged = delta("lota", *tasks, overlap="mean", **more)
    torch.testing.assert_close(averaged, delta("localize_and_stitch", *tasks, **more))


def test_sce_of_everything_without_conflicts_is_varm() -> None:
    # VaRM: shares of the mean squares, here 1 and 9
    one, two = t(1, -1, 1, 1), t(3, -3, 3, 3)
    torch.testing.assert_close(delta("sce", one, two), 0.1 * one + 0.9 * two)


PRUNED = [t(1, 0, 3, 0), t(3, 0, 1, 0)]


def test_a_sparse_soup_is_as_sparse_as_its_ingredients() -> None:
    assert merge_tensor(PRUNED, "sparse_soup").tolist() == [2, 0, 2, 0]
    assert merge_tensor(PRUNED, "sparse_soup", weight=[3.0, 1.0]).tolist() == [1.5, 0, 2.5, 0]


def test_a_sparse_soup_of_other_masks_is_refused_unless_told() -> None:
    models = [PRUNED[0], t(0, 2, 1, 0)]
    with pytest.raises(MergewiseError, match="2 of 4 elements"):
        merge_tensor(models, "sparse_soup")
    for masks, expected in (
        ("shared", [0, 0, 2, 0]),
        ("first", [0.5, 0, 2, 0]),
        ("union", [0.5, 1, 2, 0]),
    ):
        assert merge_tensor(models, "sparse_soup", masks=masks).tolist() == expected
    with pytest.raises(MergewiseError, match="tensor w: 2 of 4"):
        merge_state_dicts([{"w": m} for m in models], "sparse_soup")


def test_widen_of_one_expert_is_that_expert() -> None:
    base, expert = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(merge_tensor([expert], "widen", base), expert)


def test_widen_by_hand() -> None:
    # ranks of sizes (.5, 0), (0, .5); directions did not move: ranks by index 0, .5 in the code
    base, one, two = torch.eye(2), t([2, 0], [0, 1]), t([1, 0], [0, 3])
    code = merge_tensor([one, two], "widen", base, equal="index")
    torch.testing.assert_close(code, t([1.75, 0], [0, 3]))
    twice = merge_tensor([one, one], "widen", base, equal="index")
    torch.testing.assert_close(twice, t([2.5, 0], [0, 1]))
    # equal ranks: directions weigh a half each, in both columns
    fair = merge_tensor([one, two], "widen", base)
    torch.testing.assert_close(fair, t([1.75, 0], [0, 2.5]))


def test_widen_does_not_depend_on_the_order_of_columns() -> None:
    draw = torch.Generator().manual_seed(1)
    base = torch.randn(4, 6, generator=draw)
    experts = [base + torch.randn(4, 6, generator=draw) for _ in range(2)]
    experts[0][:, 1:4] = base[:, 1:4]
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    merged = merge_tensor(experts, "widen", base)
    turned = merge_tensor([e[:, order] for e in experts], "widen", base[:, order])
    torch.testing.assert_close(turned, merged[:, order])


def test_widen_takes_embeddings_by_token_and_turned_weights_as_they_are() -> None:
    draw = torch.Generator().manual_seed(2)
    base, *experts = torch.randn(3, 4, 6, generator=draw)
    plain = merge_tensor(experts, "widen", base)
    across = [e.mT.contiguous() for e in experts]
    for more in ({"kind": "embedding"}, {"turned": True}):
        got = merge_tensor(across, "widen", base.mT.contiguous(), **more)
        torch.testing.assert_close(got, plain.mT)


def test_widen_survives_columns_of_zeros() -> None:
    base = t([0, 0, 1], [0, 0, 1])
    experts = [t([1, 0, 1], [1, 0, 1]), t([0, 0, 2], [0, 0, 2])]
    assert torch.isfinite(merge_tensor(experts, "widen", base)).all()


def test_widen_weighs_vectors_element_by_element() -> None:
    # changes (1, 3) and (2, 0): above their means 2 and 1 are the 3 and the 2
    got = delta("widen", t(1, 3), t(2, 0))
    share = torch.softmax(t(1, 2), 0)[0].item()
    other = torch.softmax(t(3, 0), 0)[1].item()
    torch.testing.assert_close(got, t(share * 1 + 2, 3 + other * 0))
    assert delta("widen", t(1, 3), t(2, 0), otherwise="mean").tolist() == [1.5, 1.5]


PCB = {"density": 0.5, "clip": 0.0, "lambda_": 1.0}


def test_pcb_by_hand() -> None:
    one = t(3, -1, 0.5, 0.1)
    for merge in (delta, in_engine):
        got = merge("pcb", one, t(-2, -2, 0.4, 0.3), **PCB)
        torch.testing.assert_close(got, t(3, -2, 0, 0))
        got = merge("pcb", one, t(2, 1, -0.4, 0.3), **PCB)
        torch.testing.assert_close(got, t(2.5, 0, 0, 0))


def in_engine(method: str, *deltas: torch.Tensor, **more: Any) -> torch.Tensor:
    """In two tensors of a model that share their thresholds."""
    given = {name.removesuffix("_"): value for name, value in more.items()}
    base = {"a": torch.zeros(1), "b": torch.zeros(len(deltas[0]) - 1)}
    experts = [{"a": d[:1], "b": d[1:]} for d in deltas]
    merged = merge_state_dicts(experts, method, base=base, parameters=given)
    return torch.cat([merged["a"], merged["b"]])


def naive_pcb(tasks: torch.Tensor, density: float, clip: float, inter: str) -> torch.Tensor:
    """Whole rows, sorted; after the formula of the specification."""
    n, d = tasks.shape
    order = tasks.abs().sort(dim=1).values
    low, high = order[:, int(d * clip)], order[:, int(d * (1 - clip) - 1)]
    sizes = torch.minimum(torch.maximum(tasks.abs(), low[:, None]), high[:, None])
    place = (sizes - low[:, None]) / (high - low)[:, None]
    signed = tasks.sign() * place
    agreement = {
        "sum": (tasks * tasks.sum(0)).tanh(),
        "normalized": (tasks * signed.sum(0)).tanh(),
        "pairs": (signed[:, None] * signed[None]).tanh().sum(1),
    }[inter]
    balance = torch.exp(n * place**2) * agreement
    least = balance.sort(dim=1).values[:, int(d * (1 - density))][:, None]
    share = (balance.clamp(min=least) - least) / (balance.amax(1, keepdim=True) - least)
    return (tasks.sign() * sizes * share).sum(0) / share.sum(0).clamp(min=1e-12)


@pytest.mark.parametrize("inter", ["sum", "normalized", "pairs"])
@pytest.mark.parametrize(("density", "clip"), [(0.1, 0.01), (0.3, 0.0)])
def test_pcb_over_the_whole_model_is_as_with_sorted_rows(
    inter: str, density: float, clip: float
) -> None:
    tasks = torch.randn(3, 500, generator=torch.Generator().manual_seed(3))
    more = {"density": density, "clip": clip, "inter": inter, **ONE}
    expected = naive_pcb(tasks, density, clip, inter)
    torch.testing.assert_close(in_engine("pcb", *tasks, **more), expected, rtol=1e-4, atol=1e-6)
    assert 0 < (expected != 0).sum() <= 3 * density * 500


def test_pcb_where_all_is_equal_or_one_element() -> None:
    assert delta("pcb", t(2, 2, -2), **ONE).tolist() == [2, 2, -2]
    assert delta("pcb", t(2), **ONE).tolist() == [2]
    assert delta("pcb", t(0, 0), t(1, 0)).isfinite().all()
    task = torch.tensor([0.3, -0.3, 0.3], dtype=torch.float64)
    merged = merge_state_dicts(
        [{"w": task}], "pcb", base={"w": 0 * task}, parameters={"lambda": 1.0}
    )
    torch.testing.assert_close(merged["w"], task)
