"""Environment variables and fixed numbers, read and named in one place."""

from __future__ import annotations

import os
from pathlib import Path

BLOCK_ELEMENTS = 1 << 20
"""Elements per block for compiled loops: larger blocks mean fewer calls. Part of what a result
depends on (sums are taken block by block), so it is not an option."""

PLAIN_BLOCK_ELEMENTS = 1 << 18
"""Elements per block in plain torch, where every operation makes a float32 copy of the block."""

FUSE_FROM_ELEMENTS = 1 << 22
"""Below this many output elements, compiling kernels costs more than it saves."""

DEFAULT_SHARD_BYTES = 5_000_000_000


def cache_dir() -> Path:
    """Where compiled kernels are kept: MERGEWISE_CACHE, or the user's cache folder."""
    given = os.environ.get("MERGEWISE_CACHE")
    if given:
        return Path(given)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "mergewise"


def yield_processors() -> None:
    """Let threads that wait for one another sleep, unless OMP_WAIT_POLICY says otherwise.

    By default they spin. Beside any other busy process that made `collect` eight times slower
    here. Must be called before torch is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def fuse_allowed() -> bool:
    """False if MERGEWISE_FUSE=0: run every method in plain torch."""
    return os.environ.get("MERGEWISE_FUSE", "1") != "0"
