"""Models that stay on disk: each module's weights are read when it runs, and dropped after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mergewise._allocator import give_back_freed_memory
from mergewise._lazy import torch
from mergewise.checkpoint import TORCH_NAMES, Checkpoint, FileReader
from mergewise.errors import CheckpointError, MissingExtraError
from mergewise.evidence.models._names import Names, Part

if TYPE_CHECKING:
    from torch import Tensor, nn


def open_offloaded(
    checkpoint: Checkpoint, auto: Any, dtype: str, device: str, trust_remote_code: bool = False
) -> nn.Module:
    """A model whose parameters have shapes but no memory until their module runs.

    Weights are read by range, not mapped, so resident memory stays at the largest module's.

    Args:
        auto: the class of `transformers` that makes it, such as ``AutoModelForCausalLM``.
        dtype: of the parameters while they are in memory.
        device: where the modules run.

    Raises:
        CheckpointError: if the checkpoint lacks tensors that the model needs.
        MissingExtraError: if `accelerate` is not installed.
    """
    try:
        from accelerate.hooks import attach_align_device_hook
    except ImportError:
        raise MissingExtraError("hf", "accelerate") from None
    give_back_freed_memory()
    kind = getattr(torch, dtype)
    module = _skeleton(checkpoint, auto, kind, trust_remote_code)
    names = Names(module, checkpoint.tensors)
    weights = DiskWeights(checkpoint, names, kind)
    _check_complete(checkpoint, module, names)
    _load_buffers(module, weights)
    attach_align_device_hook(
        module, execution_device=torch.device(device), offload=True, weights_map=weights
    )
    # hooks replace the parameters, by which tied ones could be told
    module.mergewise_names = names
    module.hf_device_map = {"": device}
    made: nn.Module = module
    return made


class DiskWeights(Mapping[str, "Tensor"]):
    """A checkpoint's tensors under the names of a model's parameters, read when asked for."""

    def __init__(self, checkpoint: Checkpoint, names: Names, dtype: torch.dtype) -> None:
        self._checkpoint, self._names, self._dtype = checkpoint, names, dtype
        self._reader = FileReader(checkpoint.stamps)

    def __getitem__(self, name: str) -> Tensor:
        parts = self._names.of(name)
        if not parts:
            raise KeyError(name)
        if len(parts) == 1:
            return self._read(parts[0])
        return self._packed(parts).reshape(self._names.shape(name))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(self._names.of(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names.parts)

    def __len__(self) -> int:
        return len(self._names.parts)

    def _packed(self, parts: tuple[Part, ...]) -> Tensor:
        """Several tensors as the rows of one parameter, in its order."""
        rows = max(part.stop for part in parts)
        whole = torch.empty(rows, parts[0].shape[-1], dtype=self._dtype)
        for part in parts:
            whole[part.start : part.stop] = self._read(part).reshape(-1, part.shape[-1])
        return whole

    def _read(self, part: Part) -> Tensor:
        ref = self._checkpoint.tensors[part.tensor]
        stored = TORCH_NAMES.get(ref.dtype)
        if stored is None:
            raise CheckpointError(
                f"{ref.file}: {ref.name} has elements of type {ref.dtype}, which cannot be read; "
                "use an unquantised checkpoint"
            )
        buffer = torch.empty(ref.nbytes, dtype=torch.uint8)
        self._reader.read_into(ref, 0, buffer.numpy().data)
        value = buffer.view(getattr(torch, stored)).reshape(ref.shape)
        return value.to(self._dtype) if value.is_floating_point() else value


def _skeleton(checkpoint: Checkpoint, auto: Any, dtype: torch.dtype, trust: bool) -> Any:
    """The model on the meta device; buffers that no checkpoint holds have their values."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig

    folder = checkpoint.folder
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust)
        with init_empty_weights(include_buffers=False):
            module = auto.from_config(config, dtype=dtype, trust_remote_code=trust)
        # parameters on the meta device are new ones, so ties are made again
        module.tie_weights()
        return module
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{folder}: cannot be loaded with {auto.__name__}: {error}") from None


def _check_complete(checkpoint: Checkpoint, module: nn.Module, names: Names) -> None:
    """What loading into memory would find out: absent tensors, and others than the model's."""
    parameters = dict(module.named_parameters())
    missing = [name for name in parameters if not names.of(name)]
    if missing:
        raise CheckpointError(
            f"{checkpoint.folder}: {len(missing)} tensors that {type(module).__name__} needs are "
            "not in the checkpoint, or stored in a form that is only read into memory "
            f"({', '.join(missing[:3])}); run without offload"
        )
    for part in (part for name in parameters for part in names.of(name)):
        found = checkpoint.tensors[part.tensor].shape
        if found != part.shape:
            raise CheckpointError(
                f"{checkpoint.folder}: {part.tensor} has the shape {list(found)}, and the config "
                f"asks for {list(part.shape)}; does the config belong to these weights?"
            )


def _load_buffers(module: nn.Module, weights: DiskWeights) -> None:
    """Buffers stay in memory; those that are stored get their values."""
    for name, buffer in module.named_buffers():
        if name in weights and not buffer.is_meta:
            buffer.data = weights[name].to(buffer.dtype).reshape(buffer.shape)
