"""Sites: a weight of the checkpoint, the module that uses it, and how to see its channels."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mergewise._lazy import torch
from mergewise.evidence.models._names import Names, Part

if TYPE_CHECKING:
    from torch import Tensor, nn

Kind = Literal[
    "linear", "conv", "conv1d_transposed", "embedding", "norm", "router", "expert", "other"
]


@dataclass(frozen=True, eq=False)
class Site:
    """A weight and its use.

    Attributes:
        tensor: the weight's name in the checkpoint.
        parameter: its name in the module tree.
        path: the name of the module that uses it.
        module: that module. For an expert of a packed mixture it is the module of all experts.
        kind: ``conv1d_transposed`` is the Conv1D of GPT-2, whose weight is stored [in, out].
        shape: of the tensor in the checkpoint.
        expert: the expert's number in a packed mixture.
        rows: in a packed mixture, the weight's rows of the expert's matrix.
        tied: another module uses the same tensor.
    """

    tensor: str
    parameter: str
    path: str
    module: nn.Module
    kind: Kind
    shape: tuple[int, ...]
    expert: int | None = None
    rows: tuple[int, int] | None = None
    tied: bool = False

    @property
    def matrix(self) -> bool:
        """Whether it multiplies rows of inputs: linear layers, convolutions, experts, routers."""
        return self.kind in ("linear", "conv", "conv1d_transposed", "router", "expert")

    @property
    def channels(self) -> tuple[int, int]:
        """Channels of the inputs (of a patch, for a convolution) and of the outputs."""
        if self.kind == "conv1d_transposed":
            return self.shape[0], self.shape[1]
        if self.kind == "embedding":
            return self.shape[0], self.shape[1]
        if self.kind == "norm":
            return self.shape[0], self.shape[0]
        inputs = 1
        for size in self.shape[1:]:
            inputs *= size
        return inputs * int(getattr(self.module, "groups", 1)), self.shape[0]


@dataclass(frozen=True)
class Sites:
    """Every site of a module.

    Attributes:
        sites: in the order of the modules; the same tensor twice if it is tied.
        uncovered: stored tensors, biases left out, that no site describes.
        names: from parameters to the checkpoint's tensors.
    """

    sites: tuple[Site, ...]
    uncovered: tuple[str, ...]
    names: Names

    def __iter__(self) -> Iterator[Site]:
        return iter(self.sites)


class Tokens:
    """Which positions of a batch are real.

    Args:
        mask: [examples, positions], 0 for padding; None if every position counts.

    Attributes:
        unplaced: whether a value was met whose padding could not be told.
    """

    def __init__(self, mask: Tensor | None = None) -> None:
        self.mask = None if mask is None else mask.bool()
        self.padded = self.mask is not None and not bool(self.mask.all())
        self.unplaced = False

    def rows(self, value: Tensor) -> Tensor:
        """[examples, positions, ..., channels] or [all positions, channels] to real rows.

        A value without an axis of positions, such as pooled features, keeps one row an example.
        """
        mask = self.mask
        if mask is None or (value.dim() == 2 and len(value) == len(mask) != mask.numel()):
            return value.reshape(-1, value.shape[-1])
        found = _aligned(value, mask)
        if found is None:
            self.unplaced |= self.padded
            return value.reshape(-1, value.shape[-1])
        return found[mask.to(value.device)].reshape(-1, value.shape[-1])


def _aligned(value: Tensor, mask: Tensor) -> Tensor | None:
    """`value` as [examples, positions, ...], or None if it has no such axes."""
    examples, positions = mask.shape
    if value.dim() == 2 and len(value) == mask.numel():
        return value.reshape(examples, positions, -1)
    if value.dim() < 3 or value.shape[0] not in (1, examples):
        return None
    for axis in range(1, value.dim() - 1):
        if value.shape[axis] == positions:
            moved = value.movedim(axis, 1)
            # position embeddings are made once for all examples
            return moved.expand(examples, *moved.shape[1:])
    return None


def sites_of(module: nn.Module, stored: Collection[str] = ()) -> Sites:
    """Find every weight that one of the known kinds of module uses.

    Args:
        stored: the names in the checkpoint; without them, those the model would be saved under.
    """
    known_names = getattr(module, "mergewise_names", None)
    names = known_names if isinstance(known_names, Names) else Names(module, stored)
    sites = [site for path, child in module.named_modules() for site in _sites(path, child, names)]
    seen = {site.tensor for site in sites}
    biases = {f"{name.removesuffix('weight')}bias" for name in seen}
    known = set(stored) or {part.tensor for parts in names.parts.values() for part in parts}
    return Sites(tuple(sites), tuple(sorted(known - seen - biases)), names)


def _sites(path: str, module: nn.Module, names: Names) -> Iterator[Site]:
    for name, weight in module._parameters.items():
        if weight is None or name.endswith("bias"):
            continue
        parameter = f"{path}.{name}" if path else name
        parts = names.of(parameter)
        if is_experts(module) and weight.dim() == 3:
            yield from _experts(path, module, parameter, parts, tuple(weight.shape))
        elif name == "weight" and len(parts) == 1 and parts[0].shape == tuple(weight.shape):
            kind = _kind(module)
            if kind != "other":
                tied = names.aliases.get(parameter, parameter) != parameter or any(
                    parameter == kept for kept in names.aliases.values()
                )
                yield Site(
                    parts[0].tensor, parameter, path, module, kind, parts[0].shape, tied=tied
                )


def _experts(
    path: str,
    module: nn.Module,
    parameter: str,
    parts: tuple[Part, ...],
    shape: tuple[int, ...],
) -> Iterator[Site]:
    if getattr(module, "is_transposed", False) or len(parts) < shape[0]:
        return
    for part in parts:
        expert, start = divmod(part.start, shape[1])
        rows = (start, start + part.stop - part.start)
        if rows[1] <= shape[1] and len(part.shape) == 2:
            yield Site(part.tensor, parameter, path, module, "expert", part.shape, expert, rows)


def is_experts(module: nn.Module) -> bool:
    """Whether this module holds all experts of a mixture in packed parameters."""
    up = getattr(module, "gate_up_proj", getattr(module, "up_proj", None))
    down = getattr(module, "down_proj", None)
    return all(isinstance(w, torch.nn.Parameter) and w.dim() == 3 for w in (up, down))


def _kind(module: nn.Module) -> Kind:
    nn = torch.nn
    weight = module._parameters["weight"]
    name = type(module).__name__
    if is_router(module):
        return "router"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Conv1d | nn.Conv2d) and not isinstance(module, nn.ConvTranspose2d):
        return "conv"
    if name == "Conv1D" and hasattr(module, "nf"):
        return "conv1d_transposed"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if "norm" in name.lower() and weight is not None and weight.dim() == 1:
        return "norm"
    return "other"


def is_router(module: nn.Module) -> bool:
    """Whether this module scores the experts of a mixture."""
    name = type(module).__name__.lower()
    weight = module._parameters.get("weight")
    return weight is not None and weight.dim() == 2 and name.endswith("router")


def input_rows(site: Site, value: Tensor, tokens: Tokens) -> Tensor:
    """What enters a site's module, as [rows, input channels]."""
    if site.kind == "conv":
        return _positions(_patches(site.module, value), tokens)
    if site.kind == "norm" and _channels_first(site.module):
        return _positions(value.flatten(2).movedim(1, -1), tokens)
    return tokens.rows(value)


