"""Checkpoints on disk: open, read by range, lay out, write; nothing here imports torch."""

from mergewise.checkpoint._dtypes import BITS, CODES, TORCH_NAMES, byte_count
from mergewise.checkpoint._files import FileStamp
from mergewise.checkpoint._folder import Checkpoint, TensorRef, open_checkpoint
from mergewise.checkpoint._read import FileReader
from mergewise.checkpoint._safetensors import Header, TensorInfo, read_header
from mergewise.checkpoint._write import (
    ShardLayout,
    create_shard,
    index_json,
    plan_shards,
    write_at,
    write_file,
)

__all__ = [
    "BITS",
    "CODES",
    "TORCH_NAMES",
    "Checkpoint",
    "FileReader",
    "FileStamp",
    "Header",
    "ShardLayout",
    "TensorInfo",
    "TensorRef",
    "byte_count",
    "create_shard",
    "index_json",
    "open_checkpoint",
    "plan_shards",
    "read_header",
    "write_at",
    "write_file",
]
