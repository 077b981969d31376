"""Results that are not one dense checkpoint: adapters, extracted from models or merged."""

from mergewise.forms.adapter_form import MadeAdapter, merge_into_adapter
from mergewise.forms.adapter_merge import MergedAdapter, merge_adapters
from mergewise.forms.adapter_overlap import Overlap, adapter_overlap
from mergewise.forms.lora_extract import Extracted, LayerError, extract_lora

__all__ = [
    "Extracted",
    "LayerError",
    "MadeAdapter",
    "MergedAdapter",
    "Overlap",
    "adapter_overlap",
    "extract_lora",
    "merge_adapters",
    "merge_into_adapter",
]
