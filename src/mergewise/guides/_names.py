"""What models are called: by users, and in names of files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from mergewise.errors import GuideError


def place_of(name: str, labels: Sequence[str], setting: str) -> int:
    """The place of the model that is called so in the recipe, or by the last part of its path.

    Raises:
        GuideError: if it is none of them, or several.
    """
    found = [i for i, label in enumerate(labels) if name == label]
    found = found or [i for i, label in enumerate(labels) if name == Path(label).name]
    if len(found) != 1:
        raise GuideError(f"{setting}: one of {', '.join(labels)} expected, got {name!r}")
    return found[0]


def file_name(label: str) -> str:
    """A model's name as part of a file's."""
    plain = re.sub(r"[^\w.-]+", "_", Path(label).name, flags=re.ASCII).strip(".")
    return plain or "model"
