"""Read an adapter's factors, and write an adapter as PEFT would."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mergewise._lazy import torch
from mergewise.checkpoint import (
    CODES,
    PREFIX,
    TORCH_NAMES,
    Adapter,
    FileReader,
    TensorRef,
    cannot_write,
    create_shard,
    make_folder,
    plan_shards,
    read_whole,
    write_at,
    write_file,
)
from mergewise.errors import CheckpointError, NonFiniteError, NotBuiltYetError, OutputError

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
RECIPE_FILE, PROVENANCE_FILE = "mergekit_config.yml", "mergewise_provenance.json"
_BY_RECIPE = (
    "merge the models BASE+ADAPTER by a recipe (for an adapter again, with `form: {name: adapter, "
    "rank: 16}`)"
)
_OURS = {CONFIG_FILE, WEIGHTS_FILE, RECIPE_FILE, PROVENANCE_FILE, "README.md"}


@dataclass
class Factors:
    """A module's change: b @ a, or of an embedding its transpose. Float32; scales are in `b`."""

    b: Tensor
    a: Tensor
    embeds: bool = False

    @property
    def rank(self) -> int:
        return len(self.a)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of b @ a, with the kernel of a convolution."""
        return (len(self.b), *self.a.shape[1:])


class AdapterFactors:
    """The factors of an adapter, read module by module.

    Args:
        adapter: the adapter.
        label: what messages call it.
        whole: whether it may also replace tensors of its base, of which nothing is read.

    Raises:
        CheckpointError: if a module's two factors are not there, or do not fit together.
        NotBuiltYetError: for adapters that are more than low-rank matrices.
    """

    def __init__(self, adapter: Adapter, label: str, whole: bool = False) -> None:
        self.label = label
        self.adapter = adapter
        self.modules = tuple(adapter.modules)
        if not whole:
            refuse_whole(adapter, label)
        self._refuse()
        for module in self.modules:
            self._check(module)
        self._reader = FileReader(adapter.stamps)

    def _refuse(self) -> None:
        parts = {part for module in self.adapter.modules.values() for part in module}
        beyond = parts - {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"}
        if not beyond and self.adapter.config.kind == "LORA":
            return
        if "lora_magnitude_vector" in beyond:
            what = "is a DoRA, which scales whole rows of the base's weights"
        else:
            kind = self.adapter.config.kind
            what = f"holds {', '.join(sorted(beyond)) or f'an adapter of kind {kind}'}"
        raise NotBuiltYetError(
            f"{self.label}: it {what}, beyond the factors of a plain LoRA, which are all that is "
            f"compared and merged here; {_BY_RECIPE}"
        )

    def _check(self, module: str) -> None:
        parts = self.adapter.modules[module]
        rank = self.adapter.config.rank_of(module)
        pairs = ({"lora_A", "lora_B"}, {"lora_embedding_A", "lora_embedding_B"})
        shapes = {part: list(ref.shape) for part, ref in sorted(parts.items())}
        a, b = next(iter(shapes.values())), list(shapes.values())[-1]
        ones = [1] * (len(a) - 2)
        fits = len(a) > 1 and len(b) > 1 and a[0] == rank and b[1:] == [rank, *ones]
        if parts.keys() not in pairs or not fits:
            raise CheckpointError(
                f"{self.label}: module {module}: two factors of rank {rank} expected, got "
                f"{', '.join(f'{part} {shape}' for part, shape in shapes.items())}; fetch the "
                "adapter again"
            )

    def read(self, module: str) -> Factors | None:
        """A module's factors; None if the adapter does not change it.

        Raises:
            NonFiniteError: if they hold NaN or infinity.
        """
        parts = self.adapter.modules.get(module)
        if parts is None:
            return None
        embeds = "lora_embedding_A" in parts
        middle = "lora_embedding_" if embeds else "lora_"
        a, b = (self._tensor(parts[f"{middle}{which}"]) for which in "AB")
        scale = self.adapter.config.scale_of(module)
        return Factors(b.mul_(scale), a, embeds)

    def _tensor(self, ref: TensorRef) -> Tensor:
        return finite_tensor(self._reader, ref, self.label)


def refuse_whole(adapter: Adapter, label: str) -> None:
    """Refuse an adapter that replaces tensors of its base.

    Raises:
        NotBuiltYetError: naming one of them.
    """
    if odd := next(iter(adapter.replaced), None):
        raise NotBuiltYetError(
            f"{label}: it holds whole tensors ({odd}), which are not merged here; {_BY_RECIPE}, or "
            "extract it again with --rest skip (rest='skip')"
        )


def finite_tensor(reader: FileReader, ref: TensorRef, label: str) -> Tensor:
    """A whole tensor of an adapter, as `read_tensor` gives it.

    Raises:
        NonFiniteError: if it holds NaN or infinity.
    """
    value = read_tensor(reader, ref)
    if not torch.isfinite(value).all():
        raise NonFiniteError(
            f"tensor {ref.name} of adapter {label} holds NaN or infinity; repair it"
        )
    return value


def read_tensor(reader: FileReader, ref: TensorRef) -> Tensor:
    """A whole tensor in float32 (float64 as it is)."""
    value = read_whole(reader, ref)
    return value.to(torch.float64 if value.dtype == torch.float64 else torch.float32)


class Written(Protocol):
    """What `write_adapter` writes."""

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]: ...

    def settings(self) -> dict[str, Any]: ...


@dataclass
class NewAdapter:
    """A LoRA to be written.

    Attributes:
        factors: by module.
        whole: tensors that it holds whole, by the name they are stored under.
        config: keys besides those that follow from the factors.
    """

    factors: dict[str, Factors] = field(default_factory=dict)
    whole: dict[str, Tensor] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Everything by the names of PEFT's files, in the type they are stored in."""
        found = {PREFIX + name: tensor for name, tensor in self.whole.items()}
        for module, known in self.factors.items():
            start = f"{PREFIX}{module}.lora_"
            ends = ("embedding_A", "embedding_B") if known.embeds else ("A.weight", "B.weight")
            found[start + ends[0]], found[start + ends[1]] = known.a.to(dtype), known.b.to(dtype)
        return found

    def settings(self) -> dict[str, Any]:
        """``adapter_config.json``: every scale is 1, as alpha is the rank."""
        ranks = {module: known.rank for module, known in self.factors.items()}
        most = max(ranks.values(), default=1)
        other = {module: rank for module, rank in ranks.items() if rank != most}
        return {
            "peft_type": "LORA",
            "r": most,
            "lora_alpha": most,
            "rank_pattern": other,
            "alpha_pattern": other,
            "target_modules": sorted(ranks),
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
            "inference_mode": True,
            "task_type": None,
            **self.config,
        }


