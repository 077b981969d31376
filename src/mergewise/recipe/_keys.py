"""The keys of each level of the document, and how a stray one is explained."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from mergewise.recipe._nodes import Node
from mergewise.recipe._problems import Problems, shorten, suggest

TOP = (
    "merge_method", "models", "slices", "modules", "base_model", "parameters", "dtype",
    "out_dtype", "tokenizer_source", "tokenizer", "chat_template", "name", "seed", "exclude",
    "missing", "guide", "form", "batch_norm",
)  # fmt: skip
NATIVE = ("seed", "exclude", "missing", "guide", "form", "batch_norm")
MODEL = ("model", "parameters", "evidence")
SLICE = ("sources", "base_model", "parameters", "residual_weight")
SOURCE = ("model", "layer_range", "parameters", "evidence")
MODULE = ("models", "slices", "parameters")
TOKENIZER = ("source", "tokens", "pad_to_multiple_of")
TOKEN = ("source", "force")
TOKEN_SOURCE = ("kind", "model", "token", "token_id")

_EXPLAINED = {
    "out_path": "the output folder is not part of a recipe: mergewise merge RECIPE OUT",
    "output_path": "the output folder is not part of a recipe: mergewise merge RECIPE OUT",
    "residual_weight": "it belongs to a slice, and has no effect there either",
    "layer_range": "it belongs to a source: `slices: [{sources: [{model, layer_range}]}]`",
    "merge_method": "one method for the whole document: put it at the top level",
    "input_model_parameters": "write `parameters:` under each model",
}


def check_keys(
    node: Node,
    known: tuple[str, ...],
    where: str,
    problems: Problems,
    parameters: AbstractSet[str] = frozenset(),
) -> None:
    """Report every key of the mapping that is not `known`; those of `parameters` are misplaced."""
    assert isinstance(node.value, dict)
    for key in node.value:
        if key not in known:
            _stray(node, key, known, where, problems, parameters)


def _stray(
    node: Node,
    key: str,
    known: tuple[str, ...],
    where: str,
    problems: Problems,
    parameters: AbstractSet[str],
) -> None:
    at = node.key_position(key)
    what = f"{where}unknown key `{shorten(key)}`"
    if suggest(key, known) and key not in parameters:
        problems.unknown(at, what, key, known)
    elif key in parameters and "parameters" in known:
        problems.unknown(at, f"{what}; it is a parameter: put it under `parameters:` here")
    elif key in _EXPLAINED:
        problems.unknown(at, f"{what}; {_EXPLAINED[key]}")
    elif key in TOP:
        problems.unknown(at, f"{what}; it belongs to the top level of the document")
    elif "parameters" in known and (meant := suggest(key, parameters)):
        problems.unknown(at, f"{what}{meant} It is a parameter: put it under `parameters:` here")
    else:
        problems.unknown(at, f"{what}; expected here: {', '.join(known)}")
