"""The calls in a pickle of weights, as the records that they stand for."""

from __future__ import annotations

from typing import Any

from mergewise.checkpoint._torch_files._values import (
    DICTS,
    ODD_TENSORS,
    REBUILDS,
    Name,
    Opaque,
    Storage,
    Stored,
)

_MAX_RANK = 64
_MAX_COUNT = 2**63


def called(function: Name, arguments: tuple[Any, ...]) -> Any:
    """What a call gives: a tensor, a dict, a tuple, or something opaque.

    Raises:
        TypeError, ValueError, IndexError: if the arguments do not fit.
    """
    name = str(function)
    if name in REBUILDS:
        return _tensor(name, arguments)
    if name in ODD_TENSORS:
        return Stored(None, name, odd=ODD_TENSORS[name])
    if name in DICTS:
        if arguments:
            raise ValueError  # its items follow as instructions of their own
        return {}
    return Opaque(name)


def stored_object(key: Any) -> Storage:
    """The storage that a persistent id names; one that makes no sense has no elements.

    ``("storage", class, key, device, elements)``, and in old files what it is a view of.
    """
    if isinstance(key, tuple) and len(key) in (5, 6) and key[0] == "storage":
        kind, name, count = key[1], key[2], key[4]
        dtype = kind.storage if isinstance(kind, Name) else None
        if dtype and isinstance(name, str) and _is_count(count):
            return Storage(dtype, name, count, len(key) == 6 and key[5] is not None)
    return Storage("", "", 0)


def _tensor(name: str, arguments: tuple[Any, ...]) -> Stored:
    if name.endswith(("_rebuild_parameter", "_rebuild_parameter_with_state")):
        return _inner(arguments[0])
    if name.endswith("_rebuild_from_type_v2"):
        function, kind, inner = arguments[0], arguments[1], arguments[2]
        if str(function) not in REBUILDS or str(function) == name or not isinstance(inner, tuple):
            raise TypeError
        if str(kind) not in ("torch.Tensor", "torch.nn.parameter.Parameter"):
            return Stored(None, str(kind), odd="it is of a tensor subclass")
        return _inner(called(function, inner))
    storage, offset, shape, stride = arguments[:4]
    if not isinstance(storage, Storage) or not _is_count(offset):
        raise TypeError
    shape, stride = _counts(shape), _counts(stride)
    if len(shape) != len(stride):
        raise ValueError
    dtype, odd = storage.dtype, ""
    if name.endswith("_v3"):
        given = arguments[6]
        dtype = (given.dtype if isinstance(given, Name) else None) or ""
        odd = "" if dtype else f"its type is {given}"
    elif name.endswith("_v2") and len(arguments) > 6 and arguments[6]:
        odd = "it is stored conjugated or negated"
    return Stored(storage, dtype, offset, shape, stride, odd)


def _inner(value: Any) -> Stored:
    if not isinstance(value, Stored):
        raise TypeError
    return value


def _counts(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple | list) or len(value) > _MAX_RANK:
        raise TypeError
    if not all(_is_count(item) for item in value):
        raise ValueError
    return tuple(value)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MAX_COUNT
