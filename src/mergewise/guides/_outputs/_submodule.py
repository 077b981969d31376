"""What experts change in the outputs of one submodule that runs with everybody's weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.errors import NonFiniteError
from mergewise.evidence.models import Sites, Tokens
from mergewise.guides._outputs._heads import Heads

if TYPE_CHECKING:
    from torch import Tensor, nn

Tensors = Mapping[str, "Tensor"]


@dataclass(frozen=True)
class Family:
    """Weights by the checkpoints' names.

    Attributes:
        merged: the names that a merge decides on; of all others the base's are used.
        heads: by kind of block, what was found of its heads.
    """

    base: Tensors
    experts: Sequence[Tensors]
    merged: Collection[str]
    heads: dict[Any, Heads | None] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Outputs:
    """What the experts change in a submodule's outputs.

    Attributes:
        tensors: of the checkpoint, that are merged and lie in it.
        gram: float64 [experts, experts], mean over tokens of <d_i, d_j>.
        group: its number, if it is a group of attention heads.
        places: then by tensor: an axis, and the group of every index along it.
    """

    tensors: tuple[str, ...]
    gram: Tensor
    group: int | None = None
    places: Mapping[str, tuple[int, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Submodule:
    """A part of a layer, or all of it.

    Attributes:
        path: of its module, such as ``model.layers.3.mlp``.
        tensors: of the checkpoint, that are merged and lie in it.
    """

    path: str
    module: nn.Module
    tensors: tuple[str, ...]


def is_whole(parameter: str, sites: Sites) -> bool:
    """Whether the checkpoint's tensors make up all of a parameter."""
    parts = sites.names.of(parameter)
    shape = sites.names.shape(parameter)
    if len(parts) == 1 and parts[0].shape == shape:
        return True
    rows = torch.Size(shape[:-1]).numel()
    return sum(part.stop - part.start for part in parts) == rows


class Measure:
    """Runs one submodule with everybody's weights on the inputs that it is given."""

    def __init__(self, part: Submodule, sites: Sites, family: Family) -> None:
        self.part = part
        self.tokens = Tokens()
        count = len(family.experts)
        self._gram = torch.zeros(count, count, dtype=torch.float64)
        self._rows = 0
        self._base = dict(weights_in(part, sites, lambda name: family.base[name]))
        self._experts = [
            dict(weights_in(part, sites, _chooser(family, expert))) for expert in family.experts
        ]
        self._busy = False

    def hook(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """What the engine of torch calls behind the submodule."""
        if self._busy:  # called by ourselves
            return
        self._busy = True
        try:
            self._add(args, kwargs)
        finally:
            self._busy = False

    def _add(self, args: Any, kwargs: Any) -> None:
        before = self._outputs(self._base, args, kwargs)
        self._gram += products([self._outputs(w, args, kwargs) - before for w in self._experts])
        self._rows += len(before)

    def _outputs(self, weights: Mapping[str, Tensor], args: Any, kwargs: Any) -> Tensor:
        """[tokens, channels], without padding."""
        output = torch.func.functional_call(self.part.module, dict(weights), args, kwargs)
        while isinstance(output, tuple | list):
            output = output[0]
        return self.tokens.rows(output.detach()).float()

    def outputs(self, model: str) -> dict[str, Outputs]:
        """What was found, by path.

        Raises:
            NonFiniteError: if outputs are NaN or infinite.
        """
        return {self.part.path: Outputs(self.part.tensors, self._mean(self._gram, model))}

    def _mean(self, gram: Tensor, model: str) -> Tensor:
        """Per token."""
        if not bool(gram.isfinite().all()):
            raise NonFiniteError(
                f"{model}: NaN or infinity in the outputs of {self.part.path}; try --dtype "
                "float32, and `mergewise inspect` to see whether the weights are finite"
            )
        return gram / max(1, self._rows)


def products(changes: Sequence[Tensor]) -> Tensor:
    """Inner products of changes of outputs, float64 [experts, experts]."""
    flat = torch.stack([change.flatten() for change in changes]).double()
    return (flat @ flat.T).cpu()


def _chooser(family: Family, expert: Tensors) -> Callable[[str], Tensor]:
    def choose(name: str) -> Tensor:
        return expert[name] if name in family.merged else family.base[name]

    return choose


def weights_in(
    part: Submodule, sites: Sites, source: Callable[[str], Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """A submodule's parameters by their names in it, from tensors of a checkpoint."""
    for name, parameter in part.module.named_parameters():
        full = f"{part.path}.{name}"
        if not is_whole(full, sites):
            continue
        value = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
        for one in sites.names.of(full):
            one.of(value).copy_(source(one.tensor))
        yield name, value
