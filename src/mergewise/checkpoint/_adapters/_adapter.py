"""Open an adapter as PEFT saves it: ``adapter_config.json`` and ``adapter_model.safetensors``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mergewise._paths import exists, expanded
from mergewise.checkpoint._adapters._config import AdapterConfig, parse_adapter_config
from mergewise.checkpoint._files import FileStamp, shown, stamp, where
from mergewise.checkpoint._hub import away, header_of, here, locate
from mergewise.checkpoint._json import read_json
from mergewise.checkpoint._model import TensorRef
from mergewise.checkpoint._torch_files import read_torch_file, refuse_pickles
from mergewise.errors import CheckpointError, MergewiseError, NotBuiltYetError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What PEFT puts before the base's names."""
_MAX_CONFIG = 8_000_000
_LONGEST_NAME = 300
_FLOATS = ("F64", "F32", "F16", "BF16")
_PART = re.compile(
    r"(?P<module>.+)\.(?:"
    r"(?P<lora>lora_[AB])(?:\.default)?(?:\.(?P<kind>weight|bias))?"
    r"|(?P<middle>lora_E)(?:\.default)?"
    r"|(?P<embedding>lora_embedding_[AB])(?:\.default)?"
    r"|(?P<magnitude>lora_magnitude_vector)(?:\.default)?(?:\.weight)?"
    r"|(?P<ia3>ia3_l)(?:\.default)?)"
)
_OTHER = re.compile(
    r"(^|\.)(lora_|ia3_|ada_|hada_|lokr_|oft_|boft_|vera_|trainable_tokens|token_adapter"
    r"|modules_to_save|original_module|prompt_)"
)


_COPY = re.compile(r"\.(modules_to_save|original_module)\.(?=[^.]*$)")
"""With ``bias: all`` PEFT saves biases of replaced modules under three names: the module's, which
counts, a copy of it, and what was there before."""


@dataclass(frozen=True)
class Adapter:
    """An adapter on disk; no tensor data is held.

    Attributes:
        folder: where it lies.
        file: its weights.
        modules: for each module of the base that it changes, its tensors by their part:
            ``lora_A``, ``lora_B``, ``lora_B.bias``, ``lora_E``, ``lora_embedding_A``,
            ``lora_embedding_B``, ``lora_magnitude_vector``, ``ia3_l``.
        replaced: tensors of the base that it holds whole (biases, ``modules_to_save``).
        stamps: each file's state when it was read.
    """

    folder: Path
    file: Path
    config: AdapterConfig
    modules: Mapping[str, Mapping[str, TensorRef]]
    replaced: Mapping[str, TensorRef]
    stamps: Mapping[Path, FileStamp]


def is_adapter(path: Path | str) -> bool:
    """Whether `path` is a folder with an adapter's config."""
    try:
        return (_folder(path) / CONFIG_FILE).is_file()
    except (OSError, ValueError, MergewiseError):
        return False


def _folder(path: Path | str) -> Path:
    """A folder here, else where the cache has, or will have, the model of that name."""
    folder = expanded(path)
    return folder if exists(folder) else locate(path) or folder


def open_adapter(path: Path | str) -> Adapter:
    """Open an adapter's folder, reading its config and the header of its weights.

    Raises:
        CheckpointError: if there is no adapter, or it is broken: the message names the file.
        NotBuiltYetError: for kinds of adapters and settings that are not built.
    """
    folder = _folder(path)
    config_path, file = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    before = stamp(config_path)
    if before is None:
        raise CheckpointError(
            f"{where(folder)}: no {CONFIG_FILE} here; as an adapter (after `+` in recipes) a "
            "folder that PEFT saved is expected, or its name on the Hub"
        )
    raw = read_json(config_path, "adapter's config", _MAX_CONFIG)
    config = parse_adapter_config(raw, config_path)
    if not file.exists() and away(file) is None:
        file = _pickled_weights(folder)
    header = header_of(file) if file.name == WEIGHTS_FILE else read_torch_file(here(file)).header
    refs = [
        TensorRef(t.name, t.dtype, t.shape, t.start, t.end, file) for t in header.tensors.values()
    ]
    if not refs:
        raise CheckpointError(f"{where(file)}: the adapter holds no tensors; fetch it again")
    modules, replaced = _sorted(refs, file)
    stamps = {file: header.stamp, config_path: before}
    return Adapter(folder, file, config, modules, replaced, stamps)


def _pickled_weights(folder: Path) -> Path:
    file = folder / "adapter_model.bin"
    if file.exists() or away(file) is not None:
        refuse_pickles(folder, [file.name])
        return file
    raise CheckpointError(
        f"{where(folder)}: no {WEIGHTS_FILE} beside {CONFIG_FILE}; fetch the rest of the adapter"
    )


def _sorted(
    refs: list[TensorRef], file: Path
) -> tuple[dict[str, dict[str, TensorRef]], dict[str, TensorRef]]:
    modules: dict[str, dict[str, TensorRef]] = {}
    replaced: dict[str, TensorRef] = {}
    names = {ref.name.removeprefix(PREFIX) for ref in refs}
    for ref in refs:
        name = ref.name.removeprefix(PREFIX)
        if (twin := _COPY.sub(r".", name)) != name and twin in names:
            continue
        if len(name) > _LONGEST_NAME or not name.isprintable():
            raise CheckpointError(f"{where(file)}: tensor {shown(ref.name)}: no name of a module")
        if ref.dtype not in _FLOATS:
            raise CheckpointError(
                f"{where(file)}: tensor {shown(name)}: elements of type {ref.dtype}, where "
                f"{', '.join(_FLOATS)} are expected"
            )
        match = _PART.fullmatch(name)
        if match is None:
            _add(replaced, _plain_name(name, file), ref, file)
        elif match["kind"] == "bias" and match["lora"] == "lora_A":
            raise CheckpointError(f"{where(file)}: tensor {shown(name)}: lora_A has no bias")
        else:
            _add(modules.setdefault(match["module"], {}), _part(match), ref, file)
    return modules, replaced


def _part(match: re.Match[str]) -> str:
    if match["kind"] == "bias":
        return "lora_B.bias"
    kinds = ("lora", "middle", "embedding", "magnitude", "ia3")
    return next(match[kind] for kind in kinds if match[kind])


def _plain_name(name: str, file: Path) -> str:
    """The base's name of a tensor that is held whole."""
    plain = name.replace(".base_layer.", ".").removeprefix("base_layer.")
    if _OTHER.search(plain):
        raise NotBuiltYetError(
            f"{where(file)}: tensor {shown(name)} is of a kind of adapter that this version does "
            "not read; merge it into its base with PEFT, and name that folder"
        )
    return plain


def _add(found: dict[str, TensorRef], key: str, ref: TensorRef, file: Path) -> None:
    if key in found:
        raise CheckpointError(
            f"{where(file)}: tensors {shown(found[key].name)} and {shown(ref.name)} are the same "
            "part of one module; save the adapter anew"
        )
    found[key] = ref
