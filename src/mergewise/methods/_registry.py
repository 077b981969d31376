"""Every method there is: those of this package, and those of installed plugins.

A module of `mergewise.methods` that defines a subclass of `Method` with a `name` has registered
it; other distributions use the entry point group ``mergewise.methods``, each entry a `Method`
subclass. Nothing else needs to be edited.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import pkgutil
from importlib.metadata import entry_points

from mergewise.errors import MergewiseError, UnknownMethodError
from mergewise.methods._base import Method


def _in_package() -> list[type[Method]]:
    import mergewise.methods as package

    found = []
    for info in pkgutil.iter_modules(package.__path__):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for value in vars(module).values():
            if (
                inspect.isclass(value)
                and issubclass(value, Method)
                and value.__module__ == module.__name__
                and "name" in vars(value)
            ):
                found.append(value)
    return found


@functools.cache
def all_methods() -> dict[str, Method]:
    """Every registered method by name, in alphabetical order.

    Raises:
        MergewiseError: if two methods claim one name.
    """
    classes = _in_package()
    classes += [point.load() for point in entry_points(group="mergewise.methods")]
    methods: dict[str, Method] = {}
    for cls in sorted(classes, key=lambda c: c.name):
        if cls.name in methods:
            other = type(methods[cls.name])
            raise MergewiseError(
                f"two merge methods are called {cls.name!r}: {other.__module__}.{other.__name__} "
                f"and {cls.__module__}.{cls.__name__}; uninstall one or rename it"
            )
        methods[cls.name] = cls()
    return methods


def get_method(name: str) -> Method:
    """The method called `name`.

    Raises:
        UnknownMethodError: with the closest names, if there is none.
    """
    methods = all_methods()
    if name in methods:
        return methods[name]
    close = difflib.get_close_matches(name, methods, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise UnknownMethodError(
        f"unknown merge method {name!r}; {hint}`mergewise methods` lists all {len(methods)}"
    )
