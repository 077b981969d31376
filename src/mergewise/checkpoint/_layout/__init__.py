"""One architecture, several layouts: a file's names against those of transformers' model."""

from mergewise.checkpoint._layout._meta_model import CannotConvert, meta_model
from mergewise.checkpoint._layout._places import Layout, layout_of
from mergewise.checkpoint._layout._relayout import in_layout_of

__all__ = [
    "CannotConvert",
    "Layout",
    "in_layout_of",
    "layout_of",
    "meta_model",
]
