"""Single top-level values: types, seed, patterns, layer ranges."""

from __future__ import annotations

import re
from typing import Any

from mergewise.recipe._nodes import Node
from mergewise.recipe._problems import Problems, shorten

DTYPES = ("bfloat16", "float16", "float32", "float64")
MISSING = ("error", "available", "copy")
BATCH_NORM = ("pool", "merge", "copy")
MAX_SEED = 2**63 - 1
_ALIASES = {
    "bf16": "bfloat16", "fp16": "float16", "f16": "float16", "half": "float16",
    "fp32": "float32", "f32": "float32", "float": "float32", "fp64": "float64",
    "f64": "float64", "double": "float64",
}  # fmt: skip


def read_dtype(document: Node, key: str, problems: Problems) -> str | None:
    """A floating-point type's name without ``torch.``."""
    node = document.get(key)
    if node is None:
        return None
    name = node.value.removeprefix("torch.") if isinstance(node.value, str) else None
    if name in DTYPES:
        return name
    got = shorten(node.raw) if node.raw else node.kind
    problems.error(
        node.position, f"{key}: one of {', '.join(DTYPES)} expected, got {got}{_dtype_hint(got)}"
    )
    return None


def _dtype_hint(name: str) -> str:
    low = name.lower().removeprefix("torch.")
    if low in _ALIASES:
        return f"; did you mean `{_ALIASES[low]}`?"
    if re.match(r"i?q\d|gguf|gptq|awq|nf4|fp4|fp8|float8", low):
        return ", which is a quantised format: merge in bfloat16, then quantise the result"
    if re.match(r"u?int\d*|bool", low):
        return ": weights are not merged as integers"
    return ""


def read_name(node: Node | None, problems: Problems) -> str | None:
    """The stage's name: one line of text."""
    if node is None:
        return None
    if not isinstance(node.value, dict | list) and node.raw.strip() and node.raw.isprintable():
        return node.raw
    got = node.kind if isinstance(node.value, dict | list) else repr(shorten(node.raw))
    problems.error(node.position, f"name: one line of text expected, got {got}")
    return None


def read_seed(node: Node | None, problems: Problems) -> int | None:
    if node is None:
        return None
    if type(node.value) is int and 0 <= node.value <= MAX_SEED:
        return node.value
    got = shorten(node.raw) if node.raw else node.kind
    problems.error(node.position, f"seed: a whole number from 0 to 2^63 - 1 expected, got {got}")
    return None


def read_missing(node: Node | None, problems: Problems) -> Any:
    return _choice(node, "missing", MISSING, problems)


def read_batch_norm(node: Node | None, problems: Problems) -> Any:
    return _choice(node, "batch_norm", BATCH_NORM, problems)


def _choice(node: Node | None, key: str, among: tuple[str, ...], problems: Problems) -> Any:
    """One of a few words; the first if none is given."""
    if node is None or node.value in among:
        return among[0] if node is None else node.value
    got = shorten(node.raw) if node.raw else node.kind
    expected = f"{key}: one of {', '.join(among)} expected, got {got}"
    problems.error(node.position, expected, node.raw, among)
    return among[0]


def read_exclude(node: Node | None, problems: Problems) -> tuple[str, ...]:
    """Globs: a list of texts, or one text."""
    if node is None:
        return ()
    items = node.value if isinstance(node.value, list) else [node]
    patterns = []
    for item in items:
        if isinstance(item.value, str) and item.value:
            patterns.append(item.value)
        else:
            problems.error(
                item.position,
                f"exclude: a pattern of tensor names such as '*.norm.weight' expected, "
                f"got {item.kind}",
            )
    return tuple(patterns)


def read_evidence(node: Node | None, where: str, problems: Problems) -> tuple[str, ...]:
    """Paths of evidence files: a list of them, or one."""
    if node is None:
        return ()
    items = node.value if isinstance(node.value, list) else [node]
    paths = []
    for item in items:
        if isinstance(item.value, str) and item.value:
            paths.append(item.value)
        else:
            problems.error(
                item.position,
                f"{where}: the path of a file that `mergewise collect` wrote expected, "
                f"got {item.kind}",
            )
    return tuple(paths)


def read_layer_range(node: Node, where: str, problems: Problems) -> tuple[int, int] | None:
    """``[from, to]`` with 0 <= from < to."""
    items = node.value if isinstance(node.value, list) else []
    numbers = [item.value for item in items if type(item.value) is int]
    if len(items) != 2 or len(numbers) != 2:
        got = f"a list of {len(items)}" if len(items) not in (0, 2) else _range_text(node)
        problems.error(
            node.position, f"{where}: two whole numbers, [from, to), expected, got {got}"
        )
        return None
    first, last = numbers
    if not 0 <= first < last:
        problems.error(
            node.position,
            f"{where}: 0 <= from < to expected, got [{first}, {last}]; "
            "the first layer is 0 and `to` is not included",
        )
        return None
    return first, last


def _range_text(node: Node) -> str:
    if isinstance(node.value, list):
        return "[" + ", ".join(shorten(n.raw) or n.kind for n in node.value) + "]"
    return shorten(node.raw) or node.kind


def read_guide(node: Node | None, problems: Problems) -> dict[str, Any] | None:
    """The guide's name, settings and data, as written; guides check them."""
    if node is None:
        return None
    name = node.get("name") if isinstance(node.value, dict) else None
    if name is None or not isinstance(name.value, str):
        problems.error(
            node.position,
            f"guide: a mapping with the guide's `name` expected, got {node.kind}; "
            "`mergewise guides` lists them",
        )
        return None
    found: dict[str, Any] = node.plain()
    return found
