"""Models whose names differ by a prefix: Lightning's ``model.``, DataParallel's ``module.``."""

from __future__ import annotations

from collections.abc import Collection, Iterator


def prefix_between(ours: Collection[str], theirs: Collection[str]) -> tuple[str, str] | None:
    """(their prefix, ours), where they are all that two models' names differ in.

    None of the names is in both, and all names of one model fit the other's under a single change
    of prefix. A model may hold more besides, such as the weights of a loss. Layers' numbers are
    never a part of a prefix.

    Returns:
        None if there is no such pair of prefixes, or several.
    """
    mine, other = set(ours), set(theirs)
    if not mine or not other or mine & other:
        return None
    turned = len(mine) < len(other)
    few, many = (mine, other) if turned else (other, mine)
    found = _pairs(few, many)
    if found is None:
        return None
    return (found[1], found[0]) if turned else found


def _pairs(few: set[str], many: set[str]) -> tuple[str, str] | None:
    first = max(few, key=lambda name: (len(name), name))
    for old in _leads(first):
        rest = first.removeprefix(old)
        ends = {n.removesuffix(rest) for n in many if n == rest or n.endswith(f".{rest}")}
        fit = [new for new in ends if _plain(new) and _fits(few, many, old, new)]
        if fit:  # names that agree in more come first
            return (old, fit[0]) if len(fit) == 1 else None
    return None


def _leads(name: str) -> Iterator[str]:
    """What may be a prefix of a name, from nothing on."""
    parts = name.split(".")
    for count in range(len(parts)):
        lead = "".join(f"{part}." for part in parts[:count])
        if not _plain(lead):
            return
        yield lead


def _plain(lead: str) -> bool:
    return not any(part.isdigit() for part in lead.split("."))


def _fits(few: set[str], many: set[str], old: str, new: str) -> bool:
    return all(n.startswith(old) and new + n.removeprefix(old) in many for n in few)
