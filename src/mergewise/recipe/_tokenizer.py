"""The keys about tokenizers and chat templates: their shape, not what they do."""

from __future__ import annotations

from typing import Any

from mergewise.recipe._jinja import jinja_problem
from mergewise.recipe._keys import TOKEN, TOKEN_SOURCE, TOKENIZER, check_keys
from mergewise.recipe._nodes import Node
from mergewise.recipe._problems import Problems, shorten
from mergewise.recipe._reference import read_reference

TEMPLATES = ("auto", "alpaca", "chatml", "llama3", "mistral", "exaone")
_MIN_TEMPLATE = 20


def read_tokenizer(document: Node, problems: Problems) -> dict[str, Any] | None:
    """`tokenizer`, or the older `tokenizer_source`, as a dict with at least ``source``."""
    old, new = document.get("tokenizer_source"), document.get("tokenizer")
    if old is not None and new is not None:
        problems.error(
            document.key_position("tokenizer"),
            "`tokenizer` and `tokenizer_source` exclude each other; keep `tokenizer`",
        )
    if new is not None:
        return _tokenizer(new, problems)
    return None if old is None else {"source": _source(old, "tokenizer_source", problems)}


def _source(node: Node, where: str, problems: Problems) -> str:
    if node.value in ("union", "base"):
        return str(node.value)
    return str(read_reference(node, where, problems))


def _tokenizer(node: Node, problems: Problems) -> dict[str, Any] | None:
    if not isinstance(node.value, dict):
        problems.error(
            node.position,
            f"tokenizer: a mapping such as {{source: union}} expected, got {node.kind}",
        )
        return None
    check_keys(node, TOKENIZER, "tokenizer: ", problems)
    source, tokens, pad = (node.get(key) for key in TOKENIZER)
    out: dict[str, Any] = {"source": "union"}
    if source is not None:
        out["source"] = _source(source, "tokenizer.source", problems)
    if tokens is not None:
        out["tokens"] = _tokens(tokens, problems)
    if pad is not None:
        out["pad_to_multiple_of"] = pad.value
        _check_int(pad, "tokenizer.pad_to_multiple_of", 1, problems)
    return out


def _check_int(node: Node, where: str, least: int, problems: Problems) -> None:
    number = isinstance(node.value, int) and not isinstance(node.value, bool)
    if not number or int(str(node.value)) < least:
        problems.error(
            node.position, f"{where}: a whole number from {least} expected, got {shorten(node.raw)}"
        )


def _tokens(node: Node, problems: Problems) -> Any:
    if not isinstance(node.value, dict):
        problems.error(
            node.position, f"tokenizer.tokens: a mapping of tokens expected, got {node.kind}"
        )
        return None
    for token, child in node.items():
        where = f"tokenizer.tokens.{shorten(token)}"
        if not isinstance(child.value, dict):
            problems.error(
                child.position, f"{where}: a mapping {{source, force}} expected, got {child.kind}"
            )
            continue
        check_keys(child, TOKEN, f"{where}: ", problems)
        source, force = child.get("source"), child.get("force")
        if source is not None:
            _token_source(source, f"{where}.source", problems)
        if force is not None and not isinstance(force.value, bool):
            problems.error(force.position, f"{where}.force: true or false expected")
    return node.plain()


def _token_source(node: Node, where: str, problems: Problems) -> None:
    if not node.has("kind"):
        read_reference(node, where, problems)
        return
    check_keys(node, TOKEN_SOURCE, f"{where}: ", problems)
    kind, model, token, token_id = (node.get(key) for key in TOKEN_SOURCE)
    if kind is None or kind.value not in ("zero", "model_token"):
        problems.error(
            (kind or node).position,
            f"{where}.kind: model_token or zero expected",
            kind.raw if kind else "",
            ("model_token", "zero"),
        )
        return
    if kind.value == "zero":
        return
    if model is None:
        problems.error(node.position, f"{where}: `model` is missing")
    else:
        read_reference(model, f"{where}.model", problems)
    if (token is None) == (token_id is None):
        problems.error(node.position, f"{where}: one of `token` and `token_id` expected")
    if token_id is not None:
        _check_int(token_id, f"{where}.token_id", 0, problems)


def read_chat_template(node: Node | None, problems: Problems) -> str | None:
    """A known template's name, or Jinja text."""
    if node is None:
        return None
    text = node.value
    if isinstance(text, str) and text in TEMPLATES:
        return text
    if isinstance(text, str) and "{" in text and len(text) >= _MIN_TEMPLATE:
        problem = jinja_problem(text)
        if problem is not None:
            problems.error(node.position, f"chat_template: {problem}")
        return text
    problems.error(
        node.position,
        f"chat_template: {', '.join(TEMPLATES)}, or a Jinja template expected, "
        f"got {shorten(node.raw) if node.raw else node.kind}",
        node.raw,
        TEMPLATES,
    )
    return None
