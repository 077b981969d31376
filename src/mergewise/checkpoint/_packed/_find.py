"""Which tensors of a checkpoint are packed: one table of quantisation methods."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from mergewise.checkpoint._access import access
from mergewise.checkpoint._config import text_config
from mergewise.checkpoint._dtypes import CODES
from mergewise.checkpoint._files import shown, where
from mergewise.checkpoint._json import read_json
from mergewise.checkpoint._model import Checkpoint, TensorRef
from mergewise.checkpoint._packed._ref import PackedRef, Packing, packed_ref
from mergewise.errors import CheckpointError, NotBuiltYetError

KEYS = ("quantization_config", "compression_config")
_ASIDE = re.compile(r"(.+\.)?([kvq]_scale|(input|output|act(ivation)?)_(global_)?(scale|zero_point)"
                    r"(_ub)?|(input|output)_(scale_inv|amax|observer\S*))")  # fmt: skip
"""Scales of activations and of the cache: they are about arithmetic, not about weights."""
_LEFT = re.compile(
    r".+[._](weight_scale(_inv)?|weight_packed|weight_shape|weight_zero_point|weight_g_idx"
    r"|weight_global_scale|qweight|qzeros|g_idx|SCB|absmax|nested_absmax|quant_map"
    r"|nested_quant_map|quant_state\.\S+|blocks|scales)"
)
_BESIDE = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
_MAX_BESIDE = 1_000_000
_EIGHT = re.compile("F8_|F4|F6_")


@dataclass
class Search:
    """A checkpoint's tensors while packed ones are looked for.

    Attributes:
        tensors: as they are stored.
        settings: what the config says of the quantisation.
        dtype: safetensors code of the results.
        found: packed tensors, by the names of their results.
        used: names of stored tensors that belong to one of them.
    """

    checkpoint: Checkpoint
    settings: Mapping[str, Any]
    dtype: str

    def __post_init__(self) -> None:
        self.tensors = self.checkpoint.tensors
        self.found: dict[str, PackedRef] = {}
        self.used: set[str] = set()

    def add(self, name: str, shape: tuple[int, ...], packing: Packing, *more: str) -> None:
        """Note a packed tensor.

        Args:
            more: names of stored tensors that belong to it and are not read.
        """
        if name in self.found or (name in self.tensors and name != packing.parts[0].name):
            self.refuse(name, "is in the checkpoint packed and unpacked")
        if 0 in shape:
            self.refuse(name, f"holds nothing: shape {list(shape)}")
        self.found[name] = packed_ref(name, self.dtype, shape, packing)
        self.used |= {part.name for part in packing.parts} | {n for n in more if n in self.tensors}

    def refuse(self, name: str, what: str) -> NoReturn:
        file = self.tensors[name].file if name in self.tensors else self.checkpoint.path
        raise CheckpointError(f"{where(file)}: tensor {shown(name)} {what}; fetch it again")

    def need(self, name: str, beside: str) -> TensorRef:
        """A stored tensor that another one cannot be read without."""
        if name not in self.tensors:
            self.refuse(beside, f"is packed, and {shown(name)}, which it needs, is missing")
        return self.tensors[name]

    def check(self, ref: TensorRef, dtypes: tuple[str, ...], *shapes: tuple[int, ...]) -> None:
        """Refuse a stored tensor of another type, or of none of the shapes."""
        if ref.dtype not in dtypes:
            self.refuse(ref.name, f"has type {ref.dtype}, expected {' or '.join(dtypes)}")
        if shapes and ref.shape not in shapes:
            wanted = " or ".join(str(list(shape)) for shape in shapes)
            self.refuse(ref.name, f"has shape {list(ref.shape)}, expected {wanted}")


Finder = Callable[[Search], None]


def _finders() -> dict[str, Finder]:
    from mergewise.checkpoint._packed._bnb import find_bnb
    from mergewise.checkpoint._packed._compressed import find_compressed
    from mergewise.checkpoint._packed._fp8 import find_fp8
    from mergewise.checkpoint._packed._gptq import find_awq, find_gptq
    from mergewise.checkpoint._packed._mxfp4 import find_mxfp4

    return {
        "fp8": find_fp8,
        "fbgemm_fp8": find_fp8,
        "compressed-tensors": find_compressed,
        "gptq": find_gptq,
        "awq": find_awq,
        "mxfp4": find_mxfp4,
        "bitsandbytes": find_bnb,
    }


def quantisation(config: Mapping[str, Any] | None) -> tuple[str, Mapping[str, Any]] | None:
    """The config's settings of a quantisation, and the key under which they stand."""
    for part in (config, text_config(dict(config)) if config else None):
        for key in KEYS:
            if part and part.get(key):
                settings = part[key]
                return key, settings if isinstance(settings, dict) else {}
    return None


