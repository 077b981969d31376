"""Record a method's elementwise arithmetic as an expression graph.

A method's functions are called once with `Expr` objects in place of tensors and of float
settings; what they do with them is recorded. Anything that is not elementwise, or that would
make the graph depend on values, raises `Untraceable`, and the engine runs the method in plain
torch instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


class Untraceable(Exception):
    """The method does something that is not a recordable elementwise operation."""


class Expr:
    """A node: an operation on earlier nodes. `kind` is 'f' (float32), 'i' (int32), 'b' (mask)."""

    __slots__ = ("args", "kind", "op")
    __hash__ = object.__hash__

    def __init__(self, op: str, args: tuple[Any, ...], kind: str) -> None:
        self.op = op
        self.args = args
        self.kind = kind

    def __bool__(self) -> bool:
        raise Untraceable("branches on a value")

    def __iter__(self) -> Any:
        raise Untraceable("iterates over a tensor")

    def __getattr__(self, name: str) -> Any:
        if name in _METHODS:
            return lambda *args, **kwargs: _call(name, (self, *args), kwargs)
        raise Untraceable(f"uses .{name}")

    def __add__(self, other: Any) -> Expr:
        return _floats("add", self, other)

    def __sub__(self, other: Any) -> Expr:
        return _floats("sub", self, other)

    def __mul__(self, other: Any) -> Expr:
        return _floats("mul", self, other)

    def __truediv__(self, other: Any) -> Expr:
        return _div(self, other)

    def __radd__(self, other: Any) -> Expr:
        return _floats("add", other, self)

    def __rsub__(self, other: Any) -> Expr:
        return _floats("sub", other, self)

    def __rmul__(self, other: Any) -> Expr:
        return _floats("mul", other, self)

    def __rtruediv__(self, other: Any) -> Expr:
        return _div(other, self)

    def __pow__(self, power: Any) -> Expr:
        return _pow(self, power)

    def __neg__(self) -> Expr:
        return _floats("neg", self)

    def __abs__(self) -> Expr:
        return _floats("abs", self)

    def __invert__(self) -> Expr:
        return _invert(self)

    def __and__(self, other: Any) -> Expr:
        return _logic("and", self, other)

    def __rand__(self, other: Any) -> Expr:
        return _logic("and", other, self)

    def __or__(self, other: Any) -> Expr:
        return _logic("or", self, other)

    def __ror__(self, other: Any) -> Expr:
        return _logic("or", other, self)

    def __gt__(self, other: Any) -> Expr:
        return _compare("gt", self, other)

    def __ge__(self, other: Any) -> Expr:
        return _compare("ge", self, other)

    def __lt__(self, other: Any) -> Expr:
        return _compare("lt", self, other)

    def __le__(self, other: Any) -> Expr:
        return _compare("le", self, other)

    def __eq__(self, other: Any) -> Expr:  # type: ignore[override]
        return _compare("eq", self, other)

    def __ne__(self, other: Any) -> Expr:  # type: ignore[override]
        return _compare("ne", self, other)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Expr:
        return _call(getattr(func, "__name__", str(func)), args, kwargs or {})


def _wrap(value: Any) -> Expr:
    if isinstance(value, Expr):
        return value
    if isinstance(value, bool):
        return Expr("const_b", (value,), "b")
    if isinstance(value, int | float):
        return Expr("const_f", (float(value),), "f")
    raise Untraceable(f"mixes in a {type(value).__name__}")


def _floats(op: str, *values: Any) -> Expr:
    return Expr(op, tuple(as_float(_wrap(v)) for v in values), "f")


def as_float(e: Expr) -> Expr:
    """A mask used as a number counts 1.0 where true."""
    if e.kind == "i":
        raise Untraceable("integer arithmetic")
    return e if e.kind == "f" else Expr("to_float", (e,), "f")


def _is_number(e: Expr) -> bool:
    """Whether the expression is one number for all elements."""
    if e.op in ("const_f", "const_b", "fs"):
        return True
    return bool(e.args) and all(isinstance(a, Expr) and _is_number(a) for a in e.args)


def _div(a: Any, b: Any) -> Expr:
    left, right = _wrap(a), _wrap(b)
    if _is_number(left) and not _is_number(right):
        # torch computes number / tensor as reciprocal * number
        return _floats("mul", _floats("div", 1.0, right), left)
    return _floats("div", left, right)


def _compare(op: str, a: Any, b: Any) -> Expr:
    left, right = _wrap(a), _wrap(b)
    if "i" in (left.kind, right.kind):
        return Expr(op, (left, right), "b")
    return Expr(op, (as_float(left), as_float(right)), "b")


def _logic(op: str, a: Any, b: Any) -> Expr:
    left, right = _wrap(a), _wrap(b)
    if left.kind != "b" or right.kind != "b":
        raise Untraceable("bitwise operation on numbers")
    return Expr(op, (left, right), "b")


def _clamp(x: Any, min: Any = None, max: Any = None) -> Expr:
    out = as_float(_wrap(x))
    if min is not None:
        out = _floats("max", out, min)
    return out if max is None else _floats("min", out, max)


def _where(mask: Any, a: Any, b: Any) -> Expr:
    condition, left, right = _wrap(mask), _wrap(a), _wrap(b)
    if condition.kind != "b":
        raise Untraceable("where on numbers")
    if left.kind == right.kind == "b":
        return Expr("where", (condition, left, right), "b")
    return Expr("where", (condition, as_float(left), as_float(right)), "f")


def _sign(x: Any) -> Expr:
    return _floats("sub", _compare("gt", x, 0.0), _compare("lt", x, 0.0))


def _pow(x: Any, power: Any) -> Expr:
    if power != 2:
        raise Untraceable("a power other than 2")
    return _floats("mul", x, x)


def _invert(x: Any) -> Expr:
    mask = _wrap(x)
    if mask.kind != "b":
        raise Untraceable("bitwise operation on numbers")
    return Expr("not", (mask,), "b")


_METHODS: dict[str, Callable[..., Expr]] = {
    "add": lambda a, b: _floats("add", a, b),
    "sub": lambda a, b: _floats("sub", a, b),
    "mul": lambda a, b: _floats("mul", a, b),
    "div": _div,
    "true_divide": _div,
    "neg": lambda a: _floats("neg", a),
    "abs": lambda a: _floats("abs", a),
    "sqrt": lambda a: _floats("sqrt", a),
    "square": lambda a: _floats("mul", a, a),
    "pow": _pow,
    "sign": _sign,
    "where": _where,
    "clamp": _clamp,
    "clamp_min": lambda a, min: _clamp(a, min=min),
    "clamp_max": lambda a, max: _clamp(a, max=max),
    "maximum": lambda a, b: _floats("max", a, b),
    "minimum": lambda a, b: _floats("min", a, b),
    "gt": lambda a, b: _compare("gt", a, b),
    "ge": lambda a, b: _compare("ge", a, b),
    "lt": lambda a, b: _compare("lt", a, b),
    "le": lambda a, b: _compare("le", a, b),
    "eq": lambda a, b: _compare("eq", a, b),
    "ne": lambda a, b: _compare("ne", a, b),
    "logical_and": lambda a, b: _logic("and", a, b),
    "logical_or": lambda a, b: _logic("or", a, b),
    "logical_not": _invert,
    "zeros_like": lambda a: _wrap(0.0),
    "ones_like": lambda a: _wrap(1.0),
    "float": lambda a: as_float(_wrap(a)),
}


def _call(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Expr:
    if name not in _METHODS:
        raise Untraceable(f"uses torch.{name}")
    try:
        return _METHODS[name](*args, **kwargs)
    except TypeError as problem:
        raise Untraceable(f"calls {name} in a way that is not recorded: {problem}") from None
