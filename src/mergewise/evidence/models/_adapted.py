"""Put an adapter into a model that runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.checkpoint import ChangedRef, Checkpoint, head_and_embedding
from mergewise.errors import CheckpointError
from mergewise.evidence.models._masked import StoredTensors
from mergewise.evidence.models._names import Names

if TYPE_CHECKING:
    from torch import nn


def untied_config(checkpoint: Checkpoint, trust: bool) -> Any:
    """The base's config with head and embedding apart if the adapter parts them; else None."""
    from mergewise.checkpoint import open_checkpoint, tied_head

    base = open_checkpoint(checkpoint.folder)
    apart = tied_head(checkpoint.tensors.keys(), checkpoint.config) is None
    if not apart or tied_head(base.tensors.keys(), base.config) is None:
        return None
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(
        checkpoint.folder, local_files_only=True, trust_remote_code=trust
    )
    for part in {id(c): c for c in (config, config.get_text_config())}.values():
        part.tie_word_embeddings = False
    return config


def put_adapter(module: nn.Module, checkpoint: Checkpoint) -> None:
    """Give a model that was loaded from the base the tensors that the adapter changes.

    Raises:
        CheckpointError: if a changed tensor is not in the model as it is in the file.
    """
    wanted = touched(checkpoint)
    wanted -= _headless(module, checkpoint)
    _resize(module, checkpoint)
    names, stored = Names(module, checkpoint.tensors), StoredTensors(checkpoint)
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with torch.no_grad():
        for name, value in state.items():
            for part in names.of(name):
                if part.tensor in wanted:
                    part.of(value.data).copy_(stored[part.tensor])
                    wanted.discard(part.tensor)
    if wanted:
        raise CheckpointError(
            f"{checkpoint.path}: {len(wanted)} tensors that the adapter changes are not in "
            f"{type(module).__name__} ({', '.join(sorted(wanted)[:3])}); merge the adapter into "
            "its base first"
        )


def _resize(module: nn.Module, checkpoint: Checkpoint) -> None:
    """Make room for the rows of an adapter with another vocabulary; `put_adapter` fills them."""
    pair = head_and_embedding(checkpoint.tensors.keys())
    rows = checkpoint.tensors[pair[1]].shape[0] if pair else 0
    resize: Any = getattr(module, "resize_token_embeddings", None)
    if pair is None or resize is None or not _held(checkpoint, pair[1]):
        return
    table: Any = module.get_input_embeddings
    if table().weight.shape[0] != rows:
        resize(rows, mean_resizing=False)


def _headless(module: nn.Module, checkpoint: Checkpoint) -> set[str]:
    """The output head's name, for a body, which has none."""
    pair = head_and_embedding(checkpoint.tensors.keys())
    head: Any = getattr(module, "get_output_embeddings", None)
    return {pair[0]} if pair is not None and head is not None and head() is None else set()


def _held(checkpoint: Checkpoint, name: str) -> bool:
    return checkpoint.tensors[name].file.parent == checkpoint.adapter


def touched(checkpoint: Checkpoint) -> set[str]:
    """Names of the tensors that are not the base's, or that the base has under another name."""
    found = checkpoint.tensors.items()
    own = {n for n, ref in found if isinstance(ref, ChangedRef) or ref.file.parent ==
           checkpoint.adapter}  # fmt: skip
    places: dict[tuple[object, int], str] = {}
    twins = {n for n, ref in found if places.setdefault((ref.file, ref.start), n) != n}
    return own | {n for n in twins if checkpoint.tensors[n].nbytes}
