"""Which tensors of the base an adapter means."""

from __future__ import annotations

from collections.abc import Collection

from mergewise.checkpoint._adapter import Adapter
from mergewise.checkpoint._files import shown, where
from mergewise.errors import CheckpointError


def resolve_names(adapter: Adapter, names: Collection[str]) -> dict[str, str]:
    """The base's name of each module that is changed and each tensor that is replaced.

    Usually they are the adapter's own. A checkpoint of the bare model (``h.0...``) and one with a
    head (``transformer.h.0...``) differ by a prefix; if one prefix, added or taken away, makes
    everything fit, it is used.

    Args:
        names: of the base's tensors, with a tied head's.

    Raises:
        CheckpointError: if something is not in the base.
    """
    wanted = [*(f"{module}.weight" for module in adapter.modules), *adapter.replaced]
    known = set(names)
    missing = [name for name in wanted if name not in known]
    prefixes = [""] if not missing else _prefixes(wanted, known)
    if len(prefixes) != 1:
        _refuse(adapter, missing, len(wanted), len(prefixes))
    prefix = prefixes[0]
    return {name: _renamed(name, prefix) for name in [*adapter.modules, *adapter.replaced]}


def _renamed(name: str, prefix: str) -> str:
    return name.removeprefix(prefix[1:]) if prefix.startswith("-") else prefix + name


def _prefixes(wanted: list[str], known: set[str]) -> list[str]:
    """Prefixes that make every name fit: to be added, or with a leading `-` taken away."""
    first = wanted[0]
    parts = first.split(".")
    fewer = ["-" + ".".join(parts[:i]) + "." for i in range(1, min(4, len(parts)))]
    more = [name.removesuffix(first) for name in known if name.endswith("." + first)]
    return [p for p in [*fewer, *more] if all(_renamed(name, p) in known for name in wanted)]


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
