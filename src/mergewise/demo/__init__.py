"""A demonstration on real text: train a base and two experts, merge them, compare."""

from __future__ import annotations

from mergewise.demo._run import run_demo

__all__ = ["run_demo"]
