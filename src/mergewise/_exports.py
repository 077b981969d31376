"""What a package offers, imported when first asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def exports(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a package (PEP 562).

    Type checkers read the names from imports ``as`` themselves under ``TYPE_CHECKING``.

    Args:
        homes: the modules of the package, by whose names what they offer is listed, separated by
            spaces.
    """
    home = {name: module for module, names in homes.items() for name in names.split()}

    def find(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module '{package}' has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{home[name]}"), name)

    def offered() -> list[str]:
        return sorted({*home, *getattr(sys.modules[package], "__all__", ())})

    return find, offered
