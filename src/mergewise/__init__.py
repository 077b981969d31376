"""mergewise: merge trained neural networks, guided by evidence."""

from __future__ import annotations

__version__ = "0.1.0"
