"""What a method can be told: typed parameters with defaults, ranges and one-line meanings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final


class _Required:
    def __repr__(self) -> str:
        return "required"


REQUIRED: Final = _Required()


@dataclass(frozen=True)
class Param:
    """One parameter of a method.

    Every parameter may differ from tensor to tensor; a `per_model` one may also differ from
    expert to expert. `native` marks those that the mergekit dialect does not have.

    Attributes:
        kind: `float`, `int`, `bool` or `str`.
        default: the value when the recipe is silent; `REQUIRED` if it must speak, `None` if the
            method treats silence as a case of its own.
        choices: the allowed strings, if there are only some.
    """

    kind: type
    default: Any
    help: str
    per_model: bool = False
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    choices: tuple[str, ...] = ()
    native: bool = False

    @property
    def required(self) -> bool:
        return self.default is REQUIRED

    @property
    def range(self) -> str:
        """The allowed values in words: ``0 <= x <= 1``, ``sum | count``, or nothing."""
        if self.choices:
            return " | ".join(self.choices)
        left = f"{self.ge:g} <= " if self.ge is not None else ""
        left = f"{self.gt:g} < " if self.gt is not None else left
        right = f" <= {self.le:g}" if self.le is not None else ""
        right = f" < {self.lt:g}" if self.lt is not None else right
        return f"{left}x{right}" if left or right else ""

    def problem(self, value: Any) -> str | None:
        """Why `value` cannot be this parameter, in words, or None if it can."""
        if value is None:
            return None if self.default is None else f"a value ({self.kind.__name__}) expected"
        number = isinstance(value, int | float) and not isinstance(value, bool)
        fits = {
            float: number,
            int: number and float(value).is_integer(),
            # mergekit recipes in the wild write 1.0 / 0 for switches
            bool: isinstance(value, bool) or (number and value in (0, 1)),
            str: isinstance(value, str),
        }[self.kind]
        if not fits:
            return f"{self.kind.__name__} expected, got {value!r}"
        if self.choices and value not in self.choices:
            return f"one of {', '.join(self.choices)} expected, got {value!r}"
        if self.kind in (float, int):
            if value != value or value in (float("inf"), float("-inf")):
                return f"a finite number expected, got {value!r}"
            low = (self.ge is not None and value < self.ge) or (
                self.gt is not None and value <= self.gt
            )
            high = (self.le is not None and value > self.le) or (
                self.lt is not None and value >= self.lt
            )
            if low or high:
                return f"{self.range} expected, got {value!r}"
        return None

    def convert(self, value: Any) -> Any:
        """`value` as the declared type; call only after `problem` returned None."""
        return None if value is None else self.kind(value)


class Settings:
    """Resolved parameters by attribute: ``p.normalize``, ``p.weight[i]`` for expert i.

    `lambda` is a Python keyword, so it is read as ``p.lambda_``.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.__dict__.update({("lambda_" if k == "lambda" else k): v for k, v in values.items()})

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"no parameter or coefficient {name!r}; have {sorted(self.__dict__)}")

    def __repr__(self) -> str:
        return f"Settings({self.__dict__})"
