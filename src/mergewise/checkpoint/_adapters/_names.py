"""Which tensors of the base an adapter means."""

from __future__ import annotations

from collections.abc import Collection

from mergewise.checkpoint._adapters._adapter import Adapter
from mergewise.checkpoint._files import shown, where
from mergewise.errors import CheckpointError


def resolve_names(adapter: Adapter, names: Collection[str]) -> dict[str, str]:
    """The base's name of each module that is changed and each tensor that is replaced.

    Usually they are the adapter's own. A checkpoint of the bare model (``h.0...``) and one with a
    head (``transformer.h.0...``) differ by a prefix, as do the names that `transformers` gives the
    parts of some models and those in their files. If one change of prefix, and no other, makes
    everything fit, it is made.

    Args:
        names: of the base's tensors, with a tied head's.

    Raises:
        CheckpointError: if something is not in the base.
    """
    wanted = [*(f"{module}.weight" for module in adapter.modules), *adapter.replaced]
    known = set(names)
    missing = [name for name in wanted if name not in known]
    ways = [("", "")] if not missing else _prefixes(wanted, known)
    if len(ways) != 1:
        _refuse(adapter, missing, len(wanted), len(ways))
    return {name: _renamed(name, *ways[0]) for name in [*adapter.modules, *adapter.replaced]}


def _renamed(name: str, old: str, new: str) -> str:
    return new + name.removeprefix(old)


def _prefixes(wanted: list[str], known: set[str]) -> list[tuple[str, str]]:
    """Pairs of a prefix that all names have and what, in its place, makes every name fit."""
    first = wanted[0]
    parts = first.split(".")
    found = []
    for count in range(min(4, len(parts) - 1)):
        old = "".join(f"{part}." for part in parts[:count])
        rest = first.removeprefix(old)
        if any(part.isdigit() for part in parts[:count]) or "." not in rest.removesuffix(".weight"):
            break
        ends = (name for name in known if name == rest or name.endswith(f".{rest}"))
        ways = [(old, end.removesuffix(rest)) for end in ends]
        found += [way for way in ways if _fits(wanted, known, *way)]
        if found:  # names that agree in more come first
            break
    # model.language_model.layers is language_model.model.layers rather than vision_tower.layers
    alike = [(old, new) for old, new in found if sorted(old.split(".")) == sorted(new.split("."))]
    return alike if len(alike) == 1 else found


def _fits(wanted: list[str], known: set[str], old: str, new: str) -> bool:
    return all(name.startswith(old) and _renamed(name, old, new) in known for name in wanted)


def _refuse(adapter: Adapter, missing: list[str], total: int, ways: int) -> None:
    if ways > 1:
        raise CheckpointError(
            f"{where(adapter.file)}: {shown(missing[0])} fits {ways} tensors of the base, "
            "under different prefixes; rename the adapter's tensors"
        )
    raise CheckpointError(
        f"{where(adapter.file)}: {len(missing):,} of {total:,} tensors it changes or replaces are "
        f"not in the base: {', '.join(shown(name) for name in missing[:3])}; was it trained on "
        "another model, or does it bring a head that the base lacks?"
    )
