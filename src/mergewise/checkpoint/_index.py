"""``*.safetensors.index.json``: which shard holds which tensor."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergewise.checkpoint._files import shown, where
from mergewise.checkpoint._json import read_json
from mergewise.errors import CheckpointError

if TYPE_CHECKING:
    from mergewise.checkpoint._model import TensorRef

MAX_INDEX = 64_000_000
"""Bytes; an index takes about 100 a tensor."""
MAX_SHARDS = 10_000
_NUMBERED = re.compile(r"(.+)-\d{5}-of-(\d{5})\.(safetensors|bin)")


@dataclass(frozen=True)
class Index:
    """A checked index file.

    Attributes:
        weight_map: shard file name by tensor name.
        shards: the shards' names, each once, sorted.
        raw: the whole document.
    """

    path: Path
    weight_map: Mapping[str, str]
    shards: tuple[str, ...]
    raw: dict[str, Any]

    def refuse_siblings(self, others: Iterable[str]) -> None:
        """Raise if one of `others`, files beside the index, belongs to the same set of shards.

        Shards 1 and 2 "of 2" with an index that names only one of them: half the model would be
        lost without a word. Files of another set are left over from something else.
        """
        families = {family for shard in self.shards if (family := _family(shard))}
        for name in others:
            if _family(name) in families:
                raise CheckpointError(
                    f"{where(self.path.with_name(name))}: this shard is not listed in "
                    f"{self.path.name}, though it belongs with those that are; fetch both again"
                )

    def compare(self, tensors: Mapping[str, TensorRef]) -> Iterator[str]:
        """Warnings about `tensors`, those found in the shards; raises for what is missing."""
        for name, shard in self.weight_map.items():
            if name not in tensors or tensors[name].file.name != shard:
                raise CheckpointError(
                    f"{where(self.path)}: tensor {shown(name)} should be in {shard}, which does "
                    "not hold it; index and shards are of different versions, fetch them again"
                )
        unlisted = [name for name in tensors if name not in self.weight_map]
        if unlisted:
            raise CheckpointError(
                f"{where(tensors[unlisted[0]].file)}: tensor {shown(unlisted[0])} is not listed in "
                f"{self.path.name}, nor are {len(unlisted) - 1:,} others; a loader would drop it, "
                "so index and shards do not belong together: fetch them again"
            )
        yield from self._totals(sum(tensor.nbytes for tensor in tensors.values()))

    def _totals(self, size: int) -> Iterator[str]:
        metadata = self.raw.get("metadata")
        claimed = metadata.get("total_size") if isinstance(metadata, dict) else None
        if claimed is not None and claimed != size:
            yield (
                f"{where(self.path)}: total_size is {shown(claimed)}, "
                f"but the shards hold {size:,} bytes"
            )


def read_index(path: Path) -> Index:
    """Read an index file; the shards themselves are not opened.

    Raises:
        CheckpointError: if it is no index, or names anything but plain files beside itself.
    """
    raw = read_json(path, "index", MAX_INDEX)
    weight_map = raw.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{where(path)}: weight_map must map tensor names to file names, got "
            f"{shown(weight_map)}"
        )
    if not isinstance(raw.get("metadata", {}), dict | None):
        raise CheckpointError(
            f"{where(path)}: metadata must be an object, got {shown(raw['metadata'])}"
        )
    for name, shard in weight_map.items():
        _check_shard(path, name, shard)
    shards = tuple(sorted(set(weight_map.values())))
    if len(shards) > MAX_SHARDS:
        raise CheckpointError(
            f"{where(path)}: {len(shards):,} shards; at most {MAX_SHARDS:,} are read"
        )
    return Index(path, weight_map, shards, raw)


def _family(shard: str) -> tuple[str, str] | None:
    match = _NUMBERED.fullmatch(shard)
    return (match[1], match[2]) if match else None


def _check_shard(path: Path, name: str, shard: Any) -> None:
    ending = ".bin" if ".bin.index." in path.name else ".safetensors"
    problem = _problem(shard, ending)
    if problem:
        raise CheckpointError(
            f"{where(path)}: tensor {shown(name)}: {problem}, got {shown(shard)}; a shard is a "
            f"plain file name such as 'model-00001-of-00002{ending}'"
        )


def _problem(shard: Any, ending: str) -> str | None:
    if not isinstance(shard, str):
        return "a file name expected"
    if any(c in shard for c in "/\\:"):
        return "the name would leave the folder"
    if not shard.isprintable() or len(shard.encode()) > 200:
        return "the name is too long or not printable"
    if not shard.endswith(ending):
        return f"a {ending} file expected"
    return None
