"""Models that can be run: opened from a checkpoint folder, or handed over by the caller."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mergewise._lazy import torch
from mergewise.errors import (
    CheckpointError,
    MergewiseError,
    MissingExtraError,
    NotBuiltYetError,
)

if TYPE_CHECKING:
    from torch import nn

    from mergewise.checkpoint import Checkpoint

Role = Literal["causal_lm", "body", "text_classifier", "image_classifier"]

DTYPES = ("bfloat16", "float16", "float32", "float64")

_AUTO = {
    "causal_lm": "AutoModelForCausalLM",
    "body": "AutoModel",
    "text_classifier": "AutoModelForSequenceClassification",
    "image_classifier": "AutoModelForImageClassification",
}


@dataclass
class LiveModel:
    """A model in memory, ready for inference.

    Attributes:
        name: what reports call it.
        module: in evaluation mode. For classification a body may also be any module that takes
            a batch of images or ids and returns features [examples, width].
        tokenizer: a tokenizer of `transformers`, for models of text.
        processor: an image processor of `transformers`, for models of images that have one.
        fingerprint: identifies the weights; None for weights nobody vouches for, whose results
            are then not cached.
        folder: where it was read from, if it was.
        adapter: the folder of the adapter that is on top of what lies in `folder`, if one is.
    """

    name: str
    module: nn.Module
    tokenizer: Any = None
    processor: Any = None
    fingerprint: str | None = None
    folder: Path | None = None
    extras: dict[str, Any] = field(default_factory=dict)
    adapter: Path | None = None

    @property
    def reference(self) -> str | None:
        """What it was read from: a path, or ``BASE+ADAPTER``."""
        if self.folder is None or self.adapter is None:
            return None if self.folder is None else str(self.folder)
        return f"{self.folder}+{self.adapter}"

    @property
    def device(self) -> torch.device:
        """Where its inputs belong."""
        parameter = next(self.module.parameters(), None)
        if parameter is not None and parameter.is_meta:  # offloaded
            return torch.device(getattr(self.module, "hf_device_map", {}).get("", "cpu"))
        return torch.device("cpu") if parameter is None else parameter.device


def fingerprint_of(path: Path | str) -> str:
    """One mark for a checkpoint's weights, config, tokenizer, code and surgeries: 64 hex digits.

    Raises:
        CheckpointError: if it cannot be read.
    """
    from mergewise.checkpoint import copied_files, fetched, open_runnable, sha256_file
    from mergewise.evidence.models._weights import weights_hash

    checkpoint = fetched(open_runnable(path))
    folder = checkpoint.folder
    digest = hashlib.sha256()
    for file in checkpoint.files:
        digest.update(f"{file.name}\0{weights_hash(file)}\0".encode())
    code = (file for file in folder.glob("*.py") if file.is_file())
    config = (file for file in (folder / "config.json",) if file.is_file())
    corrections = (file for file in folder.glob("surgery.*.safetensors") if file.is_file())
    its = [(folder, file) for file in [*copied_files(folder), *code, *config, *corrections]]
    if (own := checkpoint.tokenizer) is not None:
        its += [(own, file) for file in copied_files(own)]
    for place, file in sorted(its):
        name = file.relative_to(place).as_posix()
        digest.update(f"{name}\0{sha256_file(file)}\0".encode())
    return digest.hexdigest()


def open_model(
    path: Path | str,
    role: Role = "causal_lm",
    *,
    device: str = "cpu",
    dtype: str | None = None,
    offload: bool = False,
    trust_remote_code: bool = False,
) -> LiveModel:
    """Load a checkpoint folder, or BASE+ADAPTER, through `transformers`.

    Args:
        role: what it is loaded as.
        device: ``cpu``, ``cuda:N`` or ``auto``.
        dtype: such as ``float32``; by default the checkpoint's own, but float32 on a CPU where
            that is float16.
        offload: leave the weights on disk and read each layer's when it runs.
        trust_remote_code: run Python code that lies in the folder; only for models one trusts.

    Raises:
        CheckpointError: if there is no such checkpoint, or it cannot be loaded in that role.
        MissingExtraError: if `transformers` is not installed.
        NotBuiltYetError: for a base with an adapter that is to stay on disk.
        MergewiseError: if the device or the dtype does not exist, or memory does not suffice.
    """
    from mergewise._device import pick_device
    from mergewise.checkpoint import fetched, open_runnable

    transformers = _transformers()
    checkpoint = open_runnable(path)
    if offload:
        refuse_on_disk(checkpoint)
    checkpoint = fetched(checkpoint)
    where = pick_device(device)
    kind = _dtype(dtype) or usual_dtype(checkpoint.dtype, where)
    folder = checkpoint.folder
    auto = getattr(transformers, _AUTO[role])
    with quiet_transformers(), _enough_memory(folder, where):
        if offload:
            from mergewise.evidence.models._offload import open_offloaded

            module = open_offloaded(checkpoint, auto, kind, where, trust_remote_code)
        else:
            module = _loaded(auto, checkpoint, kind, trust_remote_code).to(where)
        module.eval()
        tokenizer = _tokenizer(checkpoint.tokenizer_folder, role, trust_remote_code)
        processor = _processor(folder, role)
    return LiveModel(
        name=Path(path).name or str(path),
        module=module,
        tokenizer=tokenizer,
        processor=processor,
        fingerprint=fingerprint_of(path),
        folder=folder,
        adapter=checkpoint.adapter,
    )


def refuse_on_disk(checkpoint: Checkpoint) -> None:
    """Refuse a model that cannot be read from disk as it runs.

    Raises:
        NotBuiltYetError: for a base with an adapter.
    """
    if checkpoint.adapter is not None:
        raise NotBuiltYetError(
            f"{checkpoint.path}: a base with an adapter is not run from disk yet; leave out "
            "--offload, or merge the adapter into its base first"
        )


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise MissingExtraError("hf", "transformers") from None
    return transformers


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bar of `transformers` for each file, no table of tensors a body leaves out."""
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _enough_memory(folder: Path, device: str) -> Iterator[None]:
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise MergewiseError(
            f"{folder}: the memory of {device} does not suffice for its weights; "
            "try --dtype bfloat16, or another --device"
        ) from error


