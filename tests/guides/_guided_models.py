"""Experts of a base, with a tokenizer, on disk."""

import torch
from small_language import byte_tokenizer


def nudge(model, seed):
    """Change every weight a little, some more than others."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for i, weight in enumerate(model.parameters()):
            weight.add_(torch.randn(weight.shape, generator=draw), alpha=0.02 * (1 + i % 5))


def save(module, folder):
    """A checkpoint folder with a tokenizer of bytes."""
    module.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
