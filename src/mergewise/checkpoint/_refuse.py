"""What is not a safetensors checkpoint, recognised so that the refusal can name it."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from mergewise.checkpoint._files import where
from mergewise.checkpoint._torch_files import refuse_pickles
from mergewise.errors import CheckpointError, NotBuiltYetError


def refuse_missing(text: str) -> NoReturn:
    """Raise for a path that does not exist, and that is no name on the Hub."""
    base, plus, adapter = text.partition("+")
    if plus and Path(base).exists() and Path(adapter).exists():
        raise CheckpointError(
            f"{where(text)}: a base with an adapter is not read here; merge the adapter into its "
            "base first (a recipe with it as the only model, merge_method linear and weight 1)"
        )
    raise CheckpointError(
        f"{where(text)}: no such file or folder; give a local folder with safetensors files, or "
        "a name on the Hub, as in org/name or org/name@revision"
    )


def refuse_other_formats(path: Path, names: list[str]) -> None:
    """Raise if `names`, the files at `path`, are of a format that is known and not read.

    Raises:
        CheckpointError: pickles, adapters without a base.
    """
    if "adapter_config.json" in names:
        raise CheckpointError(
            f"{where(path)}: an adapter (adapter_config.json), not a model; name it with its base, "
            "as in BASE+ADAPTER"
        )
    if not any(name.endswith(".safetensors") for name in names):
        refuse_pickles(path, names)


def _not_yet(path: Path, what: str, instead: str) -> NoReturn:
    raise NotBuiltYetError(f"{where(path)}: {what} cannot be read by this version; {instead}")
