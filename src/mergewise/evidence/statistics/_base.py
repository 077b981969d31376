"""The interface of a statistic: sums over tokens or examples, keyed by the tensor they describe.

A statistic is kept as plain sums and counts, so that two workers' files add up to what one would
have found; means, norms and the like are made when a file is read (`finalise`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mergewise.methods import Param, Settings

if TYPE_CHECKING:
    from mergewise.evidence.statistics._sites import Site
    from torch import Tensor, nn

Need = Literal["forward", "gradients", "file"]


class Sums(ABC):
    """Where a statistic adds up; in memory, or in a file where memory does not suffice."""

    @abstractmethod
    def add(self, tensor: str, name: str, value: Tensor) -> None:
        """Add `value` to the sum called `name` of a tensor; the first call fixes its shape."""

    @abstractmethod
    def count(self, tensor: str, amount: int, unit: str = "tokens") -> None:
        """Add to the number of tokens (or examples) a tensor's sums run over."""


@dataclass(frozen=True)
class Pass:
    """What a statistic may know of the pass: its options, the model, the sums."""

    options: Settings
    model: nn.Module
    sums: Sums
    config: Any = None


class Statistic(ABC):
    """A statistic. Subclass it in a file of `mergewise.evidence.statistics`: registered.

    Class attributes:
        name: on the command line and in evidence files.
        summary: one line.
        sums: the sums it keeps, by name, each with its shape and meaning in words.
        need: whether it is fed forward activations, per-example gradients, or a file.
        data: ``unlabelled``, ``labelled`` or ``none``; what the guides that use it require.
        source: paper (authors, year, arXiv id) where it is defined or first used so.
        params: options.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    sums: ClassVar[Mapping[str, str]]
    need: ClassVar[Need] = "forward"
    data: ClassVar[Literal["none", "unlabelled", "labelled"]] = "unlabelled"
    source: ClassVar[str] = ""
    params: ClassVar[Mapping[str, Param]] = {}

    def wants(self, site: Site, options: Settings) -> bool:
        """Whether this tensor is described; `site` is a weight and the module that uses it."""
        return True

    def forward(self, run: Pass, site: Site, inputs: Tensor, outputs: Tensor) -> None:
        """One batch went through: rows of real tokens only, float32.

        Args:
            inputs: [tokens, input channels].
            outputs: [tokens, output channels].
        """

    def gradients(self, run: Pass, gradients: Mapping[str, Tensor]) -> None:
        """One example went backward: the gradient of its loss, by parameter name."""

    def finalise(self, sums: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
        """Means and norms from one tensor's sums; by default sums divided by the tokens."""
        total = max(1, counts.get("tokens", counts.get("examples", 1)))
        return {name: value / total for name, value in sums.items()}

    @classmethod
    @abstractmethod
    def describe(cls) -> str:
        """The formula, in plain text."""
