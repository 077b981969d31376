"""Adapters as PEFT saves them: read, held against their base, and shown on it as a checkpoint."""

from mergewise.checkpoint._adapters._adapt import adapt, open_reference, split_reference
from mergewise.checkpoint._adapters._adapter import PREFIX, Adapter, is_adapter, open_adapter
from mergewise.checkpoint._adapters._config import AdapterConfig

__all__ = [
    "PREFIX",
    "Adapter",
    "AdapterConfig",
    "adapt",
    "is_adapter",
    "open_adapter",
    "open_reference",
    "split_reference",
]