def _dtype(name: str | None) -> str | None:
    if name is None or name in DTYPES:
        return name
    raise MergewiseError(f"dtype {name!r}: one of {', '.join(DTYPES)} expected")


def usual_dtype(stored: str | None, device: str) -> str:
    """What a checkpoint of a dtype is run in where nothing is said."""
    if stored not in DTYPES or (stored == "float16" and device == "cpu"):
        return "float32"
    return stored


def _loaded(auto: Any, checkpoint: Checkpoint, dtype: str, trust: bool) -> Any:
    from mergewise.checkpoint import refuse_old_torch

    refuse_old_torch(checkpoint.files, torch.__version__)
    if checkpoint.adapter is None:
        return _load(auto, checkpoint.folder, dtype, trust)
    from mergewise.evidence.models._adapted import put_adapter, untied_config

    config = untied_config(checkpoint, trust)
    own = {} if config is None else {"config": config}
    module = _load(auto, checkpoint.folder, dtype, trust, set(checkpoint.tensors), **own)
    put_adapter(module, checkpoint)
    return module


def _load(
    auto: Any,
    folder: Path,
    dtype: str,
    trust: bool,
    given: Collection[str] = (),
    **more: Any,
) -> Any:
    """Load a folder; `given` are tensors that it may lack, as they come from elsewhere."""
    try:
        module, info = auto.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            local_files_only=True,
            trust_remote_code=trust,
            output_loading_info=True,
            **more,
        )
    except Exception as error:  # it raises many kinds, of its own and of its helpers
        raise _unloadable(folder, f"cannot be loaded with {auto.__name__}", error) from error
    # random weights would give scores that look like a bad merge
    missing = sorted(set(info["missing_keys"]) - set(given if more else ()))
    if auto.__name__ == "AutoModel":
        missing = [name for name in missing if "pooler" not in name]
    if missing:
        raise CheckpointError(
            f"{folder}: {len(missing)} tensors that {type(module).__name__} needs are not in "
            f"the checkpoint ({', '.join(missing[:3])}); is it a model of that kind?"
        )
    return module


def _unloadable(folder: Path, what: str, error: Exception) -> Exception:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return error
    said = str(error).strip().splitlines()
    return CheckpointError(f"{folder}: {what}: {said[0] if said else type(error).__name__}")


def _tokenizer(folder: Path, role: Role, trust: bool) -> Any:
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt")
    if role == "image_classifier" or not any((folder / name).is_file() for name in names):
        return None
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust
        )
    except Exception as error:  # likewise
        raise _unloadable(folder, "its tokenizer cannot be loaded", error) from error
    tokenizer.padding_side = "right"
    return tokenizer


def _processor(folder: Path, role: Role) -> Any:
    if role == "causal_lm" or not (folder / "preprocessor_config.json").is_file():
        return None
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except ImportError:  # without pillow evaluators read the file themselves
        return None
    except Exception as error:  # likewise
        raise _unloadable(folder, "its image processor cannot be loaded", error) from error
