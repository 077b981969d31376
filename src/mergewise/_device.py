"""The torch device to compute on."""

from __future__ import annotations

from mergewise._lazy import torch
from mergewise.errors import MergewiseError


def pick_device(device: str) -> str:
    """The torch device to compute on.

    Raises:
        MergewiseError: if it does not exist here.
    """
    if device == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    found: torch.device | None
    try:
        found = torch.device(device)
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise MergewiseError(f"device {device!r}: expected auto, cpu, or cuda:N")
    if found.type == "cpu":
        return "cpu"
    if (found.index or 0) >= torch.cuda.device_count():
        raise MergewiseError(
            f"device {device!r}: {torch.cuda.device_count()} CUDA devices are visible; "
            "use --device cpu, or one that exists"
        )
    return device
