"""Imports point one way, and nothing on the way to a plan imports torch."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src/mergewise"

COMMON = {
    "errors",
    "constants",
    "_units",
    "_paths",
    "_allocator",
    "_exports",
    "_lazy",
    "_registry",
    "_device",
    "__init__",
    "_stopping",
}
LIBRARY = {"methods", "recipe", "checkpoint", "vocabulary", "plan", "engine"}
ALLOWED = {
    "methods": {"errors", "_lazy", "_registry", "_stopping"},
    "recipe": {*COMMON, "methods"},
    "checkpoint": COMMON,
    "evidence": {*COMMON, "methods", "recipe", "checkpoint"},
    "vocabulary": {*COMMON, "checkpoint"},
    "plan": {*COMMON, "methods", "recipe", "checkpoint", "vocabulary", "evidence"},
    "engine": {*COMMON, *LIBRARY, "evidence"},
    "report": {*COMMON, *LIBRARY, "evidence", "guides", "transforms"},
    "transforms": {*COMMON, *LIBRARY, "evidence", "_settings"},
    "forms": {*COMMON, *LIBRARY, "transforms"},
    "guides": {*COMMON, *LIBRARY, "evidence", "transforms", "forms", "_settings"},
    "trajectories": {*COMMON, *LIBRARY, "guides", "_settings"},
    "demo": {*COMMON, *LIBRARY, "evidence", "guides", "transforms", "forms", "report"},
}
SKINS = {"cli", "web"}
TENSORS = {"torch", "numpy", "transformers", "safetensors", "tokenizers"}
FILES = sorted(ROOT.rglob("*.py"))


def area(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> list[str]:
    """Full names of all modules imported anywhere in a tree."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            # `from mergewise import plan` names a package or a lazily loaded function
            found += [f"{node.module}.{a.name}" for a in node.names]
    return found


def ours(path: Path) -> set[str]:
    """The parts of mergewise that a file imports, other than its own."""
    found = set()
    for name in imports(ast.parse(path.read_text("utf-8"))):
        parts = name.split(".")
        if parts[0] == "mergewise":
            inside = len(parts) > 1 and not parts[1].startswith("__")
            found.add(parts[1] if inside else "__init__")
    return found - {area(path)}


def at_import(path: Path) -> set[str]:
    """First names of what a file imports when it is imported itself."""

    def visible(node: ast.AST):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            yield child
            yield from visible(child)

    body = list(visible(ast.parse(path.read_text("utf-8"))))
    statements = [n for n in body if isinstance(n, ast.Import | ast.ImportFrom)]
    return {name.split(".")[0] for node in statements for name in imports(node)}


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_every_package_says_what_it_may_import():
    packages = {area(path) for path in FILES if path.parent != ROOT}
    assert packages <= ALLOWED.keys() | SKINS


def test_imports_point_one_way():
    inner = [path for path in FILES if area(path) in ALLOWED]
    astray = {named(p): found for p in inner if (found := ours(p) - ALLOWED[area(p)])}
    assert astray == {}


def private(path: Path) -> list[str]:
    """What a file imports from other packages' modules that are theirs alone."""
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    modules = [n.module.split(".") for n in nodes if isinstance(n, ast.ImportFrom) and n.module]
    return [
        ".".join(parts)
        for parts in modules
        if parts[0] == "mergewise"
        and parts[1:2] != [area(path)]
        and any(part.startswith("_") for part in parts[2:])
    ]


def test_packages_take_from_others_what_those_offer():
    ours = [path for path in FILES if path.parent != ROOT]
    assert {named(p): found for p in ours if (found := private(p))} == {}


def test_what_is_imported_when_asked_for_is_there_and_typed():
    for package in ("evidence", "evidence.models", "evidence.statistics"):
        module = importlib.import_module(f"mergewise.{package}")
        assert all(getattr(module, name) is not None for name in dir(module))
        tree = ast.parse(Path(module.__file__).read_text("utf-8"))
        block = next(n for n in tree.body if isinstance(n, ast.If))
        typed = {alias.name for node in block.body for alias in node.names}
        assert typed == set(dir(module)) - set(getattr(module, "__all__", ()))


def around(package: str) -> set[str]:
    """Packages inside a package whose imports come back to them, over whatever modules."""
    root = ROOT / package
    start = f"mergewise.{package}."
    graph: dict[str, set[str]] = {}
    for path in root.rglob("*.py"):
        names = imports(ast.parse(path.read_text("utf-8")))
        to = {name.removeprefix(start).split(".")[0] for name in names if name.startswith(start)}
        here = path.relative_to(root).parts[0].removesuffix(".py")
        graph.setdefault(here, set()).update(to - {here})

    def reached(name: str) -> set[str]:
        found: set[str] = set()
        left = [name]
        while left:
            new = graph.get(left.pop(), set()) - found
            found |= new
            left += new
        return found

    return {folder.name for folder in root.iterdir() if folder.name in reached(folder.name)}


@pytest.mark.parametrize("package", ["checkpoint", "evidence", "guides", "transforms"])
def test_packages_in_a_package_import_one_way(package):
    assert around(package) == set()


def test_nothing_below_imports_a_skin():
    below = [p for p in FILES if area(p) not in {*SKINS, "__main__"}]
    assert {named(p): found for p in below if (found := ours(p) & SKINS)} == {}


def test_tensor_libraries_are_imported_when_used():
    assert {named(p): found for p in FILES if (found := at_import(p) & TENSORS)} == {}


def test_the_checks_see_imports(tmp_path):
    file = tmp_path / "x.py"
    file.write_text(
        "import torch\ndef f():\n    import numpy\n    from mergewise.cli import main\n"
    )
    assert at_import(file) == {"torch"}
    assert "mergewise.cli.main" in imports(ast.parse(file.read_text()))
