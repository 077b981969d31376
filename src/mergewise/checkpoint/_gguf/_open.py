"""Open a GGUF file as a checkpoint with the names, rows and numbers of `transformers`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mergewise.checkpoint._access import access
from mergewise.checkpoint._dtypes import CODES
from mergewise.checkpoint._files import FileStamp, shown, where
from mergewise.checkpoint._gguf._config import count, head_width, made_config
from mergewise.checkpoint._gguf._files import gguf_files
from mergewise.checkpoint._gguf._ggml import Ggml
from mergewise.checkpoint._gguf._header import GgufHeader, GgufTensor, read_gguf_header
from mergewise.checkpoint._gguf._names import ARCHITECTURES, DERIVED, Architecture
from mergewise.checkpoint._hub import here
from mergewise.checkpoint._model import Checkpoint, TensorRef
from mergewise.checkpoint._packed import packed_ref
from mergewise.errors import CheckpointError, NotBuiltYetError


def open_gguf(path: Path, folder: Path, config: dict[str, Any] | None) -> Checkpoint:
    """Open a GGUF file, or all files of a split model; no tensor is read.

    Args:
        path: the file; of a split model any.
        folder: where a config, if any, and the tokenizer lie.
        config: what lies there as ``config.json``; None to make one from the metadata.

    Raises:
        CheckpointError: for a broken or hostile file, or quantised weights without leave.
        NotBuiltYetError: for architectures and types that are not read.
    """
    files = gguf_files(path)
    headers = {file: read_gguf_header(here(file)) for file in files}
    first = headers[files[0]]
    _check_split(first, files)
    name, known = _architecture(first, path)
    _check_types(headers)
    chosen = config or _config_of(headers, name)
    found = _Names(first, name, known, _result(config))
    tensors: dict[str, TensorRef] = {}
    for file, header in headers.items():
        for tensor in header.tensors.values():
            ref = found.ref(tensor, file)
            if ref is not None and ref.name in tensors:
                raise CheckpointError(
                    f"{where(file)}: tensor {shown(tensor.name)} is in two of the model's files"
                )
            if ref is not None:
                tensors[ref.name] = ref
    if not tensors:
        raise CheckpointError(f"{where(path)}: the file holds no tensors")
    stamps: dict[Path, FileStamp] = {file: header.stamp for file, header in headers.items()}
    warnings = tuple(_warnings(path, folder, config, found.derived))
    return Checkpoint(path, folder, tuple(files), tensors, chosen, None, warnings, stamps)


class _Names:
    def __init__(
        self, header: GgufHeader, name: str, known: Architecture, dtype: str | None
    ) -> None:
        self._known = known
        self._dtype = dtype or "BF16"
        self._name = name
        self._heads = {
            "attn_q": count(header.metadata, f"{name}.attention.head_count"),
            "attn_k": count(header.metadata, f"{name}.attention.head_count_kv")
            or count(header.metadata, f"{name}.attention.head_count"),
        }
        self._width = head_width(header.metadata, name)
        self.derived: list[str] = []

    def ref(self, tensor: GgufTensor, file: Path) -> TensorRef | None:
        """The tensor under its new name; None for one that the config stands for."""
        if DERIVED.fullmatch(tensor.name):
            self.derived.append(tensor.name)
            return None
        name = self._known.name(tensor.name)
        if name is None:
            raise NotBuiltYetError(
                f"{where(file)}: tensor {shown(tensor.name)} is none that this version knows of "
                f"GGUF's architecture {shown(self._name)}; use the safetensors it was made from"
            )
        halves = self._halves(tensor, file)
        shift = -1.0 if self._known.shifted and name.endswith("norm.weight") else 0.0
        kind = tensor.type
        if kind.stored and not (halves or shift):
            return TensorRef(name, kind.stored, tensor.shape, tensor.start, tensor.end, file)
        size = tensor.end - tensor.start
        stored = TensorRef(tensor.name, "U8", (size,), tensor.start, tensor.end, file)
        columns = tensor.shape[-1] if len(tensor.shape) > 1 else 1
        packing = Ggml(stored, kind, columns, halves, shift)
        return packed_ref(name, kind.stored or self._dtype, tensor.shape, packing)

    def _halves(self, tensor: GgufTensor, file: Path) -> int:
        """Rows of half a head, where they are to be put in order."""
        part = tensor.name.split(".")[2] if tensor.name.startswith("blk.") else ""
        if not self._known.rotary or part not in self._heads:
            return 0
        heads, rows = self._heads[part], tensor.shape[0]
        if not heads or rows % (2 * heads) or rows // heads != (self._width or rows // heads):
            raise CheckpointError(
                f"{where(file)}: tensor {shown(tensor.name)} has {rows:,} rows, which are not "
                f"{heads} heads of {self._width}, as the metadata says; fetch it again"
            )
        return rows // heads // 2


def _result(config: dict[str, Any] | None) -> str | None:
    for key in ("dtype", "torch_dtype"):
        stated = (config or {}).get(key)
        if isinstance(stated, str) and CODES.get(stated) in ("F16", "BF16", "F32"):
            return CODES[stated]
    return None


def _architecture(header: GgufHeader, path: Path) -> tuple[str, Architecture]:
    name = header.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise NotBuiltYetError(
            f"{where(path)}: GGUF's architecture {shown(name)} cannot be read by this version "
            f"(it can: {known}); use the safetensors it was made from"
        )
    if count(header.metadata, f"{name}.expert_count"):
        raise NotBuiltYetError(
            f"{where(path)}: a mixture of experts in GGUF cannot be read by this version; use the "
            "safetensors it was made from"
        )
    return name, ARCHITECTURES[name]


def _check_types(headers: dict[Path, GgufHeader]) -> None:
    for file, header in headers.items():
        for tensor in header.tensors.values():
            if not tensor.type.read:
                raise NotBuiltYetError(
                    f"{where(file)}: tensor {shown(tensor.name)} is of GGUF's type "
                    f"{tensor.type.name}, which cannot be read by this version"
                )
    quantised = {t.type.name for h in headers.values() for t in h.tensors.values()
                 if not t.type.stored}  # fmt: skip
    if quantised and not access().dequantize:
        raise CheckpointError(
            f"{where(next(iter(headers)))}: a GGUF file with quantised weights "
            f"({', '.join(sorted(quantised))}); use the safetensors it was made from, or pass "
            "--dequantize (mergewise.allow(dequantize=True)) to read them as the numbers that "
            "they stand for"
        )


def _check_split(header: GgufHeader, files: list[Path]) -> None:
    number = header.metadata.get("split.count", 1)
    if number not in (len(files), 0):
        raise CheckpointError(
            f"{where(files[0])}: it says that it is one of {shown(number)} files of a model, and "
            f"its name that of {len(files)}; give the files their own names, all in one folder"
        )


def _config_of(headers: dict[Path, GgufHeader], name: str) -> dict[str, Any]:
    first = next(iter(headers.values()))
    tensors = {n: t for header in headers.values() for n, t in header.tensors.items()}
    return made_config(GgufHeader(first.metadata, tensors, first.stamp), name)


def _warnings(
    path: Path, folder: Path, config: dict[str, Any] | None, derived: list[str]
) -> list[str]:
    found = []
    if config is None and (folder / "tokenizer.json").exists():
        found.append(
            f"{where(path)}: its config is made from the file's metadata; put the model's "
            "config.json beside it, or name a base that has one"
        )
    elif config is None:
        found.append(
            f"{where(path)}: its config is made from the file's metadata, and its tokenizer is not "
            "read; put the model's config.json and tokenizer beside it, or name a base that has "
            "them"
        )
    if derived and not (config or {}).get("rope_scaling"):
        found.append(
            f"{where(path)}: {shown(derived[0])} stands for the config's rope_scaling, which "
            "cannot be told from it: take the config of the model that the file was made from"
        )
    return found
