"""Means and variances of channels inside a running model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from mergewise._lazy import torch
from mergewise.errors import NonFiniteError
from mergewise.evidence.models import Tokens, call

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mergewise.evidence import LiveModel
    from mergewise.evidence.models import Fed

Side = Literal["inputs", "outputs"]


@dataclass
class Moments:
    """Sums over rows, in float64.

    Attributes:
        rows: how many.
        total: sum of each channel [channels].
        squares: sum of each channel's squares [channels].
    """

    rows: int = 0
    total: Any = 0.0
    squares: Any = 0.0

    def add(self, values: Tensor) -> None:
        """Add rows [rows, channels]."""
        wide = values.double()
        self.rows += len(wide)
        self.total = self.total + wide.sum(0)
        self.squares = self.squares + wide.square().sum(0)

    @property
    def mean(self) -> Tensor:
        """Float64 [channels]."""
        return self.total / self.rows

    @property
    def variance(self) -> Tensor:
        """Over all rows, divided by their number, float64 [channels]."""
        return (self.squares / self.rows - self.mean.square()).clamp_min(0)

    @property
    def std(self) -> Tensor:
        """Square root of the variance."""
        return self.variance.sqrt()


@dataclass(frozen=True)
class Point:
    """A place in a model where channels are seen.

    Attributes:
        path: of the module.
        axis: of the channels, in what is seen.
        side: whether the module's inputs or its outputs are seen.
        calls: how often the module is called in one forward pass.
    """

    path: str
    module: nn.Module
    axis: int
    side: Side = "outputs"
    calls: int = 1

    def seen(self, args: Any, output: Any) -> Tensor:
        """What is measured here."""
        return args[0] if self.side == "inputs" else output

    def rows(self, value: Tensor, tokens: Tokens) -> Tensor:
        """[rows, channels] of real positions, float32 or wider."""
        value = value.detach().movedim(self.axis, -1)
        if tokens.mask is not None and value.dim() == 3 and value.shape[1] > tokens.mask.shape[1]:
            value = value[:, : tokens.mask.shape[1]]  # the tail of a padded convolution
        found = tokens.rows(value)
        return found if found.dtype == torch.float64 else found.float()


class _Enough(Exception):
    """Everything that was to be seen of a batch was seen."""


@dataclass
class Watch:
    """Adds up what passes some points of a model.

    Attributes:
        change: replaces what leaves a point: (point, moments of this batch, what was seen) to
            the new output; None to leave everything as it is.
        collect: called with a point and the rows that passed it.
        partial: stop each forward pass when the last point has been passed.
    """

    model: LiveModel
    points: Sequence[Point]
    change: Callable[[Point, Moments, Tensor], Tensor] | None = None
    collect: Callable[[Point, Tensor], None] | None = None
    partial: bool = False
    moments: dict[str, Moments] = field(default_factory=dict)

    def run(
        self, batches: Sequence[Fed], tick: Callable[[int, int], None] | None = None
    ) -> dict[str, Moments]:
        """Feed everything; moments by path of the points that were reached.

        Raises:
            NonFiniteError: if NaN or infinity passes a point.
        """
        with self._hooked(), _evaluating(self.model.module), torch.no_grad():
            for number, fed in enumerate(batches):
                self._tokens = Tokens(fed.mask)
                self._left = sum(point.calls for point in self.points)
                with suppress(_Enough):
                    call(self.model, fed.inputs)
                if tick is not None:
                    tick(number + 1, len(batches))
        return self.moments

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        handles = [p.module.register_forward_hook(self._hook(p)) for p in self.points]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, point: Point) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            value = point.seen(args, output)
            rows = point.rows(value, self._tokens)
            if not bool(rows.isfinite().all()):
                raise NonFiniteError(
                    f"{self.model.name}: NaN or infinity at {point.path}; look for NaN in its "
                    "weights with `mergewise inspect`"
                )
            own = Moments()
            own.add(rows)
            self.moments.setdefault(point.path, Moments()).add(rows)
            if self.collect is not None:
                self.collect(point, rows)
            changed = None if self.change is None else self.change(point, own, value)
            self._left -= 1
            if self.partial and self._left == 0:
                raise _Enough
            return changed

        return hook


def measure(
    model: LiveModel,
    points: Sequence[Point],
    batches: Sequence[Fed],
    *,
    partial: bool = False,
    tick: Callable[[int, int], None] | None = None,
) -> dict[str, Moments]:
    """Moments at some points, by path; see `Watch`."""
    return Watch(model, points, partial=partial).run(batches, tick)


def along(value: Tensor, axis: int, like: Tensor) -> Tensor:
    """A vector over channels, shaped to be added to `like`."""
    shape = [1] * like.dim()
    shape[axis] = -1
    return value.to(like).reshape(shape)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """No dropout, even if a caller's module was just trained."""
    training = [child for child in module.modules() if child.training]
    module.eval()
    try:
        yield
    finally:
        for child in training:
            child.training = True
