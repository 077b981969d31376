"""Every method there is: those of this package, and those of installed plugins."""

from __future__ import annotations

import functools

from mergewise._registry import chosen, registered
from mergewise.errors import UnknownMethodError
from mergewise.methods._base import Method
from mergewise.methods._names import spelled


@functools.cache
def all_methods() -> dict[str, Method]:
    """Every registered method by name, in alphabetical order.

    Raises:
        MergewiseError: if two methods claim one name.
    """
    classes = registered("mergewise.methods", Method, "merge methods")  # type: ignore[type-abstract]
    return {name: cls() for name, cls in classes.items()}


def get_method(name: str) -> Method:
    """The method called `name`.

    Raises:
        UnknownMethodError: with what it is here, or the closest names, if there is none.
    """
    if name not in all_methods() and (here := spelled(name, all_methods())):
        raise UnknownMethodError(f"no merge method is called {name!r}; here that is {here}")
    return chosen("merge method", name, all_methods(), "mergewise methods", UnknownMethodError)
