"""Two experts: methods for two models, on a few pairs of a family's experts.

A method takes one of these places for the pair:

* both experts beside the base, or without one: `nuslerp`, and the references;
* the first expert as the method's base, the second as its model: `slerp` and its like. What such a
  method calls the base (for `bcwi` the old model, of which it reads Fisher information) is then an
  expert, and the model that both come from takes no part;
* a stage after a merge of both (`AFTER`), beside the model that both come from: `aim`;
* `ext_sub` is to keep the first and forget the second, and is not ordered among the others. Beside
  it stands plain negation, the first task vector less the second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from benchmarks.lab._contenders import Contender, contenders, rows_of
from mergewise.methods import Method, all_methods

MOST = 3
REFERENCES = ("linear", "task_arithmetic", "ties keep .2", "tsv_m", "regmean")
"""Rows of the large table that stand beside methods for two, by name."""
AFTER: Mapping[str, str] = {"aim": "linear"}
"""Methods for one merged model, and which merge they are given."""
ALONE = ("first expert alone", "second expert alone")
FORGETTING = ("ext_sub", "task_arithmetic 1 −1")


def pairs_of(experts: Sequence[str]) -> list[tuple[str, str]]:
    """The first with the second, the third with the fourth, …; `MOST` pairs, each expert once."""
    return list(zip(experts[::2], experts[1::2], strict=False))[:MOST]


def pair_contenders(experts: int, calibrating: int, only: Sequence[str] = ()) -> list[Contender]:
    """Methods that `experts` models are too many for, then the references and what forgets.

    Args:
        calibrating: as for `contenders`.
        only: methods to take; all if empty.

    Returns:
        Nothing if no method for two models is wanted, or there are no two experts.
    """
    if experts < 2:
        return []
    chosen, _ = contenders(2, calibrating)
    known = {c.name: c for c in chosen}
    for_two = [c for name, m in all_methods().items() for c in _for_two(m, known, calibrating)]
    wanted = [c for c in for_two if not only or c.method in only]
    forgetting = [] if only and FORGETTING[0] not in only else _forgetting(calibrating)
    if not wanted and not forgetting:
        return []
    return [*(known[name] for name in REFERENCES if name in known), *wanted, *forgetting]


def _for_two(method: Method, known: Mapping[str, Contender], calibrating: int) -> list[Contender]:
    most = method.experts[1]
    if most == 2:
        return [c for c in known.values() if c.method == method.name]
    if most != 1 or method.base != "required":
        return []
    if method.needs_at_defaults() and not calibrating:
        return []
    if after := AFTER.get(method.name):
        return [
            replace(c, name=f"{c.name} after {after}", after=after)
            for c in rows_of(method, 2, calibrating)
        ]
    return [replace(c, first=True) for c in rows_of(method, 2, calibrating)]


def _forgetting(calibrating: int) -> list[Contender]:
    rows = rows_of(all_methods()["ext_sub"], 2, calibrating)
    minus = {"weight": [1.0, -1.0], "lambda": 1.0}
    return [*rows, Contender(FORGETTING[1], "task_arithmetic", minus)]