def with_settings(config: dict[str, Any] | None, folder: Path) -> dict[str, Any] | None:
    """The config with what an older checkpoint says in a file of its own.

    Raises:
        CheckpointError: if that file is broken.
    """
    if quantisation(config):
        return config
    for name, method in _BESIDE.items():
        if (folder / name).is_file():
            stated = read_json(folder / name, "quantisation settings", _MAX_BESIDE)
            return {**(config or {}), KEYS[0]: {"quant_method": method, **stated}}
    return config


def method_of(settings: Mapping[str, Any]) -> str | None:
    """The method's name: ``gptq``; None if it is not stated."""
    method = settings.get("quant_method")
    if method is None and ("config_groups" in settings or "format" in settings):
        return "compressed-tensors"
    if method is None and (settings.get("load_in_8bit") or settings.get("load_in_4bit")):
        return "bitsandbytes"
    return method if isinstance(method, str) else None


def refuse_unasked(path: object, settings: Mapping[str, Any], key: str) -> None:
    """Raise unless the method is known and the caller allows to dequantise.

    Raises:
        NotBuiltYetError: for a method that is not read.
        CheckpointError: without `--dequantize`.
    """
    method = method_of(settings)
    named = f"{where(str(path))}: the weights are quantised ({key}: {shown(method or 'unnamed')})"
    if method not in _finders():
        known = ", ".join(_finders())
        raise NotBuiltYetError(
            f"{named}, by a method that this version cannot dequantise (it can: {known}); "
            "use the unquantised checkpoint"
        )
    if not access().dequantize:
        raise CheckpointError(
            f"{named}; use the unquantised checkpoint, or pass --dequantize "
            "(mergewise.allow(dequantize=True)) to read them as the numbers that they stand for"
        )


def unpacked_checkpoint(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with its quantised tensors as what they stand for; from headers alone.

    Its config says nothing of quantisation any more.

    Raises:
        NotBuiltYetError: for a method or a variant that is not read.
        CheckpointError: if tensors do not fit together, or the caller has not allowed it.
    """
    stated = quantisation(checkpoint.config) or _unstated(checkpoint)
    if stated is None:
        return checkpoint
    key, settings = stated
    refuse_unasked(checkpoint.path, settings, key)
    method = method_of(settings) or ""
    search = Search(checkpoint, settings, _result(checkpoint))
    _finders()[method](search)
    aside = [n for n in checkpoint.tensors if n not in search.used and _ASIDE.fullmatch(n)]
    tensors = _in_order(search, set(aside))
    _refuse_left(search, tensors)
    told = f"{where(checkpoint.path)}: {method}: {len(search.found)} tensors are dequantised"
    if aside:
        told += f"; left out, since they scale activations: {len(aside)}, such as {shown(aside[0])}"
    return replace(
        checkpoint,
        tensors=tensors,
        config=_plain_config(checkpoint.config, search.dtype),
        index=None,
        warnings=(*checkpoint.warnings, told),
    )


def _unstated(checkpoint: Checkpoint) -> tuple[str, Mapping[str, Any]] | None:
    """Weights of eight bits with scales beside them, of which the config says nothing."""
    for name, ref in checkpoint.tensors.items():
        if ref.dtype.startswith("F8_E") and f"{name}_scale_inv" in checkpoint.tensors:
            return f"{name}_scale_inv", {"quant_method": "fp8"}
        if ref.dtype.startswith("F8_E") and f"{name}_scale" in checkpoint.tensors:
            return f"{name}_scale", {"quant_method": "fp8"}
    return None


def _result(checkpoint: Checkpoint) -> str:
    """The type of the results: as the config says, if that is a usual one."""
    stated = CODES.get(checkpoint.dtype or "")
    return stated if stated in ("F16", "BF16", "F32") else "BF16"


def _in_order(search: Search, aside: set[str]) -> dict[str, TensorRef]:
    """Packed tensors where their codes lie, the others as they are."""
    by_codes = {ref.packing.parts[0].name: ref for ref in search.found.values()}
    tensors: dict[str, TensorRef] = {}
    for name, ref in search.tensors.items():
        if name in by_codes:
            packed = by_codes[name]
            tensors[packed.name] = packed
        elif name not in search.used and name not in aside:
            tensors[name] = ref
    return tensors


def _refuse_left(search: Search, tensors: Mapping[str, TensorRef]) -> None:
    """Raise for what is still in few bits, or belongs to no packed tensor."""
    if not search.found:
        raise CheckpointError(
            f"{where(search.checkpoint.path)}: the config says that weights are quantised "
            f"({shown(method_of(search.settings))}), but no tensor is; correct the config"
        )
    for name, ref in tensors.items():
        if not isinstance(ref, PackedRef) and (_LEFT.fullmatch(name) or _EIGHT.match(ref.dtype)):
            search.refuse(name, f"({ref.dtype}) belongs to no quantised weight that is understood")


def _plain_config(config: dict[str, Any] | None, dtype: str) -> dict[str, Any] | None:
    if config is None:
        return None
    plain = {k: v for k, v in config.items() if k not in KEYS}
    for key, value in plain.items():
        if isinstance(value, dict) and any(k in value for k in KEYS):
            plain[key] = {k: v for k, v in value.items() if k not in KEYS}
    return plain or None
