"""Torch, imported when a tensor is first touched.

Method files declare their parameters beside their arithmetic, and `mergewise plan` reads the
parameters. Importing torch costs about a second, so those files write
``from mergewise._lazy import torch`` and pay for it only when they compute.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as torch
else:

    class _LazyTorch:
        def __getattr__(self, name: str) -> Any:
            import torch as module

            return getattr(module, name)

    torch = _LazyTorch()
