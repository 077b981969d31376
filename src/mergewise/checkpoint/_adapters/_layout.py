"""An adapter's modules in the names of its base's files, where `transformers` has others."""

from __future__ import annotations

from collections.abc import Collection

from mergewise.checkpoint._adapters._adapter import Adapter
from mergewise.checkpoint._adapters._names import resolve_names
from mergewise.checkpoint._files import shown, where
from mergewise.checkpoint._layout import CannotConvert, Layout, layout_of, meta_model
from mergewise.checkpoint._model import Checkpoint
from mergewise.errors import CheckpointError


def names_in(base: Checkpoint, adapter: Adapter, names: Collection[str]) -> dict[str, str]:
    """As `resolve_names`; if that finds nothing, through the names that a model has in memory.

    Args:
        names: of the base's tensors, with a tied head's.

    Raises:
        CheckpointError: if the adapter does not fit, or changes a part of a packed parameter.
    """
    try:
        return resolve_names(adapter, names)
    except CheckpointError as error:
        try:
            layout = layout_of(base.tensors, meta_model(base.config))
        except CannotConvert:
            raise error from None
        aliases = _aliases(layout, adapter)
        try:
            found = resolve_names(adapter, {*aliases, *(set(names) - base.tensors.keys())})
        except CheckpointError:
            raise error from None
    return {asked: _stored(name, aliases) for asked, name in found.items()}


def _aliases(layout: Layout, adapter: Adapter) -> dict[str, str]:
    """The names in the file of parameters that lie in it whole.

    Raises:
        CheckpointError: if the adapter changes a parameter that does not.
    """
    found = {}
    for parameter, pieces in layout.parameters.items():
        if len(pieces) == 1 and pieces[0].whole:
            found[parameter] = pieces[0].ref.name
        elif any(_means(asked, parameter) for asked in [*adapter.modules, *adapter.replaced]):
            raise CheckpointError(
                f"{where(adapter.file)}: it changes {shown(parameter)}, which the base keeps as "
                f"{len(pieces)} tensors such as {shown(pieces[0].ref.name)}; save the base with "
                "transformers' save_pretrained(OUT, save_original_format=False)"
            )
    return found


def _means(asked: str, parameter: str) -> bool:
    return parameter in (asked, f"{asked}.weight") or parameter.endswith(f".{asked}")


def _stored(name: str, aliases: dict[str, str]) -> str:
    """A tensor's name in the file, or for a module's name the module's."""
    if name in aliases:
        return aliases[name]
    return aliases.get(f"{name}.weight", f"{name}.weight").removesuffix(".weight")
