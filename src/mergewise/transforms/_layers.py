"""Layers whose channels can be shifted and scaled for good, and how that is written into them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.transforms._edit import Editor
from mergewise.transforms._measure import Moments, Point
from mergewise.transforms._trace import Trace, trace
from mergewise.transforms.batch_norm import batch_norms

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mergewise.evidence import LiveModel
    from mergewise.evidence.models import Fed

_KINDS = ("linear", "conv", "conv1d_transposed")


@dataclass(frozen=True)
class Layer:
    """A linear layer or convolution with a bias, or a batch norm.

    Attributes:
        rows: the axis of the outputs in the weight.
        norm: whether it is a batch norm; what is measured are then its inputs.
    """

    point: Point
    rows: int = 0
    norm: bool = False

    @property
    def path(self) -> str:
        return self.point.path

    @property
    def module(self) -> Any:
        return self.point.module

    def outputs(self, module: nn.Module) -> Point:
        """Where the outputs of the same layer of another model are seen."""
        return replace(self.point, module=module.get_submodule(self.path), side="outputs")

    def plain(self) -> Tensor:
        """By what the layer multiplies what is measured, float64 [channels] or a number."""
        if not self.norm:
            return torch.ones((), dtype=torch.float64)
        module = self.module
        spread = (module.running_var.double() + module.eps).sqrt()
        return module.weight.detach().double() / spread

    def scale(self, seen: Moments, std: Tensor, eps: float) -> tuple[Tensor, int]:
        """What to multiply what was seen by, so that it gets the wanted standard deviation.

        Args:
            eps: a channel whose standard deviation is not above this share of the layer's largest
                is constant, and keeps the factor it has.

        Returns:
            Factors [channels], and how many channels are constant.
        """
        constant = seen.std <= eps * seen.std.max()
        plain = self.plain().to(std.device).expand_as(std)
        sign = torch.where(plain < 0, -1.0, 1.0)
        wanted = sign * std / torch.where(constant, 1.0, seen.std)
        return torch.where(constant, plain, wanted), int(constant.sum())

    def fold(self, editor: Editor, seen: Moments, scale: Tensor, mean: Tensor) -> None:
        """Make ``(seen - its mean) * scale + mean`` the layer's own output."""
        weight, bias = f"{self.path}.weight", f"{self.path}.bias"
        if self.norm:
            spread = (seen.variance + self.module.eps).sqrt()
            editor.set(f"{self.path}.running_mean", seen.mean)
            editor.set(f"{self.path}.running_var", seen.variance)
            editor.set(weight, scale * spread)
            editor.set(bias, mean)
            return
        before = editor.get(weight)
        shape = [1] * before.dim()
        shape[self.rows] = -1
        editor.set(weight, before * scale.reshape(shape))
        editor.set(bias, (editor.get(bias) - seen.mean) * scale + mean)


@dataclass(frozen=True)
class Found:
    """The layers of a model, in the order of the forward pass.

    Attributes:
        left: why others were left out, by path.
        covered: layers that a batch norm follows, which takes what is done to them away.
    """

    layers: tuple[Layer, ...]
    left: dict[str, str]
    covered: tuple[str, ...] = ()


def find_layers(model: LiveModel, fed: Fed, editor: Editor, which: str) -> Found:
    """Find the layers by running a batch.

    Args:
        which: ``activated``: those whose output enters a nonlinearity, and batch norms; ``all``:
            every one but those whose output is the model's.
    """
    norms = batch_norms(model.module)
    sites = {s.path: s for s in editor.sites if s.kind in _KINDS and s.path not in norms}
    watched = {**{path: site.module for path, site in sites.items()}, **norms}
    seen = trace(model, fed, watched)
    layers, left = [], {}
    for path, calls in seen.calls.items():
        if path in sites and not _wanted(path, seen, which):
            continue
        kind = "" if path in norms else sites[path].kind
        if problem := _problem(path, watched[path], editor):
            left[path] = problem
            continue
        axis = -1 if kind in ("linear", "conv1d_transposed") else 1
        point = Point(path, watched[path], axis, "outputs" if kind else "inputs", calls)
        layers.append(Layer(point, int(kind == "conv1d_transposed"), not kind))
    covered = tuple(path for path in seen.calls if path in seen.normalised)
    return Found(tuple(layers), left, covered)


def _wanted(path: str, seen: Trace, which: str) -> bool:
    if path in seen.normalised:
        return False
    return path in seen.activated or (which == "all" and path not in seen.final)


def _problem(path: str, module: Any, editor: Editor) -> str | None:
    if module.weight is None or module.bias is None:
        return "has no bias to take up the shift"
    if not all(editor.can(f"{path}.{name}") for name in ("weight", "bias")):
        return "shares its weights, or no stored tensor holds them alone"
    return None


def has_layer_norm(modules: Iterable[nn.Module]) -> bool:
    """Whether some module normalises each position by itself."""
    names = (type(module).__name__.lower() for module in modules)
    return any("layernorm" in name or "rmsnorm" in name or "groupnorm" in name for name in names)
