"""GGUF files (llama.cpp): the header, names as `transformers` has them, and a config."""
