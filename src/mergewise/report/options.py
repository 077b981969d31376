"""Parameters of anything, as plain values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mergewise.methods import Param


def option_dict(param: Param) -> dict[str, Any]:
    """One parameter, ready for JSON."""
    return {
        "type": param.kind.__name__,
        "required": param.required,
        "default": None if param.required else param.default,
        "allowed": param.range,
        "help": param.help,
    }
