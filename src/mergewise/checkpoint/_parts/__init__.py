"""The parts of a model as tensor names and configs tell them: layers, modules, kinds, depth."""

from mergewise.checkpoint._parts._depth import layer_count, layer_kinds, with_layers
from mergewise.checkpoint._parts._kinds import Kind, tensor_kind
from mergewise.checkpoint._parts._layers import (
    LayerGroup,
    find_layers,
    head_and_embedding,
    is_embedding_like,
    is_end,
    is_post_layer,
    is_pre_layer,
    layer_index,
    layer_prefix,
    main_layers,
    renumber,
    tied_head,
)
from mergewise.checkpoint._parts._modules import ModelModule, find_modules, module_called
from mergewise.checkpoint._parts._turned import Orientation, stored_turned

__all__ = [
    "Kind",
    "LayerGroup",
    "ModelModule",
    "Orientation",
    "find_layers",
    "find_modules",
    "head_and_embedding",
    "is_embedding_like",
    "is_end",
    "is_post_layer",
    "is_pre_layer",
    "layer_count",
    "layer_index",
    "layer_kinds",
    "layer_prefix",
    "main_layers",
    "module_called",
    "renumber",
    "stored_turned",
    "tensor_kind",
    "tied_head",
    "with_layers",
]
