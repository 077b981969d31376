"""What works on plain checkpoints alone says so by name."""

from __future__ import annotations

from pathlib import Path

from mergewise.checkpoint._adapters import open_reference
from mergewise.checkpoint._files import shown, where
from mergewise.checkpoint._model import Checkpoint
from mergewise.errors import NotBuiltYetError


def open_runnable(path: Path | str) -> Checkpoint:
    """Open a checkpoint, or BASE+ADAPTER, that is to be loaded through `transformers`.

    Raises:
        CheckpointError, NotBuiltYetError: as `open_reference`, and for quantised weights.
    """
    checkpoint = open_reference(path)
    refuse_packed(checkpoint, "Models that run are loaded through transformers, which does")
    return checkpoint


def refuse_packed(checkpoint: Checkpoint, what: str) -> None:
    """Raise if some tensors are quantised.

    Args:
        what: which work does not read them, as the beginning of a sentence.

    Raises:
        NotBuiltYetError: with the next step.
    """
    kind = checkpoint.stored_as
    if kind is not None:
        raise NotBuiltYetError(
            f"{where(checkpoint.path)}: its weights are quantised ({shown(kind)}). {what} not read "
            "such; dequantise the model once, with a recipe that has it as its only model "
            "(merge_method: passthrough) and `mergewise merge RECIPE OUT --dequantize`; give OUT"
        )
