"""Paths that people write, whatever they write."""

from __future__ import annotations

from pathlib import Path


def expanded(path: str | Path) -> Path:
    """`path` with ``~`` as the home folder; one of a user there is not stays as it is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def exists(path: Path) -> bool:
    """Whether there is such a file or folder; not, if its name is none that one can have."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
