"""The files of a result: shards called as its donor's are, in one folder for each component.

While a merge runs, shards lie side by side in its working folder, so that a file's name there has
`_IN` for the slash: ``unet%diffusion_pytorch_model.safetensors``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mergewise.checkpoint._model import Checkpoint
from mergewise.checkpoint._output._write import ShardLayout, TensorSpec, index_json, plan_shards

_IN = "%"
_KEPT = (
    "modelspec.sai_model_spec",
    "modelspec.architecture",
    "modelspec.implementation",
    "modelspec.prediction_type",
    "modelspec.resolution",
)
"""What stays true of a merge of models of one kind; title, author, date, hash and so on do not."""


def placed(filename: str) -> str:
    """Where a file of the working folder belongs in the result."""
    return filename.replace(_IN, "/")


def plan_files(
    tensors: Sequence[TensorSpec], max_bytes: int, donor: Checkpoint | None
) -> list[ShardLayout]:
    """Distribute tensors over files as `plan_shards` does, for each component apart.

    Args:
        donor: the checkpoint whose form the result has; None for a plain one.

    Raises:
        OutputError: as `plan_shards`.
    """
    metadata = None
    if donor and (kept := {k: v for k, v in donor.metadata.items() if k in _KEPT}):
        metadata = {"format": "pt", **kept}
    if donor is None or donor.pipeline is None:
        return plan_shards(tensors, max_bytes, metadata, donor.stem if donor else "model")
    found: list[ShardLayout] = []
    for part, stem in donor.pipeline.stems.items():
        start = f"{part}/"
        own = [(n.removeprefix(start), d, s) for n, d, s in tensors if n.startswith(start)]
        for layout in plan_shards(own, max_bytes, None, stem) if own else ():
            found.append(_inside(part, layout))
    return found


def _inside(part: str, layout: ShardLayout) -> ShardLayout:
    return replace(
        layout,
        filename=f"{part}{_IN}{layout.filename}",
        offsets={f"{part}/{name}": at for name, at in layout.offsets.items()},
        sizes={f"{part}/{name}": size for name, size in layout.sizes.items()},
    )


def index_files(layouts: Sequence[ShardLayout]) -> dict[str, bytes]:
    """The index files that belong beside the shards, by their place in the result."""
    parts: dict[str, list[ShardLayout]] = {}
    for layout in layouts:
        parts.setdefault(placed(layout.filename).rpartition("/")[0], []).append(layout)
    found = {}
    for part, own in parts.items():
        if len(own) > 1:
            start = f"{part}/" if part else ""
            plain = [_plain(start, layout) for layout in own]
            stem = plain[0].filename.partition("-0")[0]
            found[f"{start}{stem}.safetensors.index.json"] = index_json(plain)
    return found


def _plain(start: str, layout: ShardLayout) -> ShardLayout:
    return replace(
        layout,
        filename=placed(layout.filename).removeprefix(start),
        offsets={name.removeprefix(start): at for name, at in layout.offsets.items()},
    )
