"""Which part of what was saved is the weights: a state dict, or one in a training checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergewise.checkpoint._files import shown, where
from mergewise.checkpoint._torch_files._values import Stored
from mergewise.errors import CheckpointError

CONTAINERS = ("state_dict", "model_state_dict", "model", "module", "weights", "params", "net")
"""Keys under which training scripts keep the weights, in order of preference."""
_MAX_NESTED = 4


def find_weights(value: Any, path: Path) -> tuple[dict[str, Stored], tuple[str, ...]]:
    """The weights' tensors by name, and a warning that names what else was saved.

    A dict with tensors is a state dict. One of `CONTAINERS`, or else the only entry that holds a
    state dict, is taken from a dict around it; what lies beside it is ignored.

    Raises:
        CheckpointError: if there is no state dict, or there are several.
    """
    return _Finder(path).find(value)


class _Finder:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._ignored: list[str] = []
        self._known: dict[int, int] = {}

    def find(self, value: Any) -> tuple[dict[str, Stored], tuple[str, ...]]:
        trail = ""
        for _ in range(_MAX_NESTED):
            if not isinstance(value, Mapping):
                break
            key = self._container(value)
            if key is None:
                return self._plain(value, trail)
            others = [(k, v) for k, v in value.items() if k != key]
            self._ignored += [f"{trail}{_label(k)}{self._count(v)}" for k, v in others]
            trail += f"{key}."
            value = value[key]
        kinds = {dict: "dicts in dicts", list: "a list", tuple: "a tuple", Stored: "one tensor"}
        raise self._error(
            "a dict of tensors by name expected, or one under "
            f"{', '.join(CONTAINERS[:3])}; got {kinds.get(type(value), 'something else')}: "
            "save model.state_dict()"
        )

    def _error(self, text: str) -> CheckpointError:
        return CheckpointError(f"{where(self._path)}: {text}")

    def _container(self, value: Mapping[Any, Any]) -> str | None:
        """The key of the state dict inside `value`; None if `value` itself is one."""
        inside = [key for key, v in value.items() if isinstance(key, str) and self._tensors(v)]
        for key in CONTAINERS:
            if key in inside:
                return key
        if any(isinstance(item, Stored) for item in value.values()):
            if inside:
                raise self._error(
                    f"tensors, and beside them more in {_some(inside)}; which are the weights? "
                    "Save the one state dict that you mean"
                )
            return None
        if len(inside) > 1:
            raise self._error(
                f"several dicts of tensors: {_some(inside)}; save the one that you mean"
            )
        return inside[0] if inside else None

    def _tensors(self, value: Any, within: bool = True) -> int:
        """How many tensors lie in a dict, and in dicts within; each dict is looked at once."""
        if not isinstance(value, Mapping):
            return 0
        key = 2 * id(value) + within
        if key not in self._known:
            items = value.values()
            own = sum(isinstance(item, Stored) for item in items)
            self._known[key] = own + sum(self._tensors(v, False) for v in items if within)
        return self._known[key]

    def _count(self, value: Any) -> str:
        count = self._tensors(value)
        return f" ({count:,} tensors)" if count else ""

    def _plain(
        self, value: Mapping[Any, Any], trail: str
    ) -> tuple[dict[str, Stored], tuple[str, ...]]:
        found: dict[str, Stored] = {}
        for key, item in value.items():
            if not isinstance(item, Stored):
                self._ignored.append(f"{trail}{_label(key)}")
            elif isinstance(key, str):
                found[key] = item
            else:
                raise self._error(
                    f"a tensor under the key {_label(key)}, where a name was expected; "
                    "save model.state_dict()"
                )
        if not found:
            raise self._error("it holds no tensors; save model.state_dict()")
        if not self._ignored:
            return found, ()
        text = f"{where(self._path)}: beside the weights, ignored: {_some(self._ignored)}"
        return found, (text,)


def _label(key: Any) -> str:
    plain = isinstance(key, str) and key.isprintable() and len(key) < 60
    return key if plain else shown(key, 40)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more