def output_rows(site: Site, value: Tensor, tokens: Tokens) -> Tensor:
    """What leaves a site's module, as [rows, output channels]."""
    if site.kind == "conv" or (site.kind == "norm" and _channels_first(site.module)):
        return _positions(value.flatten(2).movedim(1, -1), tokens)
    return tokens.rows(value)


def _positions(value: Tensor, tokens: Tokens) -> Tensor:
    """[examples, positions, channels] to rows; a causal convolution's tail is left out."""
    mask = tokens.mask
    if mask is not None and len(value) == len(mask) and value.shape[1] >= mask.shape[1]:
        value = value[:, : mask.shape[1]]
    return tokens.rows(value)


def _channels_first(module: nn.Module) -> bool:
    nn = torch.nn
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.InstanceNorm2d)
    return isinstance(module, kinds) or "LayerNorm2d" in type(module).__name__


def _patches(module: Any, value: Tensor) -> Tensor:
    """Every patch a convolution sees, [examples, positions, patch], in its weight's order."""
    from torch.nn import functional

    sizes = [module.kernel_size, module.dilation, module.padding, module.stride]
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        value = functional.pad(value, module._reversed_padding_repeated_twice, mode=mode)
        sizes[2] = (0,) * len(module.kernel_size)
    if len(module.kernel_size) == 1:
        value = value.unsqueeze(-2)
        sizes = [(fill, *size) for fill, size in zip((1, 1, 0, 1), sizes, strict=True)]
    return functional.unfold(value, *sizes).transpose(1, 2)
