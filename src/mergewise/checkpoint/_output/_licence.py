"""The licence of a merge, from what the inputs' model cards state."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from mergewise.checkpoint._files import read_small
from mergewise.errors import CheckpointError

_MAX_CARD = 4_000_000
_MAX_FRONT_MATTER = 65_536
_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")


def stated_licence(folder: Path) -> str | None:
    """The licence in the front matter of a folder's README.md, lower case; None if not stated.

    For ``license: other`` it is the ``license_name``, if there is one.
    """
    import yaml

    try:
        text = read_small(folder / "README.md", _MAX_CARD).decode("utf-8", "replace")
        front = _front_matter(text)
        fields = yaml.safe_load(front) if front else None
    except (CheckpointError, yaml.YAMLError, RecursionError, ValueError):
        return None
    if not isinstance(fields, dict):
        return None
    value = fields.get("license")
    if value == "other":
        value = fields.get("license_name", value)
    return value.lower() if isinstance(value, str) and _IDENTIFIER.fullmatch(value) else None


def _front_matter(text: str) -> str | None:
    match = re.match(r"\ufeff?---\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    # an alias could multiply a few lines into gigabytes, and front matter needs none
    if match is None or len(match[1]) > _MAX_FRONT_MATTER or re.search(r"[:\-]\s+[&*]", match[1]):
        return None
    return match[1]


def merged_licence(stated: Sequence[tuple[str, str | None]]) -> tuple[str, str | None]:
    """The licence to declare, and a note when the inputs do not agree.

    Args:
        stated: each input's name and licence, None where unknown; two may have one name.

    Returns:
        The common licence and None, or ``other`` and a sentence listing the inputs' licences.
    """
    values = {licence for _, licence in stated}
    only = next(iter(values)) if len(values) == 1 else None
    if only is not None and only != "other":
        return only, None
    each = ", ".join(f"{name}: {licence or 'not stated'}" for name, licence in stated)
    return "other", f"The inputs' licences all apply to the merge ({each})."