def check_folder(out: Path, overwrite: bool) -> None:
    """Refuse a folder that holds something, before any work.

    Raises:
        OutputError: with the reason.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise OutputError(f"{out}: exists and is no folder; choose another")
    if not out.exists() or not any(out.iterdir()):
        return
    theirs = {path.name for path in out.iterdir()} - _OURS
    if not overwrite or theirs:
        what = f"holds {sorted(theirs)[0]}" if theirs else "holds an adapter; --overwrite replaces"
        raise OutputError(f"{out}: {what}; choose an empty folder")


def write_adapter(out: Path, made: Written, dtype: torch.dtype, origin: str) -> int:
    """Write the folder, its config last; returns the bytes of the weights.

    Args:
        origin: what it was made of, for the file's metadata.

    Raises:
        OutputError: if it cannot be written.
        NonFiniteError: if numbers do not fit `dtype`.
    """
    tensors = made.tensors(dtype)
    _check_finite(tensors, dtype)
    specs = [(n, CODES[str(t.dtype).removeprefix("torch.")], tuple(t.shape)) for n, t in
             tensors.items()]  # fmt: skip
    [layout] = plan_shards(specs, 1 << 62, {"format": "pt", "made_by": "mergewise", "from": origin})
    make_folder(out)
    temporary = out / f".{WEIGHTS_FILE}.{os.getpid()}.partial"
    try:
        temporary.unlink(missing_ok=True)
        descriptor = create_shard(temporary, layout)
        try:
            for name, tensor in tensors.items():
                raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
                write_at(descriptor, raw.data, layout.offsets[name])
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        (out / CONFIG_FILE).unlink(missing_ok=True)
        temporary.replace(out / WEIGHTS_FILE)
    except OSError as error:
        raise cannot_write(out, error) from None
    finally:
        temporary.unlink(missing_ok=True)
    write_file(out / CONFIG_FILE, (json.dumps(made.settings(), indent=2) + "\n").encode())
    return sum(layout.sizes.values())


def write_notes(out: Path, recipe: str, record: Mapping[str, Any]) -> None:
    """Write the recipe and where everything comes from beside an adapter.

    Raises:
        OutputError: if it cannot be written.
    """
    write_file(out / RECIPE_FILE, recipe.encode())
    write_file(out / PROVENANCE_FILE, (json.dumps(record, indent=2) + "\n").encode())


def _check_finite(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise NonFiniteError(
                f"{name}: numbers that {str(dtype).removeprefix('torch.')} does not hold; choose "
                "a wider dtype"
            )


def usual_dtype(codes: set[str]) -> str:
    """The type of the result: that of the inputs if they agree, else float32."""
    return TORCH_NAMES[codes.pop()] if len(codes) == 1 else "float32"


def relative(error: float, whole: float) -> float:
    """An error as a share of a norm; 0 of nothing."""
    return error / whole if whole else (math.inf if error else 0.0)
