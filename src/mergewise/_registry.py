"""Find what a package and installed plugins offer: methods, statistics, evaluators.

A module of the package that defines a subclass of its base class with a `name` has registered it;
other distributions use an entry point group, each entry a subclass. Nothing else is edited.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any, TypeVar

from mergewise.errors import MergewiseError

T = TypeVar("T")


def registered(package: str, base: type[T], what: str) -> dict[str, type[T]]:
    """All subclasses of `base` by their `name`, in alphabetical order.

    Args:
        package: full name of the package whose public modules are searched; also the name of
            the entry point group.
        what: what they are called in an error, such as ``merge methods``.

    Raises:
        MergewiseError: if two claim one name.
    """
    classes: list[Any] = [*_in_package(package, base)]
    classes += [point.load() for point in entry_points(group=package)]
    found: dict[str, Any] = {}
    for cls in sorted(classes, key=lambda c: c.name):
        if cls.name in found:
            other = found[cls.name]
            raise MergewiseError(
                f"two {what} are called {cls.name!r}: {other.__module__}.{other.__name__} "
                f"and {cls.__module__}.{cls.__name__}; uninstall one or rename it"
            )
        found[cls.name] = cls
    return found


def _in_package(package: str, base: type[T]) -> Iterator[type[T]]:
    home = importlib.import_module(package)
    for info in pkgutil.iter_modules(home.__path__):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{package}.{info.name}")
        for value in vars(module).values():
            if (
                inspect.isclass(value)
                and issubclass(value, base)
                and value.__module__ == module.__name__
                and "name" in vars(value)
            ):
                yield value


def chosen(
    what: str, name: str, known: Mapping[str, T], command: str, error: type[MergewiseError]
) -> T:
    """The one of `known` called `name`.

    Args:
        what: what they are called, such as ``merge method``.
        command: lists them.

    Raises:
        MergewiseError: of the type `error`, with the closest names, if there is none.
    """
    if name in known:
        return known[name]
    word = name.lower().replace("-", "_")
    close = [word] if word in known else difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise error(f"unknown {what} {name!r}; {hint}`{command}` lists all {len(known)}")
