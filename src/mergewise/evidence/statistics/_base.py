"""The interface of a statistic: sums over tokens or examples, keyed by the tensor they describe.

A statistic is kept as plain sums and counts, so that two workers' files add up to what one would
have found; means, norms and the like are made when a file is read (`finalise`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mergewise.methods import Param, Settings

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from mergewise.checkpoint import Checkpoint
    from mergewise.evidence.models._sites import Site

Need = Literal["forward", "gradients", "file"]

PRUNED = Param(
    float, None,
    "measure each layer behind layers of which Wanda pruned this share, as LEWIS's reference does; "
    "tensors outside of layers are left out", ge=0, lt=1,
)  # fmt: skip


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
    """What a statistic may know of the pass: its options, the model, the sums.

    Attributes:
        scratch: for the statistic's own use; emptied after every batch.
    """

    options: Settings
    model: nn.Module
    sums: Sums
    config: Any = None
    scratch: dict[str, Any] = field(default_factory=dict, kw_only=True)


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
        reads: which side of a module `forward` looks at; the other side is then empty.
        two_models: it compares two models on the same data; `pair` is called, not `forward`.
        unit: what `read` counts.
        files: what the file that `read` takes is usually called, for those who name its folder.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    sums: ClassVar[Mapping[str, str]]
    need: ClassVar[Need] = "forward"
    data: ClassVar[Literal["none", "unlabelled", "labelled"]] = "unlabelled"
    source: ClassVar[str] = ""
    params: ClassVar[Mapping[str, Param]] = {}
    reads: ClassVar[Literal["inputs", "outputs", "both"]] = "both"
    two_models: ClassVar[bool] = False
    unit: ClassVar[str] = "tokens"
    files: ClassVar[tuple[str, ...]] = ()

    def wants(self, site: Site, options: Settings) -> bool:
        """Whether this tensor is described; `site` is a weight and the module that uses it."""
        return True

    def forward(self, run: Pass, site: Site, inputs: Tensor, outputs: Tensor) -> None:
        """One batch went through: rows of real tokens only, float32. Whoever calls counts them.

        Args:
            inputs: [tokens, input channels].
            outputs: [tokens, output channels].
        """

    def pair(self, run: Pass, site: Site, outputs: Tensor, others: Tensor) -> None:
        """One batch went through two models: a module's outputs in each, [tokens, channels]."""

    def routing(
        self, run: Pass, site: Site, logits: Tensor, chosen: Tensor, weights: Tensor
    ) -> None:
        """One batch was routed by a mixture of experts; `site` is the router.

        Args:
            logits: [tokens, experts], before any normalisation.
            chosen: int64 [tokens, k], the experts each token went to.
            weights: [tokens, k], with which their outputs were added.
        """

    def gradients(self, run: Pass, gradients: Mapping[str, Tensor]) -> None:
        """One example went backward: the gradient of its loss, by the checkpoint's names."""

    def read(
        self, checkpoint: Checkpoint, path: Path, options: Settings
    ) -> Iterator[tuple[str, str, Tensor, int]]:
        """For need ``file``: (tensor, sum, value, count), read from a training checkpoint."""
        raise NotImplementedError(f"{self.name} reads no file")

    def finalise(self, sums: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
        """Means and norms from one tensor's sums; by default sums divided by the tokens."""
        total = max(1, counts.get("tokens", counts.get("examples", 1)))
        return {name: value / total for name, value in sums.items()}

    @classmethod
    @abstractmethod
    def describe(cls) -> str:
        """The formula, in plain text."""
