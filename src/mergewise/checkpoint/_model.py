"""A checkpoint as headers describe it: tensors by name, where their bytes lie, and the config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mergewise.checkpoint._config import config_value
from mergewise.checkpoint._dtypes import TORCH_NAMES
from mergewise.checkpoint._files import FileStamp
from mergewise.checkpoint._hub import Origin, origin_of
from mergewise.checkpoint._safetensors import TensorInfo
from mergewise.checkpoint._variants import stem_of


@dataclass(frozen=True)
class TensorRef(TensorInfo):
    """A tensor and the file that holds it."""

    file: Path

    @property
    def stored_as(self) -> str | None:
        """What the file holds instead, if the tensor is computed from fewer bits, as ``Q4_K``."""
        return None


@dataclass(frozen=True)
class Pipeline:
    """What a diffusers pipeline's ``model_index.json`` says.

    Attributes:
        index: the document.
        stems: for each component with weights, how its files are called, without ending.
        folders: every component that is there, in the document's order.
    """

    index: dict[str, Any]
    stems: Mapping[str, str]
    folders: tuple[str, ...]

    @property
    def name(self) -> str | None:
        """The pipeline's class, such as ``StableDiffusionPipeline``."""
        found = self.index.get("_class_name")
        return found if isinstance(found, str) else None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk; no tensor data is held.

    Attributes:
        path: what was opened, a folder or a file.
        folder: where config and tokenizer lie: `path`, or the file's parent.
        files: the safetensors files, in order.
        tensors: by name, in the order of files and of their data.
        config: the content of ``config.json``; None if there is none.
        index: the content of the index file, if the checkpoint has one and it was used.
        warnings: what is odd, but no reason to refuse.
        stamps: each file's state when its header was read.
        adapter: the folder of an adapter that is on top; see `open_reference`.
        pipeline: what ties the components of a diffusers pipeline together; None for one model.
        metadata: the strings in the header of the first file.
        tokenizer: the folder of its tokenizer, where that is the adapter's; None for `folder`.
    """

    path: Path
    folder: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, TensorRef]
    config: dict[str, Any] | None
    index: dict[str, Any] | None
    warnings: tuple[str, ...]
    stamps: Mapping[Path, FileStamp]
    adapter: Path | None = None
    pipeline: Pipeline | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    tokenizer: Path | None = None

    @property
    def tokenizer_folder(self) -> Path:
        """Where its tokenizer lies, if it has one."""
        return self.tokenizer or self.folder

    @property
    def stem(self) -> str:
        """What the names of its files begin with, where that matters to loaders."""
        return stem_of(self.files[0].name) if self.files else "model"

    @property
    def origin(self) -> Origin | None:
        """Repository and commit, of what lies in the Hub's cache or is still on the Hub."""
        return origin_of(self.folder)

    @cached_property
    def total_parameters(self) -> int:
        """Elements of all tensors."""
        return sum(tensor.numel for tensor in self.tensors.values())

    @cached_property
    def total_bytes(self) -> int:
        """Bytes of all tensors, without headers."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def stored_as(self) -> str | None:
        """What quantised tensors are stored as, such as ``Q4_K``; None if none is quantised."""
        kinds = dict.fromkeys(ref.stored_as for ref in self.tensors.values() if ref.stored_as)
        return ", ".join(filter(None, kinds)) or None

    @property
    def architecture(self) -> str | None:
        """The first of the config's ``architectures``, such as ``LlamaForCausalLM``."""
        if self.pipeline:
            return self.pipeline.name
        names = config_value(self.config, "architectures")
        if isinstance(names, list) and names and isinstance(names[0], str):
            return names[0]
        return None

    @property
    def model_type(self) -> str | None:
        """The config's ``model_type``, such as ``llama``."""
        value = config_value(self.config, "model_type")
        return value if isinstance(value, str) else None

    @property
    def tie_word_embeddings(self) -> bool | None:
        """What the config says of the output head; None if it is silent."""
        value = config_value(self.config, "tie_word_embeddings")
        return value if isinstance(value, bool) else None

    @property
    def dtype(self) -> str | None:
        """The torch dtype the config names, else that of most bytes, such as ``bfloat16``."""
        for key in ("dtype", "torch_dtype"):
            value = config_value(self.config, key)
            if isinstance(value, str):
                return value.removeprefix("torch.")
        sizes: dict[str, int] = {}
        for tensor in self.tensors.values():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
        return TORCH_NAMES.get(max(sizes, key=lambda code: sizes[code])) if sizes else None
