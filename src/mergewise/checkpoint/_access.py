"""What may be opened beyond plain safetensors: the caller says so, a recipe never can."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Access:
    """Formats that are opened only where the caller asks for it, and which of several is read.

    Attributes:
        pickle: PyTorch files (``.bin``, ``.pt``, ``.pth``, ``.ckpt``), for their weights only.
        dequantize: quantised weights, as the floating-point numbers that they stand for.
        variant: of files that diffusers wrote in variants (``.fp16.``), the one to read.
    """

    pickle: bool = False
    dequantize: bool = False
    variant: str | None = None


_PLAIN = Access()
_current: ContextVar[Access] = ContextVar("access", default=_PLAIN)


def access() -> Access:
    """What is allowed here and now."""
    return _current.get()


@contextmanager
def allow(
    *, pickle: bool | None = None, dequantize: bool | None = None, variant: str | None = None
) -> Iterator[Access]:
    """Allow formats, or forbid them again, while a ``with`` lasts; None leaves as it is.

    Args:
        pickle: open PyTorch files. Their pickles are read as data: nothing that they name is
            imported or called, and what weights do not need is refused.
        dequantize: open quantised weights; the result is not quantised.
        variant: read this variant where a folder of diffusers has it, such as ``fp16``.

    Example:
        >>> import mergewise
        >>> with mergewise.allow(pickle=True):  # doctest: +SKIP
        ...     mergewise.merge("recipe.yml", "merged")
    """
    given: dict[str, Any] = {"pickle": pickle, "dequantize": dequantize, "variant": variant}
    chosen = replace(access(), **{k: v for k, v in given.items() if v is not None})
    token = _current.set(chosen)
    try:
        yield chosen
    finally:
        _current.reset(token)
