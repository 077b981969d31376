"""What statistics of gradients have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar

from mergewise.evidence.statistics._base import Pass, Statistic
from mergewise.methods import Param, Settings

if TYPE_CHECKING:
    from torch import Tensor

    from mergewise.evidence.models._sites import Site

TENSORS = Param(str, None, "which tensors: names with *, separated by commas; all by default")
SAMPLES = Param(int, 1, "labels drawn for each prediction, with `labels: model`", ge=1)


def labels_param(default: str) -> Param:
    """The option that says at which labels the loss is taken."""
    return Param(
        str,
        default,
        "the loss's labels: drawn from the model's distribution, its most likely ones, the "
        "data's, or the exact expectation (classification with at most 32 classes)",
        choices=("model", "argmax", "data", "expected"),
    )


def reduction_param(default: str) -> Param:
    """The option that says how the predictions of one example are added up."""
    return Param(
        str,
        default,
        "the loss of one example: over its predicted tokens, the sum or the mean",
        choices=("sum", "mean"),
    )


@dataclass(frozen=True)
class GradientPass(Pass):
    """What a statistic of gradients may know besides.

    Attributes:
        weight: of this loss: the probability of its labels where several are taken, else 1.
        weights: the tensors themselves, by the checkpoint's names.
    """

    weight: float = 1.0
    weights: Mapping[str, Tensor] = field(default_factory=dict)


class GradientStatistic(Statistic):
    """A statistic of per-example gradients; see `Statistic` for the other class attributes.

    The engine counts examples (and tokens, for outputs); a subclass only adds to the sums.

    Class attributes:
        of_parameters: `gradients` is called, with the gradients of parameters.
        of_outputs: `output_gradients` is called, with the gradients of modules' outputs.
    """

    need = "gradients"
    of_parameters: ClassVar[bool] = True
    of_outputs: ClassVar[bool] = False

    def check(self, options: Settings) -> None:
        """Find what can be found wrong in the options.

        Raises:
            EvidenceError: for options that do not go together.
        """

    def wants_tensor(self, name: str, options: Settings) -> bool:
        """Whether the tensor called `name` is described."""
        patterns = option(options, "tensors", None)
        return not patterns or any(fnmatchcase(name, p.strip()) for p in patterns.split(","))

    def wants(self, site: Site, options: Settings) -> bool:
        """Whether the output of this site's module is described."""
        return self.wants_tensor(site.tensor, options)

    def output_gradients(self, run: Pass, site: Site, rows: Tensor) -> None:
        """The gradient of one loss for a module's output, [rows, output channels]."""


def weight_of(run: Pass) -> float:
    """The weight of the loss that went backward; 1 where nobody said."""
    return run.weight if isinstance(run, GradientPass) else 1.0


def option(options: Settings, name: str, default: Any) -> Any:
    """An option that a statistic may not have."""
    return vars(options).get(name, default)
