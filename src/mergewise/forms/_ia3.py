"""Several IA3 adapters of one base as one: vectors by which outputs or inputs are multiplied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.checkpoint import PREFIX, Adapter, FileReader, TensorRef
from mergewise.errors import CheckpointError, IncompatibleModelsError, MergewiseError
from mergewise.forms._adapter_files import finite_tensor, refuse_whole

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class NewIA3:
    """An IA3 adapter to be written.

    Attributes:
        vectors: by module, ``[outputs, 1]``, or ``[1, inputs]`` where inputs are scaled.
        config: keys besides those that follow from the vectors.
    """

    vectors: dict[str, Tensor] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Everything by the names of PEFT's files."""
        return {f"{PREFIX}{module}.ia3_l": one.to(dtype) for module, one in self.vectors.items()}

    def settings(self) -> dict[str, Any]:
        """``adapter_config.json``."""
        return {
            "peft_type": "IA3",
            "target_modules": sorted(self.vectors),
            "feedforward_modules": sorted(m for m, one in self.vectors.items() if len(one) == 1),
            "init_ia3_weights": True,
            "inference_mode": True,
            "task_type": None,
            **self.config,
        }


def all_ia3(adapters: Sequence[Adapter]) -> bool:
    """Whether they are IA3, all of them.

    Raises:
        IncompatibleModelsError: if only some are.
    """
    kinds = [adapter.config.kind for adapter in adapters]
    if "IA3" in kinds and len(set(kinds)) > 1:
        raise IncompatibleModelsError(
            f"adapters of kinds {', '.join(kinds)}: IA3 multiplies weights and LoRA adds to them, "
            "so that no adapter is both; merge the models BASE+ADAPTER by a recipe instead"
        )
    return "IA3" in kinds


def refuse_options(given: Mapping[str, bool]) -> None:
    """What has no meaning for vectors.

    Args:
        given: options as a user writes them, and whether they were given.
    """
    odd = [option for option, asked in given.items() if asked]
    if odd:
        raise MergewiseError(
            f"{', '.join(odd)}: of LoRA, and these are IA3 adapters, which have no ranks; their "
            "vectors are added up by weights= alone. For another method merge the models "
            "BASE+ADAPTER by a recipe"
        )


def merged_vectors(
    adapters: Sequence[Adapter], labels: Sequence[str], weights: Sequence[float]
) -> Iterator[tuple[str, Tensor]]:
    """Each module's merged vector, ``1 + sum w (l - 1)``, in float32.

    So the weights that it makes of the base's are those that task arithmetic makes of the models.
    Weights that sum to 1 give the weighted mean, -1 alone the negation ``2 - l``: the rules of PEM
    (Zhang et al., 2023, arXiv 2306.14870). What an adapter leaves alone has the vector 1.

    Raises:
        CheckpointError: for a module with anything but one vector.
        IncompatibleModelsError: for vectors of different shapes.
        NonFiniteError: if they hold NaN or infinity.
    """
    for adapter, label in zip(adapters, labels, strict=True):
        refuse_whole(adapter, label)
    for module in dict.fromkeys(module for adapter in adapters for module in adapter.modules):
        known = [
            (weight, adapter, _vector(adapter, module, label), label)
            for weight, adapter, label in zip(weights, adapters, labels, strict=True)
            if module in adapter.modules
        ]
        shapes = [list(ref.shape) for _, _, ref, _ in known]
        if any(shape != shapes[0] for shape in shapes):
            raise IncompatibleModelsError(
                f"module {module}: vectors of different shapes, {shapes}; are the adapters of one "
                "base, with the same feedforward_modules?"
            )
        total = torch.zeros(shapes[0])
        for weight, adapter, ref, label in known:
            with FileReader(adapter.stamps) as reader:
                total = total + weight * (finite_tensor(reader, ref, label) - 1)
        yield module, 1 + total


def _vector(adapter: Adapter, module: str, label: str) -> TensorRef:
    parts = adapter.modules[module]
    ref = parts.get("ia3_l")
    if ref is None or len(parts) > 1 or len(ref.shape) != 2 or 1 not in ref.shape:
        shapes = ", ".join(f"{part} {list(one.shape)}" for part, one in parts.items())
        raise CheckpointError(
            f"{label}: module {module}: ia3_l [outputs, 1] or [1, inputs] expected, got {shapes}; "
            "fetch the adapter again"
        )
    return ref
