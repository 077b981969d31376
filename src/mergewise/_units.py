"""Sizes in words: ``5GB`` is 5·10⁹ bytes, ``4GiB`` is 4·2³⁰."""

from __future__ import annotations

import re

from mergewise.errors import MergewiseError

_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def parse_bytes(text: str | int) -> int:
    """A number of bytes from ``5GB``, ``500 MB``, ``4GiB`` or a plain number.

    Raises:
        MergewiseError: if it is no positive size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", str(text), re.IGNORECASE)
    if found:
        number, unit, binary = found[1], found[2].lower(), found[3]
        factors = _BINARY if binary and unit else _FACTORS
        size = int(float(number) * factors[unit])
        if size > 0:
            return size
    raise MergewiseError(f"{text!r} is not a size; expected such as 5GB, 500MB or 4GiB")


def show_bytes(size: float) -> str:
    """``2.2 GB``: three digits at most, decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if size >= 99.5 or unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
