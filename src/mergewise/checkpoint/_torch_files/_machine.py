"""A pickle of weights read as data: no name in it is imported, nothing in it is called.

A pickle is a program for a small stack machine. Its dangerous instructions look up a name and call
it. Here a name stays a name, and a call is understood if it makes a tensor, a dict or one of the
harmless things that training scripts store beside weights; any other is refused. Not even
``torch.load(weights_only=True)`` is used: it does call what its list allows, and corrupted memory
before torch 2.10 (CVE-2026-24747).

Source of the instructions: the standard library's `pickletools`.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from mergewise.checkpoint._files import shown, where
from mergewise.checkpoint._torch_files._calls import called, stored_object
from mergewise.checkpoint._torch_files._values import (
    DICTS,
    ODD_TENSORS,
    REBUILDS,
    Name,
    Opaque,
    Stored,
    is_harmless,
)
from mergewise.errors import CheckpointError

MAX_STEPS = 4_000_000
"""Instructions of one pickle; a tensor takes about thirty."""
_MAX_NAME = 300


class TruncatedPickleError(Exception):
    """The pickle goes on behind the bytes at hand."""


class BadPickleError(Exception):
    """What is wrong, for a message that begins with the file."""


_MARK = object()
_CONSTANTS = {b"N": None, b"\x88": True, b"\x89": False}
_NUMBERS = {b"K": "<B", b"M": "<H", b"J": "<i", b"G": ">d"}
_TEXTS = {b"X": "<I", b"\x8c": "<B", b"\x8d": "<Q", b"T": "<i", b"U": "<B"}
_BYTES = {b"B": "<I", b"C": "<B", b"\x8e": "<Q", b"\x96": "<Q"}
_PUTS = {b"q": "<B", b"r": "<I"}
_GETS = {b"h": "<B", b"j": "<I"}
_TUPLES = {b")": 0, b"\x85": 1, b"\x86": 2, b"\x87": 3}


def read_pickle(data: bytes | memoryview, start: int, path: Path) -> tuple[Any, int]:
    """The value of the pickle at `start`, and where it ends.

    Dicts, lists, tuples, texts, numbers, and the records of `_values`.

    Raises:
        TruncatedPickleError: if it does not end within `data`.
        CheckpointError: if it is damaged, too large, or names what weights do not need.
    """
    machine = _Machine(memoryview(data), start)
    try:
        return machine.run(), machine.at
    except BadPickleError as error:
        raise CheckpointError(f"{where(path)}: {error}") from None


class _Machine:
    def __init__(self, data: memoryview, start: int) -> None:
        self.data = data
        self.at = start
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(MAX_STEPS):
            code = bytes(self.take(1))
            if code == b".":
                return self.pop()
            self.step(code)
        raise BadPickleError(
            f"a pickle of more than {MAX_STEPS:,} steps; this is no file of weights"
        )

    def step(self, code: bytes) -> None:
        if self.literal(code) or self.memory(code) or self.container(code):
            return
        if code == b"c":
            self.push(self.name(self.line(), self.line()))
        elif code == b"\x93":
            name, module = self.pop(), self.pop()
            self.push(self.name(module, name))
        elif code in (b"R", b"\x81"):
            arguments, function = self.pop(), self.pop()
            self.push(self.call(function, arguments))
        elif code == b"b":
            self.build(self.pop())
        elif code == b"Q":
            self.push(stored_object(self.pop()))
        else:
            raise BadPickleError(f"damaged, or no pickle of weights: instruction {code!r}")

    def literal(self, code: bytes) -> bool:
        if code in _CONSTANTS:
            self.push(_CONSTANTS[code])
        elif code in _NUMBERS:
            self.push(self.unpack(_NUMBERS[code]))
        elif code in _TEXTS:
            self.push(self.text(self.take(self.unpack(_TEXTS[code]))))
        elif code in _BYTES:
            self.take(self.unpack(_BYTES[code]))
            self.push(Opaque("bytes"))
        elif code == b"\x8a":
            self.push(int.from_bytes(self.take(self.unpack("<B")), "little", signed=True))
        else:
            return False
        return True

    def memory(self, code: bytes) -> bool:
        """Protocol, frames, and what is kept for later use."""
        if code in _PUTS:
            self.memo[self.unpack(_PUTS[code])] = self.top()
        elif code == b"\x94":
            self.memo[len(self.memo)] = self.top()
        elif code in _GETS:
            key = self.unpack(_GETS[code])
            if key not in self.memo:
                raise BadPickleError(f"damaged pickle: nothing was stored under {key}")
            self.push(self.memo[key])
        elif code == b"\x80":
            if (version := self.unpack("<B")) > 5:
                raise BadPickleError(f"pickle protocol {version}; 0 to 5 are known")
        elif code == b"\x95":
            self.take(8)
        elif code == b"0":
            self.pop()
        elif code == b"(":
            self.stack.append(_MARK)
        else:
            return False
        return True

    def container(self, code: bytes) -> bool:
        if code in _TUPLES:
            count = _TUPLES[code]
            items = [self.pop() for _ in range(count)]
            self.push(tuple(reversed(items)))
        elif code == b"t":
            self.push(tuple(self.marked()))
        elif code in (b"}", b"]"):
            self.push({} if code == b"}" else [])
        elif code == b"\x8f":
            self.push(Opaque("set"))
        elif code in (b"s", b"u"):
            items = self.marked() if code == b"u" else [self.pop(), self.pop()][::-1]
            self.fill(items)
        elif code in (b"a", b"e", b"\x90"):
            items = [self.pop()] if code == b"a" else self.marked()
            self.extend(items)
        else:
            return False
        return True

    def name(self, module: Any, name: Any) -> Name:
        if not isinstance(module, str) or not isinstance(name, str):
            raise BadPickleError("damaged pickle: a name expected")
        found = Name(module, name)
        text = str(found)
        known = text in DICTS or text in REBUILDS or text in ODD_TENSORS
        if not (known or found.storage or is_harmless(found)):
            raise BadPickleError(_refusal(found))
        return found

    def call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise BadPickleError("damaged pickle: a call of something that has no name")
        try:
            return called(function, arguments)
        except (TypeError, ValueError, IndexError):
            raise BadPickleError(
                f"damaged pickle: {function} with {len(arguments)} unfit arguments"
            ) from None

    def build(self, state: Any) -> None:
        target = self.top()
        if not isinstance(target, dict | Opaque | Stored):
            raise BadPickleError(f"damaged pickle: a state of {type(target).__name__}")
        del state  # of an ordered dict: `_metadata`, versions of modules

    def fill(self, items: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, dict | Opaque) or len(items) % 2:
            raise BadPickleError("damaged pickle: items of something that is no dict")
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                # hashing a nested tuple can take for ever, and no weight has such a name
                plain = isinstance(key, str | int | float | None)
                target[key if plain else Opaque(type(key).__name__)] = value

    def extend(self, items: list[Any]) -> None:
        target = self.top()
        if isinstance(target, list):
            target += items
        elif not isinstance(target, Opaque):
            raise BadPickleError("damaged pickle: items of something that is no list")

    def take(self, count: int) -> memoryview:
        if count < 0:
            raise BadPickleError("damaged pickle: a negative length")
        end = self.at + count
        if end > len(self.data):
            raise TruncatedPickleError
        part, self.at = self.data[self.at : end], end
        return part

    def unpack(self, kind: str) -> Any:
        return struct.unpack(kind, self.take(struct.calcsize(kind)))[0]

    def line(self) -> str:
        limit = self.at + _MAX_NAME
        window = bytes(self.data[self.at : limit])
        length = window.find(b"\n")
        if length < 0:
            if limit > len(self.data):
                raise TruncatedPickleError
            raise BadPickleError("damaged pickle: a name of too many characters")
        self.at += length + 1
        return self.text(window[:length])

    def text(self, raw: bytes | memoryview) -> str:
        try:
            return bytes(raw).decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise BadPickleError("damaged pickle: text that is not UTF-8") from None

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def top(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise BadPickleError("damaged pickle: its stack is empty")
        return self.stack[-1]

    def pop(self) -> Any:
        value = self.top()
        self.stack.pop()
        return value

    def marked(self) -> list[Any]:
        """Everything above the last mark."""
        for i in range(len(self.stack) - 1, -1, -1):
            if self.stack[i] is _MARK:
                found = self.stack[i + 1 :]
                del self.stack[i:]
                return found
        raise BadPickleError("damaged pickle: its stack is empty")


def _refusal(name: Name) -> str:
    text = shown(str(name))
    if name.module.startswith(("torch.nn.", "__torch__")) or ".modeling_" in name.module:
        return (
            f"a whole model was pickled, with its class ({text}), not its weights alone; where you "
            "trust the file, load it and save model.state_dict()"
        )
    return (
        f"the pickle names {text}, which weights do not need, so it may run code; it was not "
        "opened any further. Where you trust the file, load it yourself and save its weights as "
        "safetensors"
    )
