"""Recipes as people publish them, from the shared data: where they lie, what mergekit says."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

# what each loadable file needs `lenient` for
LENIENT = {
    "issue__legacy_embed_slerp": ["embed_slerp"],
    "nuslerp__chipalign_geodesic": ["weight", "geodesic"],
    "sce__base6_misplaced_topk_and_typo": ["select_topk", "dype"],
    "sce__many_unused_parameters": ["smooth", "allow_negative_weights"],
}


def recipes_folder() -> Path | None:
    roots = [os.environ.get("MERGEWISE_DATA"), Path(__file__).parents[2] / "shared" / "data"]
    found = [Path(root) / "recipes" for root in roots if root]
    return next((path for path in found if (path / "manifest.json").is_file()), None)


@functools.cache
def manifest() -> list[dict[str, Any]]:
    folder = recipes_folder()
    if folder is None:
        return []
    found: list[dict[str, Any]] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return found


def names(*verdicts: str) -> list[str]:
    """The recipes whose verdict begins with one of these."""
    return [m["name"] for m in manifest() if m["verdict"].startswith(verdicts)]


def path_of(name: str) -> Path:
    folder = recipes_folder()
    assert folder is not None
    return folder / f"{name}.yml"


GOOD = names("ok", "multi-ok")
