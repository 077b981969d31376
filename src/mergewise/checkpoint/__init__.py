"""Checkpoints on disk: open, read by range, lay out, write; nothing here imports torch."""

from mergewise.checkpoint._access import Access, access, allow
from mergewise.checkpoint._adapters import (
    PREFIX,
    Adapter,
    AdapterConfig,
    adapt,
    is_adapter,
    open_adapter,
    open_reference,
    split_reference,
)
from mergewise.checkpoint._card import CardInput, model_card
from mergewise.checkpoint._change import Change, ChangedRef, LowRank, Scaled, Shifted
from mergewise.checkpoint._change_values import ChangeValues, changed_whole, read_whole
from mergewise.checkpoint._config import config_value, set_config_value, text_config
from mergewise.checkpoint._depth import layer_count, layer_kinds, with_layers
from mergewise.checkpoint._dtypes import BITS, CODES, TORCH_NAMES, byte_count
from mergewise.checkpoint._fetch import fetched, identity, to_fetch
from mergewise.checkpoint._files import FileStamp, read_small, shown, stays_inside, where
from mergewise.checkpoint._folder import open_checkpoint
from mergewise.checkpoint._hub import (
    AwayFile,
    AwayStamp,
    HubName,
    Origin,
    arrived,
    cache_folder,
    check_push,
    check_room,
    compared,
    downloads,
    drop,
    fetch,
    hub_name,
    locate,
    on_one_disk,
    origin_of,
    push,
)
from mergewise.checkpoint._inspect import Summary, TensorSummary, inspect_checkpoint
from mergewise.checkpoint._joined import JoinedRef, Piece
from mergewise.checkpoint._json import parse_object
from mergewise.checkpoint._kinds import Kind, tensor_kind
from mergewise.checkpoint._layers import (
    LayerGroup,
    find_layers,
    head_and_embedding,
    is_embedding_like,
    is_post_layer,
    is_pre_layer,
    layer_index,
    layer_prefix,
    main_layers,
    renumber,
    tied_head,
)
from mergewise.checkpoint._layouts import index_files, placed, plan_files
from mergewise.checkpoint._licence import merged_licence, stated_licence
from mergewise.checkpoint._model import Checkpoint, TensorRef
from mergewise.checkpoint._modules import ModelModule, find_modules, module_called
from mergewise.checkpoint._output import (
    MAX_COPIED,
    Copied,
    copied_files,
    copy_tokenizer,
    edited_config,
    write_config,
)
from mergewise.checkpoint._packed._ref import PackedRef, Packing
from mergewise.checkpoint._pipeline import SAFETY, Pipeline, copy_parts
from mergewise.checkpoint._provenance import fingerprint, provenance, sha256_file, versions
from mergewise.checkpoint._read import FileReader
from mergewise.checkpoint._relayout import in_layout_of
from mergewise.checkpoint._runnable import open_runnable, refuse_packed
from mergewise.checkpoint._safetensors import Header, TensorInfo, read_header
from mergewise.checkpoint._torch_files import ENDINGS as PICKLE_ENDINGS
from mergewise.checkpoint._torch_files import refuse_old_torch
from mergewise.checkpoint._turned import Orientation, stored_turned
from mergewise.checkpoint._write import (
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
    "BITS",
    "CODES",
    "MAX_COPIED",
    "PICKLE_ENDINGS",
    "PREFIX",
    "SAFETY",
    "TORCH_NAMES",
    "Access",
    "Adapter",
    "AdapterConfig",
    "AwayFile",
    "AwayStamp",
    "CardInput",
    "Change",
    "ChangeValues",
    "ChangedRef",
    "Checkpoint",
    "Copied",
    "FileReader",
    "FileStamp",
    "Header",
    "HubName",
    "JoinedRef",
    "Kind",
    "LayerGroup",
    "LowRank",
    "ModelModule",
    "Orientation",
    "Origin",
    "PackedRef",
    "Packing",
    "Piece",
    "Pipeline",
    "Scaled",
    "ShardLayout",
    "Shifted",
    "Summary",
    "TensorInfo",
    "TensorRef",
    "TensorSummary",
    "access",
    "adapt",
    "allow",
    "arrived",
    "byte_count",
    "cache_folder",
    "cannot_write",
    "changed_whole",
    "check_push",
    "check_room",
    "compared",
    "config_value",
    "copied_files",
    "copy_parts",
    "copy_tokenizer",
    "create_shard",
    "downloads",
    "drop",
    "edited_config",
    "fetch",
    "fetched",
    "find_layers",
    "find_modules",
    "fingerprint",
    "head_and_embedding",
    "hub_name",
    "identity",
    "in_layout_of",
    "index_files",
    "index_json",
    "inspect_checkpoint",
    "is_adapter",
    "is_embedding_like",
    "is_post_layer",
    "is_pre_layer",
    "layer_count",
    "layer_index",
    "layer_kinds",
    "layer_prefix",
    "locate",
    "main_layers",
    "make_folder",
    "merged_licence",
    "model_card",
    "module_called",
    "on_one_disk",
    "open_adapter",
    "open_checkpoint",
    "open_reference",
    "open_runnable",
    "origin_of",
    "parse_object",
    "placed",
    "plan_files",
    "plan_shards",
    "provenance",
    "push",
    "read_header",
    "read_small",
    "read_whole",
    "refuse_old_torch",
    "refuse_packed",
    "renumber",
    "set_config_value",
    "sha256_file",
    "shown",
    "split_reference",
    "stated_licence",
    "stays_inside",
    "stored_turned",
    "tensor_kind",
    "text_config",
    "tied_head",
    "to_fetch",
    "versions",
    "where",
    "with_layers",
    "write_at",
    "write_config",
    "write_file",
]
