"""Open the models a recipe names."""

from __future__ import annotations

from pathlib import Path

from mergewise._paths import exists, expanded
from mergewise.checkpoint import (
    Checkpoint,
    adapt,
    hub_name,
    locate,
    open_adapter,
    open_checkpoint,
    tied_head,
)
from mergewise.errors import MergewiseError
from mergewise.plan._model import TensorMeta, View
from mergewise.recipe import ModelRef, Recipe
from mergewise.vocabulary import read_tokenizer


def resolve_path(ref: ModelRef, recipe: Recipe) -> Path:
    """Where a reference points: relative to the current folder, else to the recipe's."""
    path = expanded(ref.path)
    if exists(path) or path.is_absolute():
        return path
    beside = Path(recipe.path).parent / path
    return beside if recipe.path and exists(beside) else path


def open_view(ref: ModelRef, recipe: Recipe) -> View:
    """Open one model from its headers.

    Raises:
        NotBuiltYetError: for adapters of kinds that are not built.
        HubError: if it is on the Hub, and cannot be had there.
        CheckpointError: if it cannot be read, or its adapter does not fit it.
    """
    checkpoint = open_model(ref, recipe)
    return View(
        label=str(ref),
        tensors={n: TensorMeta(n, t.dtype, t.shape) for n, t in checkpoint.tensors.items()},
        config=checkpoint.config,
        folder=checkpoint.folder,
        checkpoint=checkpoint,
        tied=tied_head(list(checkpoint.tensors), checkpoint.config),
        tokenizer=read_tokenizer(checkpoint.tokenizer) if checkpoint.tokenizer else None,
    )


def open_model(ref: ModelRef, recipe: Recipe) -> Checkpoint:
    """The checkpoint that a reference names, with its adapter on top; raises as `open_view`."""
    checkpoint = open_checkpoint(_local(ref, recipe))
    if ref.lora is None:
        return checkpoint
    return adapt(checkpoint, open_adapter(_local(ref.lora, recipe)))


def _local(ref: ModelRef, recipe: Recipe) -> Path | str:
    """The path a reference points to; where there is nothing, its name on the Hub."""
    path = resolve_path(ref, recipe)
    if exists(path):
        return path
    name = ref.path if ref.revision is None else f"{ref.path}@{ref.revision}"
    return path if hub_name(name) is None else name


def tokenizer_view(ref: ModelRef, recipe: Recipe) -> View:
    """A model that may be a tokenizer alone: a folder without weights; raises as `open_view`."""
    try:
        return open_view(ref, recipe)
    except MergewiseError:
        place = _local(ref, recipe)
        # on the Hub: where its small files are by now
        folder = place if isinstance(place, Path) else locate(place)
        if folder is None or not (folder / "tokenizer.json").is_file():
            raise
        return View(str(ref), {}, None, folder)


def describe(error: MergewiseError) -> str:
    """An error's text on one line, for a diagnostic."""
    return " ".join(str(error).split())
