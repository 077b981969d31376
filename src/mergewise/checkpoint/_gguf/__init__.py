"""GGUF files (llama.cpp): the header, names as `transformers` has them, and a config."""

from mergewise.checkpoint._gguf._files import only_gguf
from mergewise.checkpoint._gguf._open import open_gguf

__all__ = ["only_gguf", "open_gguf"]
