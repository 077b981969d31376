"""Fisher information of masks on attention heads and neurons, spread over the weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mergewise._lazy import torch
from mergewise.errors import EvidenceError
from mergewise.evidence.statistics._base import Pass
from mergewise.evidence.statistics._gradient_base import (
    SAMPLES,
    GradientStatistic,
    labels_param,
    reduction_param,
    weight_of,
)
from mergewise.evidence.statistics._nodes import Place, place_of, spread_over
from mergewise.evidence.statistics.fisher import Fisher
from mergewise.methods import Param, Settings

if TYPE_CHECKING:
    from torch import Tensor

Layers = Mapping[str, Mapping[str, Place]]


class FisherNodes(GradientStatistic):
    """Masks of ones on heads' outputs and on neurons, in place of every weight by itself.

    The gradient of a mask on an input channel of a linear layer is the sum over the layer's
    outputs of weight times gradient, so no masks have to be put into the model.
    """

    name = "fisher_nodes"
    summary = "Fisher information of masks on heads and neurons, spread over the weights"
    sums = {
        "squares": "sum of squared mask gradients; the tensor's shape, 1 along repeated axes",
    }
    source = "Fisher Mask Nodes, Thennal et al. 2024, arXiv 2403.09891"
    params = {
        "labels": labels_param("model"),
        "samples": SAMPLES,
        "reduction": reduction_param("sum"),
        "per": Fisher.params["per"],
        "batch_size": Fisher.params["batch_size"],
        "universal": Param(
            bool, True, "give all other tensors the mean over all masks; else leave them out"
        ),
    }

    def check(self, options: Settings) -> None:
        """Find what can be found wrong in the options.

        Raises:
            EvidenceError: as `Fisher.check`.
        """
        try:
            Fisher().check(options)
        except EvidenceError as error:
            raise EvidenceError(str(error).replace("fisher:", "fisher_nodes:", 1)) from None

    def wants_tensor(self, name: str, options: Settings) -> bool:
        """Whether the tensor called `name` is described."""
        return options.universal or place_of(name) is not None

    def gradients(self, run: Pass, gradients: Mapping[str, Tensor]) -> None:
        """Add the squared gradients of the masks, each spread over the tensors it stands for.

        Raises:
            EvidenceError: for a model whose heads or neurons are not found.
        """
        layers = _layers(gradients)
        weights: Mapping[str, Tensor] = getattr(run, "weights", {})
        heads, kv_heads = _head_counts(run)
        every: list[Tensor] = []
        for places in layers.values():
            found = _squares(places, weights, gradients, heads, weight_of(run))
            every += found.values()
            for name, place in places.items():
                shape = gradients[name].shape
                run.sums.add(name, "squares", spread_over(place, shape, found, kv_heads))
        if run.options.universal:
            mean = torch.cat(every).mean()
            for name in gradients.keys() - {name for places in layers.values() for name in places}:
                run.sums.add(name, "squares", mean.reshape((1,) * gradients[name].dim()))

    def finalise(self, sums: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
        """``fisher_nodes``, the mean over examples (or batches)."""
        total = counts.get("batches") or counts.get("examples", 0)
        return {"fisher_nodes": sums["squares"] / max(1, total)}

    @classmethod
    def describe(cls) -> str:
        """The formula, in plain text."""
        return (
            "F = mean over examples of (d log p / d m)^2 for masks m = 1 that multiply the output "
            "of each attention head and each neuron between a layer's two feed-forward matrices. "
            "Queries and keys have it row by row, by head (keys shared by several heads: their "
            "mean); values, the attention's output and its norm the mean over the layer's heads; "
            "the matrices into the neurons row by row; the matrix out of them and its norm the "
            "mean over the layer's neurons; all else the mean over all masks. For BERT, RoBERTa, "
            "ViT, Llama and GPT-2. What norms ahead of a block get, and keys shared by heads, is "
            "ours; the authors' code squares gradients of batches (`per: batch`)."
        )


def _layers(gradients: Mapping[str, Tensor]) -> Layers:
    found: dict[str, dict[str, Place]] = defaultdict(dict)
    for name in gradients:
        place = place_of(name)
        if place is not None:
            found[place.layer][name] = place
    for layer, places in found.items():
        roles = {place.role for place in places.values()}
        if not {"heads_out", "neurons_out"} <= roles:
            raise EvidenceError(
                f"fisher_nodes: {layer} has no known output of attention heads and of neurons; "
                "BERT, RoBERTa, ViT, Llama and GPT-2 are known. Collect `fisher` in its place"
            )
    if not found:
        raise EvidenceError(
            "fisher_nodes: no layer with attention heads and neurons is known by its tensors' "
            f"names, such as {next(iter(gradients), 'none')}; BERT, RoBERTa, ViT, Llama and GPT-2 "
            "are known. Collect `fisher` in its place"
        )
    return found


def _head_counts(run: Pass) -> tuple[int, int]:
    """Attention heads, and those that keys and values have."""
    config: Any = run.config or getattr(run.model, "config", None)
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int) or heads < 1:
        raise EvidenceError(
            "fisher_nodes: the model's config has no num_attention_heads; collect `fisher` in its "
            "place"
        )
    return heads, getattr(config, "num_key_value_heads", None) or heads


def _squares(
    places: Mapping[str, Place],
    weights: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    heads: int,
    factor: float,
) -> dict[str, Tensor]:
    """Squared gradients of one layer's masks: of `heads` [heads], and of `neurons`."""
    found: dict[str, Tensor] = {}
    for name, place in places.items():
        if place.role not in ("heads_out", "neurons_out") or not place.weight:
            continue
        channels = (gradients[name] * weights[name]).sum(1 if place.turned else 0)
        if place.role == "neurons_out":
            found["neurons"] = channels.square() * factor
        elif len(channels) % heads:
            raise EvidenceError(
                f"fisher_nodes: {name} has {len(channels)} inputs, which {heads} heads do not "
                "share equally; collect `fisher` in its place"
            )
        else:
            found["heads"] = channels.reshape(heads, -1).sum(1).square() * factor
    return found
