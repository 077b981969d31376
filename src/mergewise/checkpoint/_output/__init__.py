"""The files of a result: shards, config and tokenizer, model card, licence, provenance."""

from mergewise.checkpoint._output._card import CardInput, model_card
from mergewise.checkpoint._output._licence import merged_licence, stated_licence
from mergewise.checkpoint._output._provenance import fingerprint, provenance, sha256_file, versions
from mergewise.checkpoint._output._shard_names import index_files, placed, plan_files
from mergewise.checkpoint._output._small_files import (
    MAX_COPIED,
    Copied,
    copied_files,
    copy_tokenizer,
    edited_config,
    write_config,
)
from mergewise.checkpoint._output._write import (
    ShardLayout,
    cannot_write,
    create_shard,
    index_json,
    make_folder,
    plan_shards,
    write_at,
    write_file,
)

__all__ = [
    "MAX_COPIED",
    "CardInput",
    "Copied",
    "ShardLayout",
    "cannot_write",
    "copied_files",
    "copy_tokenizer",
    "create_shard",
    "edited_config",
    "fingerprint",
    "index_files",
    "index_json",
    "make_folder",
    "merged_licence",
    "model_card",
    "placed",
    "plan_files",
    "plan_shards",
    "provenance",
    "sha256_file",
    "stated_licence",
    "versions",
    "write_at",
    "write_config",
    "write_file",
]
