"""Model references: ``path[@revision][+lora[@revision]]`` or the same as a mapping."""

from __future__ import annotations

from dataclasses import dataclass

from mergewise.recipe._keys import check_keys
from mergewise.recipe._nodes import Node
from mergewise.recipe._problems import Problems, shorten

_KEYS = ("model", "lora", "override_architecture")
_PATH_KEYS = ("path", "revision")


@dataclass(frozen=True)
class ModelRef:
    """Where a model is, as written: a folder, a file, or a Hub repository.

    Attributes:
        path: folder, file, ``org/name``, or the name of an earlier stage.
        revision: branch, tag or commit on the Hub.
        lora: an adapter to apply on top.
        override_architecture: architecture name to be used instead of the one in the config.
    """

    path: str
    revision: str | None = None
    lora: ModelRef | None = None
    override_architecture: str | None = None

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """Read a reference such as ``org/name@main+../adapter``.

        Raises:
            ValueError: with the reason, if it is not a reference.
        """
        parts = text.strip().split("+")
        if len(parts) > 2:
            raise ValueError("at most one `+lora`; merge adapters one after another")
        model = _part(parts[0])
        return model if len(parts) == 1 else cls(model.path, model.revision, _part(parts[1]))

    def __str__(self) -> str:
        text = self.path if self.revision is None else f"{self.path}@{self.revision}"
        return text if self.lora is None else f"{text}+{self.lora}"


def _part(text: str) -> ModelRef:
    path, at, revision = text.partition("@")
    if "@" in revision:
        raise ValueError(
            "more than one `@`; a path that contains one is written {path: ..., revision: ...}"
        )
    if not path or (at and not revision):
        raise ValueError("text before and after `@` and `+`, as in org/name@main+org/adapter,")
    return ModelRef(path, revision or None)


def read_reference(node: Node, where: str, problems: Problems) -> ModelRef | None:
    """The reference at `node`; None, with the problem reported, if it is not one."""
    if isinstance(node.value, str):
        return _from_text(node, where, problems)
    if isinstance(node.value, dict):
        return _from_mapping(node, where, problems)
    hint = "; put it in quotes" if isinstance(node.value, int | float) else ""
    problems.error(
        node.position, f"{where}: a model (path or org/name) expected, got {node.kind}{hint}"
    )
    return None


def _from_text(node: Node, where: str, problems: Problems) -> ModelRef | None:
    text = str(node.value)
    if any(ord(c) < 32 for c in text):
        problems.error(node.position, f"{where}: a model reference is one line of plain characters")
        return None
    try:
        return ModelRef.parse(text)
    except ValueError as error:
        problems.error(
            node.position, f"{where}: bad model reference {shorten(text)!r}: {error} expected"
        )
    return None


def _from_mapping(node: Node, where: str, problems: Problems) -> ModelRef | None:
    if node.has("path"):
        return _from_path(node, where, problems)
    check_keys(node, _KEYS, f"{where}: ", problems)
    inner = node.get("model")
    if inner is None:
        problems.error(node.position, f"{where}: `path` or `model` expected in a model reference")
        return None
    model = read_reference(inner, f"{where}.model", problems)
    lora_node = node.get("lora")
    lora = read_reference(lora_node, f"{where}.lora", problems) if lora_node else None
    architecture = node.get("override_architecture")
    if architecture is not None and not isinstance(architecture.value, str):
        problems.error(
            architecture.position,
            f"{where}.override_architecture: text expected, got {architecture.kind}",
        )
    if model is None:
        return None
    if lora is not None and model.lora is not None:
        problems.error(node.position, f"{where}: the adapter is given twice, by `+` and by `lora`")
    return ModelRef(
        model.path, model.revision, lora or model.lora, architecture.raw if architecture else None
    )


def _from_path(node: Node, where: str, problems: Problems) -> ModelRef | None:
    check_keys(node, _PATH_KEYS, f"{where}: ", problems)
    path, revision = node.get("path"), node.get("revision")
    if path is None or not isinstance(path.value, str) or not path.value.strip():
        place = path.position if path else node.position
        problems.error(place, f"{where}.path: text expected")
        return None
    if revision is not None and isinstance(revision.value, dict | list):
        problems.error(revision.position, f"{where}.revision: text expected, got {revision.kind}")
        return None
    # a commit of digits alone is a number to YAML, so what was written counts
    return ModelRef(path.value, revision.raw if revision else None)
