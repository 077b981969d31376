"""Which row stands where: the maps against a naive loop, and tensors read through them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mergewise.engine._rows import RowsSource
from mergewise.engine._schedule import Scheduler
from mergewise.engine._sources import TensorSource
from mergewise.vocabulary import Party, TokenSource, map_rows

WIDTH = 12  # above what is picked from planes; the other axis is picked


@st.composite
def meetings(draw: st.DrawFn) -> tuple[list[Party], dict[str, int], int, int | None]:
    """Models with tokens from one small alphabet at any ids, an output, its size, a base."""
    parties = []
    for _ in range(draw(st.integers(1, 4))):
        tokens = draw(st.lists(st.sampled_from("abcdefghij"), unique=True, max_size=8))
        rows = len(tokens) + draw(st.integers(1, 4))
        ids = draw(st.permutations(range(rows)))
        parties.append(Party(dict(zip(tokens, ids, strict=False)), rows))
    wanted = draw(st.lists(st.sampled_from("abcdefghijkl"), unique=True, max_size=12))
    count = len(wanted) + draw(st.integers(1, 4))
    places = draw(st.permutations(range(count)))
    base = draw(st.none() | st.integers(0, len(parties) - 1))
    return parties, dict(zip(wanted, places, strict=False)), count, base


def sources(
    draw: st.DataObject, parties: Sequence[Party], output: Mapping[str, int]
) -> dict[str, TokenSource]:
    found = {}
    for token in output:
        kind = draw.draw(st.sampled_from(["rule", "rule", "zero", "model", "plain"]))
        force = draw.draw(st.booleans())
        if kind == "zero":
            found[token] = TokenSource(zero=True, force=force)
        elif kind == "model":
            number = draw.draw(st.integers(0, len(parties) - 1))
            row = draw.draw(st.integers(0, parties[number].rows - 1))
            found[token] = TokenSource(number, row, force=force)
        elif kind == "plain":
            found[token] = TokenSource(force=force)
    return found


def naive(
    parties: Sequence[Party],
    matrices: Sequence[Tensor],
    output: Mapping[str, int],
    count: int,
    base: int | None,
    listed: Mapping[str, TokenSource],
) -> list[Tensor]:
    """The same rules, row by row."""
    results = [torch.full((count, WIDTH), float("nan")) for _ in parties]

    def rule(rows: Sequence[Tensor | None]) -> Tensor | None:
        having = [row for row in rows if row is not None]
        if len(having) > 1 and base is not None and rows[base] is not None:
            return rows[base]
        return torch.stack(having).mean(0) if having else None

    for token, place in output.items():
        own = [m[p.tokens[token]] if token in p.tokens else None
               for p, m in zip(parties, matrices, strict=True)]  # fmt: skip
        source = listed.get(token, TokenSource())
        fill = rule(own)
        fill = torch.zeros(WIDTH) if fill is None or source.zero else fill
        if source.model is not None:
            fill = matrices[source.model][source.row]
        for result, row in zip(results, own, strict=True):
            result[place] = fill if row is None or source.force else row
    top = max(output.values(), default=-1) + 1
    empty = [place for place in range(count) if place not in output.values()]
    for place in empty:
        rows = [m[place] if place < p.rows and place not in p.tokens.values() else None
                for p, m in zip(parties, matrices, strict=True)]  # fmt: skip
        fill = rule(rows)
        for result, row in zip(results, rows, strict=True):
            if row is not None or fill is not None:
                result[place] = row if row is not None else fill
    for result in results:
        lacks = torch.isnan(result[:, 0])
        known = result[:top].nan_to_num(0.0)
        result[lacks] = known.double().sum(0).div(max(1, top)).float()
    return results


@settings(max_examples=150, deadline=None)
@given(meetings(), st.data())
def test_every_row_is_what_the_rules_say(
    meeting: tuple[list[Party], dict[str, int], int, int | None], data: st.DataObject
) -> None:
    parties, output, count, base = meeting
    listed = sources(data, parties, output)
    draw = torch.Generator().manual_seed(1)
    matrices = [torch.randn(p.rows, WIDTH, generator=draw) for p in parties]
    wanted = naive(parties, matrices, output, count, base, listed)
    maps = map_rows(output, count, parties, base, listed)
    cuts = sorted(data.draw(st.sets(st.integers(1, count * WIDTH - 1), max_size=4)))
    for number, rows in enumerate(maps):
        for axis in (0, 1):
            given_ = [m if axis == 0 else m.T.contiguous() for m in matrices]
            made = read(given_, number, rows, axis, [0, *cuts, count * WIDTH])
            assert torch.allclose(made if axis == 0 else made.T, wanted[number], atol=1e-6)


def read(matrices: Sequence[Tensor], number: int, rows, axis: int, edges: list[int]) -> Tensor:
    """A model's tensor through its map, in pieces."""
    made = [TensorSource(f"model {i}", "w", m) for i, m in enumerate(matrices)]
    donors = {i: made[i] for i in rows.donors}
    source = RowsSource(made[number], donors, rows, axis, 0)
    Scheduler(1).run_one(source.prepare())
    parts = [source.read(a, b - a, 0).clone() for a, b in pairwise(edges)]
    return torch.cat(parts).view(source.shape)


@pytest.mark.parametrize("shape", [(6,), (1, 6), (6, 1), (2, 6, 3), (6, 20), (20, 6), (2, 6, 20)])
def test_any_axis_of_any_shape(shape: tuple[int, ...]) -> None:
    """Biases, heads stored the other way round, and rows wide enough to be read as ranges."""
    axis = shape.index(6)
    tokens = {t: i for i, t in enumerate("abcdef")}
    order = {t: i for i, t in enumerate("fcbxadey")}
    [rows] = map_rows(order, 9, [Party(tokens, 6)], None, {})
    tensor = torch.randn(shape)
    numel = tensor.numel() // 6 * 9
    step = max(1, numel // 3)
    made = read([tensor], 0, rows, axis, [*range(0, numel, step), numel])
    indices = torch.tensor([tokens.get(t, 0) for t in order])
    wanted = tensor.index_select(axis, indices)
    for new in ("x", "y"):
        wanted.select(axis, order[new]).zero_()
    assert torch.equal(made.narrow(axis, 0, 8), wanted)
    mean = wanted.mean(axis)
    assert torch.allclose(made.select(axis, 8), mean, atol=1e-6)


def test_a_vocabulary_that_only_grew_is_read_in_ranges() -> None:
    tokens = {str(i): i for i in range(1000)}
    [rows] = map_rows(tokens | {"new": 1000}, 1001, [Party(tokens, 1000)])
    tensor = torch.randn(1000, 16)
    calls = []

    class Counting(TensorSource):
        def read(self, start: int, size: int, slot: int) -> Tensor:
            calls.append((start, size))
            return super().read(start, size, slot)

    source = RowsSource(Counting("m", "w", tensor), {}, rows, 0, 0)
    assert torch.equal(source.read(5, 1001 * 16 - 5, 0)[:-16], tensor.reshape(-1)[5:])
    assert calls == [(5, 15995)]


def test_the_type_holds_what_fills_the_rows() -> None:
    tokens = {"a": 0, "b": 1}
    half = TensorSource("m", "w", torch.randn(2, 4).bfloat16())
    full = TensorSource("n", "w", torch.randn(2, 4))
    one, two = map_rows({"a": 0, "c": 1}, 2, [Party(tokens, 2), Party({"c": 0}, 2)])
    assert RowsSource(half, {1: full}, one, 0, 0).dtype == torch.float32
    assert RowsSource(half, {0: half}, two, 0, 0).dtype == torch.bfloat16
