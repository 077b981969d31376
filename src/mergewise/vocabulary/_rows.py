"""Where each row of an output vocabulary comes from, for each model.

A model's own row is used where it has the token. Where it has not, what fills the row is the same
for all models: the row of one model, a mean of several, zeros, or for rows without a token the
mean of the model's rows. With up to a quarter million rows, these are arrays of numbers.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

ZERO, MEAN, PADDING = -1, -2, -3
"""What fills a row if not a model's row: zeros, a mean of models, the mean of the own rows."""
_UNSET = -4
OWN = -5
"""In `RowMap.plan`: the model's own row."""


@dataclass(frozen=True, eq=False)
class Fills:
    """What stands in rows that a model has not; shared by all models of a merge.

    Attributes:
        donors: by output row, the number of a model, or `ZERO`, `MEAN`, `PADDING`.
        rows: by output row, the donor's row.
        means: for `MEAN`: (model, row) pairs.
        nowhere: rows of zeros that nobody asked for: no model has the token.
    """

    donors: array[int]
    rows: array[int]
    means: Mapping[int, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    nowhere: set[int] = field(default_factory=set)

    @classmethod
    def empty(cls, count: int) -> Fills:
        return cls(array("h", [_UNSET]) * count, array("i", [0]) * count, {})


@dataclass(frozen=True, eq=False)
class RowMap:
    """The rows of one model in the order of the output's vocabulary.

    Attributes:
        own: by output row, the model's row; negative where `fills` decides.
        fills: what is in the other rows.
        stored: how many rows the model has.
        tokens: output rows that have a token lie below this.
    """

    own: array[int]
    fills: Fills
    stored: int
    tokens: int

    @property
    def count(self) -> int:
        """Rows of the output."""
        return len(self.own)

    @cached_property
    def is_identity(self) -> bool:
        return self.stored == len(self.own) and self.own == array("i", range(self.stored))

    @cached_property
    def donors(self) -> frozenset[int]:
        """The numbers of the models whose rows fill some of this one's."""
        found = set()
        for row, own in enumerate(self.own):
            if own < 0:
                donor = self.fills.donors[row]
                found |= {donor} if donor >= 0 else {m for m, _ in self.fills.means.get(row, ())}
        return frozenset(found)

    @cached_property
    def counts(self) -> Mapping[str, int]:
        """How many rows are the model's ``own``, and of those filled, how."""
        names = {ZERO: "zero", MEAN: "mean", PADDING: "padding"}
        found = {"own": 0, "filled": 0, "mean": 0, "zero": 0, "padding": 0}
        for row, own in enumerate(self.own):
            kind = "own" if own >= 0 else names.get(self.fills.donors[row], "filled")
            found[kind] += 1
        return found

    def unknown(self, output: Mapping[str, int]) -> list[str]:
        """Tokens of the output whose rows are zeros because no model has them."""
        return [t for t, row in output.items() if self.fills.nowhere and row in self.fills.nowhere]

    @cached_property
    def plan(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Two arrays by output row: whose row it is (`OWN`, a model, a kind), and which."""
        import numpy as np

        own = np.frombuffer(self.own, dtype=np.int32)
        donors = np.frombuffer(self.fills.donors, dtype=np.int16)
        rows = np.frombuffer(self.fills.rows, dtype=np.int32)
        which = np.where(own >= 0, np.int16(OWN), donors)
        row = np.where(own >= 0, own, np.where(donors >= 0, rows, np.arange(len(own))))
        return which, row.astype(np.int64)

    def digest(self) -> str:
        """A hash of where every row comes from."""
        found = hashlib.sha256(self.own.tobytes())
        found.update(self.fills.donors.tobytes() + self.fills.rows.tobytes())
        found.update(repr(sorted(self.fills.means.items())).encode())
        return found.hexdigest()


@dataclass(frozen=True)
class TokenSource:
    """What a recipe says of one token.

    Attributes:
        model: number of the model whose row is taken; None for the rule, or for `zero`.
        row: that row.
        zero: zeros are taken.
        force: for all models, also those that have the token.
    """

    model: int | None = None
    row: int = -1
    zero: bool = False
    force: bool = False


@dataclass(frozen=True)
class Party:
    """A model in a mapping: ids by token (all below `rows`), and how many rows it has."""

    tokens: Mapping[str, int]
    rows: int


def map_rows(
    output: Mapping[str, int],
    count: int,
    parties: Sequence[Party],
    base: int | None = None,
    sources: Mapping[str, TokenSource] | None = None,
) -> list[RowMap]:
    """Map every model to the output's vocabulary.

    A token that a model lacks gets: what `sources` says; the row of the only model that has it;
    the base's; the mean of those that have it; zeros, if none has. Rows without a token are those
    of the same number where a model has one without a token too; others get the base's, the mean
    of the models that have one, or the mean of the model's own rows.

    Args:
        output: ids by token, all below `count`.
        count: rows of the output.
        parties: the models that are merged.
        base: which of them is the base.
        sources: settings of single tokens, all of them in `output`.

    Source: mergekit's rules for missing tokens (its README, section on `tokenizer`).
    """
    own = [_own(output, count, party) for party in parties]
    fills = Fills.empty(count)
    means: dict[int, tuple[tuple[int, int], ...]] = {}
    fills = Fills(fills.donors, fills.rows, means)
    for token, source in (sources or {}).items():
        row = output[token]
        _settle(fills, means, row, source, own, base)
        if source.force:
            for rows in own:
                rows[row] = -1
    used = set(output.values())
    for row in _lacking(own, count):
        if fills.donors[row] == _UNSET:
            _fill(fills, means, row, own, base, ZERO if row in used else PADDING)
    tokens = max(used, default=-1) + 1
    return [RowMap(rows, fills, p.rows, tokens) for rows, p in zip(own, parties, strict=True)]


def _own(output: Mapping[str, int], count: int, party: Party) -> array[int]:
    own = array("i", [-1]) * count
    for token, row in party.tokens.items():
        at = output.get(token)
        if at is not None:
            own[at] = row
    named, taken = set(party.tokens.values()), set(output.values())
    for row in range(min(count, party.rows)):
        if row not in named and row not in taken:
            own[row] = row
    return own


def _settle(
    fills: Fills,
    means: dict[int, tuple[tuple[int, int], ...]],
    row: int,
    source: TokenSource,
    own: Sequence[array[int]],
    base: int | None,
) -> None:
    if source.model is not None:
        fills.donors[row], fills.rows[row] = source.model, source.row
    elif source.zero:
        fills.donors[row] = ZERO
    else:
        _fill(fills, means, row, own, base, ZERO)


def _fill(
    fills: Fills,
    means: dict[int, tuple[tuple[int, int], ...]],
    row: int,
    own: Sequence[array[int]],
    base: int | None,
    none: int,
) -> None:
    """By the rule: the only one, the base, the mean, else `none`."""
    having = [(i, rows[row]) for i, rows in enumerate(own) if rows[row] >= 0]
    if not having:
        fills.donors[row] = none
        if none == ZERO:
            fills.nowhere.add(row)
    elif len(having) > 1 and base is not None and own[base][row] >= 0:
        fills.donors[row], fills.rows[row] = base, own[base][row]
    elif len(having) > 1:
        fills.donors[row], means[row] = MEAN, tuple(having)
    else:
        fills.donors[row], fills.rows[row] = having[0]


def _lacking(own: Sequence[array[int]], count: int) -> list[int]:
    """Rows that some model has not."""
    return [row for row in range(count) if any(rows[row] < 0 for rows in own)]
