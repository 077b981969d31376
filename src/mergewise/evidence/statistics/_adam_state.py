"""Second moments of Adam in a training checkpoint's optimizer file, whoever wrote it."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.checkpoint import TORCH_NAMES, FileReader, TensorInfo, TensorRef, read_header
from mergewise.errors import EvidenceError

if TYPE_CHECKING:
    from torch import Tensor

SAFE_TORCH = (2, 10)
"""Before this release even `weights_only` could be made to corrupt memory (CVE-2026-24747)."""

MOMENT = "exp_avg_sq"


@dataclass(frozen=True)
class Slot:
    """What the optimizer keeps for one parameter.

    Attributes:
        name: the parameter's name, if the file tells it.
        shape: of its second moment; None if there is none, since it never had a gradient.
        load: reads the second moment.
        step: updates so far, if the file tells.
        beta2: decay of the second moment, if the file tells.
    """

    name: str | None
    shape: tuple[int, ...] | None
    load: Callable[[], Tensor]
    step: float | None = None
    beta2: float | None = None


@dataclass(frozen=True)
class OptimizerState:
    """An optimizer's state.

    Attributes:
        slots: in the optimizer's order of parameters.
        groups: how many parameters each of its groups has; None if the file does not tell.
    """

    path: Path
    slots: tuple[Slot, ...]
    groups: tuple[int, ...] | None = None


def read_state(path: Path, allow_pickle: bool) -> OptimizerState:
    """Open an optimizer file: ``.safetensors``, or a pickle of torch if that is allowed.

    Raises:
        EvidenceError: if it is a pickle and pickles are not allowed, or this torch is too old
            to read one safely, or it holds no second moments of Adam.
        CheckpointError: if it is not there, or broken.
    """
    if path.suffix == ".safetensors":
        return _from_safetensors(path)
    _check_pickle(path, allow_pickle)
    return _from_dict(path, _unpickled(path))


def _check_pickle(path: Path, allowed: bool) -> None:
    if not path.is_file():
        raise EvidenceError(f"{path}: no such file; expected an optimizer's state")
    with path.open("rb") as file:
        start = file.read(2)
    if start != b"PK" and start[:1] != b"\x80":
        raise EvidenceError(
            f"{path}: no optimizer's state; a trainer's optimizer.pt, or safetensors with keys "
            f"{MOMENT}.NAME, expected"
        )
    if not allowed:
        raise EvidenceError(
            f"{path}: a pickle, which is not read unasked, since a hostile one may run code; if "
            "you trust where it comes from, set the option adam.allow_pickle=true, or save the "
            f"second moments as safetensors with keys {MOMENT}.NAME"
        )
    found = tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2])
    if found < SAFE_TORCH:
        raise EvidenceError(
            f"{path}: pickles are read with torch {'.'.join(map(str, SAFE_TORCH))} or later only, "
            f"whose restricted reader has no known hole; this is {torch.__version__}; update "
            "torch, or save the second moments as safetensors"
        )


def _unpickled(path: Path) -> Any:
    try:
        return torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None
        )
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else "it is broken"
        raise EvidenceError(
            f"{path}: not read: {first[:300]}; expected tensors and numbers only, as "
            "`torch.save(optimizer.state_dict())` writes"
        ) from None


def _from_dict(path: Path, value: Any) -> OptimizerState:
    for key in ("optimizer", "optimizer_state_dict", "optimizer_states"):
        if isinstance(value, Mapping) and "param_groups" not in value and key in value:
            value = value[key]
            value = value[0] if isinstance(value, list) and value else value
    state, groups = (
        (value.get("state"), value.get("param_groups")) if isinstance(value, Mapping) else (0, 0)
    )
    if not isinstance(state, Mapping) or not isinstance(groups, list):
        raise EvidenceError(
            f"{path}: not an optimizer's state; expected a dictionary with `state` and "
            "`param_groups`, as `torch.save(optimizer.state_dict())` writes"
        )
    slots = [slot for group in groups for slot in _slots(path, group, state)]
    if all(slot.shape is None for slot in slots):
        raise EvidenceError(_no_moments(path, state))
    return OptimizerState(path, tuple(slots), tuple(len(group["params"]) for group in groups))


def _slots(path: Path, group: Any, state: Mapping[Any, Any]) -> list[Slot]:
    keys = group.get("params") if isinstance(group, Mapping) else None
    if not isinstance(keys, list):
        raise EvidenceError(f"{path}: a group of parameters without `params`; is it complete?")
    names = group.get("param_names")
    if not isinstance(names, list) or len(names) != len(keys):
        names = [key if isinstance(key, str) else None for key in keys]
    betas = group.get("betas")
    beta2 = float(betas[1]) if isinstance(betas, tuple | list) and len(betas) == 2 else None
    return [_slot(state.get(k), n, beta2) for k, n in zip(keys, names, strict=True)]


def _slot(entry: Any, name: str | None, beta2: float | None) -> Slot:
    moment = entry.get(MOMENT) if isinstance(entry, Mapping) else None
    if not isinstance(moment, torch.Tensor) or not moment.is_floating_point():
        return Slot(name, None, lambda: torch.zeros(()))
    step = entry.get("step")
    steps = float(step) if isinstance(step, torch.Tensor | int | float) else None
    return Slot(name, tuple(moment.shape), lambda: moment, steps, beta2)


def _no_moments(path: Path, state: Mapping[Any, Any]) -> str:
    some = next((e for e in state.values() if isinstance(e, Mapping)), {})
    held = ", ".join(str(key) for key in list(some)[:6]) or "nothing"
    return (
        f"{path}: no second moments of Adam ({MOMENT}, floating point); it keeps {held} for a "
        "parameter. Adafactor's and 8-bit states are not read"
    )


_KEY = re.compile(rf"(?:state\.(?P<index>\d+)\.{MOMENT}|{MOMENT}\.(?P<a>.+)|(?P<b>.+)\.{MOMENT})")


def _from_safetensors(path: Path) -> OptimizerState:
    header = read_header(path)
    beta2 = _number(path, header.metadata, "beta2")
    step = _number(path, header.metadata, "step")
    named: dict[str, TensorInfo] = {}
    numbered: dict[int, TensorInfo] = {}
    for key, info in header.tensors.items():
        if (match := _KEY.fullmatch(key)) is None:
            continue
        if match["index"] is not None:
            numbered[int(match["index"])] = info
        else:
            named[match["a"] or match["b"]] = info
    if not named and not numbered:
        raise EvidenceError(
            f"{path}: no second moments; expected keys {MOMENT}.NAME, NAME.{MOMENT} or "
            f"state.NUMBER.{MOMENT}"
        )
    if numbered and (named or sorted(numbered) != list(range(len(numbered)))):
        raise EvidenceError(
            f"{path}: second moments by number must be numbered from 0 without gaps, and not be "
            f"mixed with names; got {len(numbered)} numbers up to {max(numbered)} and "
            f"{len(named)} names"
        )
    names: list[str | None] = [*named] if named else [None] * len(numbered)
    found = [*named.values()] if named else [numbered[i] for i in range(len(numbered))]
    steps = [_step(path, header.tensors, info.name, step) for info in found]
    return OptimizerState(
        path,
        tuple(
            Slot(name, info.shape, _reader(path, info), at, beta2)
            for name, info, at in zip(names, found, steps, strict=True)
        ),
    )


def _number(path: Path, metadata: Mapping[str, str], key: str) -> float | None:
    if key not in metadata:
        return None
    try:
        return float(metadata[key])
    except ValueError:
        raise EvidenceError(
            f"{path}: metadata {key}: a number expected, got {metadata[key][:40]!r}"
        ) from None


def _step(
    path: Path, tensors: Mapping[str, TensorInfo], key: str, default: float | None
) -> float | None:
    info = tensors.get(key.replace(MOMENT, "step"))
    if info is None or info.numel != 1 or info.dtype not in TORCH_NAMES:
        return default
    return float(_read(path, info))


def _reader(path: Path, info: TensorInfo) -> Callable[[], Tensor]:
    if not TORCH_NAMES.get(info.dtype, "").startswith(
        ("float16", "bfloat16", "float32", "float64")
    ):
        raise EvidenceError(f"{path}: {info.name} is {info.dtype}; expected F16, BF16, F32 or F64")
    return lambda: _read(path, info)


def _read(path: Path, info: TensorInfo) -> Tensor:
    buffer = bytearray(info.nbytes)
    ref = TensorRef(info.name, info.dtype, info.shape, info.start, info.end, path)
    if buffer:
        with FileReader([path]) as reader:
            reader.read_into(ref, 0, memoryview(buffer))
    kind: torch.dtype = getattr(torch, TORCH_NAMES[info.dtype])
    if not buffer:
        return torch.zeros(info.shape, dtype=kind)
    return torch.frombuffer(buffer, dtype=kind).reshape(info.shape)
