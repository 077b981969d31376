"""The command line, a thin skin over the library's public functions."""

from __future__ import annotations

from mergewise.cli._app import cli, main

__all__ = ["cli", "main"]
