"""YAML text to nodes: safe tags only, bounded depth and size, no key twice.

The dialect is PyYAML's YAML 1.1 with two changes. Floats are those of YAML 1.2, so that ``1e-3``
is a number. Dates, base-60 numbers and octal ``010`` are text: no recipe wants them, and model
names look like them. Booleans stay 1.1 (``yes``, ``off``), because recipes in the wild use them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import yaml

from mergewise.recipe._nodes import Node, Scalar
from mergewise.recipe._problems import Position, Problems, fail, shorten

MAX_DEPTH = 64
MAX_NODES = 50_000
_TAG = "tag:yaml.org,2002:"
_TRUE = {"yes", "true", "on"}


class _Loader(yaml.SafeLoader):
    """Composes nodes, never objects; counts them as it goes."""

    yaml_implicit_resolvers = {}
    depth = 0
    count = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        self.count += 1
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.depth > MAX_DEPTH:
            raise _Limit(mark, f"nested more than {MAX_DEPTH} levels deep")
        if self.count > MAX_NODES:
            raise _Limit(mark, f"more than {MAX_NODES} values")
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Limit(Exception):
    def __init__(self, mark: yaml.Mark, what: str) -> None:
        self.mark = mark
        self.what = what


def _resolver(kind: str, pattern: str, first: str) -> None:
    _Loader.add_implicit_resolver(_TAG + kind, re.compile(f"^(?:{pattern})$"), list(first))


_resolver("bool", "yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF",
          "yYnNtTfFoO")  # fmt: skip
_resolver("int", r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+", "-+0123456789")
_resolver(
    "float",
    r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    "-+0123456789.",
)
_resolver("merge", "<<", "<")
# PyYAML files the resolver of the empty scalar under the empty string
_Loader.add_implicit_resolver(_TAG + "null", re.compile("^(?:~|null|Null|NULL|)$"), ["~", "n", "N"])
_Loader.add_implicit_resolver(_TAG + "null", re.compile("^$"), [""])


class _Dumper(yaml.SafeDumper):
    """Quotes text that either dialect would take for something else."""

    yaml_implicit_resolvers = {
        first: [
            *_Loader.yaml_implicit_resolvers.get(first, ()),
            *yaml.SafeDumper.yaml_implicit_resolvers.get(first, ()),
        ]
        for first in {*_Loader.yaml_implicit_resolvers, *yaml.SafeDumper.yaml_implicit_resolvers}
    }


def dump_documents(documents: Sequence[object]) -> str:
    """Plain data as YAML that `parse_documents` reads back as the same.

    Raises:
        yaml.YAMLError: if something in it is not plain data.
    """
    text: str = yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def parse_documents(text: str, path: str, problems: Problems) -> list[Node]:
    """All documents in `text`, empty ones left out.

    Raises:
        RecipeError: for a syntax error, or a document that is too deep or too large.
    """
    try:
        loader = _Loader(text)
        try:
            roots = [node for node in _composed(loader) if node is not None]
        finally:
            loader.dispose()
    except _Limit as limit:
        raise fail(
            _at(limit.mark, path), f"the document is {limit.what}; a recipe never needs that"
        ) from None
    except yaml.reader.ReaderError as error:
        raise fail(
            _offset(text, int(error.position), path),
            f"character U+{_code(error.character):04X} is not allowed in YAML; remove it",
        ) from None
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, text, path) from None
    convert = _Converter(path, problems)
    nodes = [convert.node(root, ()) for root in roots]
    return [node for node in nodes if not node.is_null]


def _composed(loader: _Loader) -> Iterator[yaml.Node | None]:
    while loader.check_node():
        yield loader.get_node()


def _at(mark: yaml.Mark, path: str) -> Position:
    return Position(path, mark.line + 1, mark.column + 1)


def _offset(text: str, offset: int, path: str) -> Position:
    before = text[:offset]
    return Position(path, before.count("\n") + 1, offset - before.rfind("\n"))


def _code(character: object) -> int:
    return character if isinstance(character, int) else ord(str(character)[:1] or "\0")


def _syntax_error(error: yaml.MarkedYAMLError, text: str, path: str) -> Exception:
    mark = error.problem_mark or error.context_mark
    at = _at(mark, path) if mark else Position(path)
    what = error.problem or error.context or "not valid YAML"
    return fail(at, f"YAML syntax: {shorten(what, 200)}{_hint(error, text, at)}")


def _hint(error: yaml.MarkedYAMLError, text: str, at: Position) -> str:
    first = next((x for x in text.splitlines() if x.strip() and not x.lstrip().startswith("#")), "")
    what = error.problem or ""
    if first.startswith((" ", "\t")) and at.column == 1:
        return (
            f"; the document begins indented ({first.strip()!r}) but this line does not: "
            "start all top-level keys in the same column"
        )
    if "\\t" in what:
        return "; indent with spaces, not tabs"
    if "mapping values are not allowed" in what:
        return (
            "; a `key: value` cannot begin here: is the line that opens the block above it "
            "missing (`models:`?), or is text with a colon unquoted?"
        )
    if "undefined alias" in what:
        return "; define it first as `&name`, or quote text that begins with `*`"
    if "unknown escape" in what:
        return "; in \"double quotes\" a backslash is special: use 'single quotes' for such paths"
    return "; check indentation, brackets and quotes"


class _Converter:
    """PyYAML's nodes to ours. Aliases are expanded, so the count is taken again."""

    def __init__(self, path: str, problems: Problems) -> None:
        self.path = path
        self.problems = problems
        self.count = 0

    def node(self, source: yaml.Node, above: tuple[int, ...]) -> Node:
        at = _at(source.start_mark, self.path)
        self.count += 1
        if self.count > MAX_NODES:
            raise fail(at, f"aliases expand to more than {MAX_NODES} values; write the values out")
        if id(source) in above:
            raise fail(at, "this anchor contains an alias to itself; write the value out")
        if len(above) > MAX_DEPTH:
            raise fail(at, f"aliases nest more than {MAX_DEPTH} levels deep; write the values out")
        above = (*above, id(source))
        if isinstance(source, yaml.MappingNode) and self._tag(source, "map"):
            return self._mapping(source, at, above)
        if isinstance(source, yaml.SequenceNode) and self._tag(source, "seq"):
            return Node([self.node(item, above) for item in source.value], at)
        if isinstance(source, yaml.ScalarNode):
            return Node(self._scalar(source, at), at, raw=source.value)
        return Node(None, at)

    def _tag(self, source: yaml.Node, *allowed: str) -> bool:
        """Whether the tag is one of `allowed`; reports it if not."""
        if source.tag.removeprefix(_TAG) in allowed:
            return True
        tag = source.tag.replace(_TAG, "!!")
        at = _at(source.start_mark, self.path)
        self.problems.error(
            at, f"tag `{shorten(tag)}` is refused: recipes are plain data; remove it"
        )
        return False

    def _mapping(self, source: yaml.MappingNode, at: Position, above: tuple[int, ...]) -> Node:
        out: dict[str, Node] = {}
        keys: dict[str, Position] = {}
        merged: list[Node] = []
        for key, value in source.value:
            place = _at(key.start_mark, self.path)
            if not isinstance(key, yaml.ScalarNode):
                self.problems.error(place, "a key must be text, not a list or a mapping")
            elif key.tag == _TAG + "merge":
                merged += self._merged(value, above)
            elif key.value in out:
                self.problems.error(
                    place,
                    f"key `{shorten(key.value)}` is here twice; the first is on line "
                    f"{keys[key.value].line}: remove one",
                )
            else:
                self._check_text(key.value, place)
                out[key.value] = self.node(value, above)
                keys[key.value] = place
        for node in merged:
            for name, child in node.value.items() if isinstance(node.value, dict) else ():
                out.setdefault(name, child)
                keys.setdefault(name, node.keys[name])
        return Node(out, at, keys=keys)

    def _merged(self, source: yaml.Node, above: tuple[int, ...]) -> list[Node]:
        node = self.node(source, above)
        nodes = node.value if isinstance(node.value, list) else [node]
        for item in nodes:
            if not isinstance(item.value, dict):
                self.problems.error(item.position, f"`<<` merges mappings; this is {item.kind}")
        return nodes

    def _check_text(self, text: str, at: Position) -> None:
        """Escapes can make half characters, which no file name or JSON can hold."""
        if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
            self.problems.error(at, "half a character (U+D800 to U+DFFF) is not text; remove it")

    def _scalar(self, source: yaml.ScalarNode, at: Position) -> Scalar:
        text: str = source.value
        self._check_text(text, at)
        if not self._tag(source, "str", "bool", "int", "float", "null", "merge"):
            return text
        try:
            match source.tag.removeprefix(_TAG):
                case "null":
                    return None
                case "bool":
                    return text.lower() in _TRUE
                case "int":
                    return int(text, 16 if text.startswith("0x") else 10)
                case "float":
                    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:
            self.problems.error(at, f"`{shorten(text)}` cannot be read as a number")
        return text
