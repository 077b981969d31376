"""Names of papers for what is spelled otherwise here: settings, guides, commands."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_PAGE = "a recipe in docs/arithmetic.md"
_GUIDES = (
    "metagpt", "varm", "lines", "lewis", "lm_cocktail", "mwa", "greedy_soup", "learned_soup",
    "sens_merging", "slta", "hma", "apl", "dppa", "rcp", "layer_schedule",
)  # fmt: skip
_SPELLED: Mapping[str, str] = {
    "average": "linear",
    "mean": "linear",
    "model_soup": "linear",
    "model_soups": "linear, or the guide greedy_soup",
    "weight_averaging": "linear",
    "task_vectors": "task_arithmetic",
    "uniform_soup": "linear",
    "fedavg": "linear, or fednova with steps 1 for task vectors",
    "wise_ft": f"task_arithmetic of one model with weight 0.5: {_PAGE}",
    "expo": f"task_arithmetic from the SFT model with weight 1.3: {_PAGE}",
    "chat_vector": f"task_arithmetic: {_PAGE}",
    "dem": f"task_arithmetic: {_PAGE}",
    "language_arithmetic": f"task_arithmetic: {_PAGE}",
    "resta": f"dare_linear, then task_arithmetic: {_PAGE}",
    "safety_arithmetic": f"breadcrumbs with gamma 0: {_PAGE}",
    "warp": f"nuslerp with a base, then task_arithmetic: {_PAGE}",
    "layer_swapping": f"linear with slices: {_PAGE}",
    "pem": "`mergewise lora merge`, or task_arithmetic: docs/arithmetic.md",
    "lora_lego": "`mergewise lora merge --space units`",
    "lego": "`mergewise lora merge --space units`",
    "tall_masks": "consensus",
    "tall_mask": "consensus",
    "consensus_ta": "consensus",
    "consensus_ties": "consensus with `merged: ties`",
    "dare": "dare_linear or dare_ties, `rescale_by: density` as published",
    "dare_ta": "dare_linear, `rescale_by: density` as published",
    "model_breadcrumbs": "breadcrumbs",
    "sparse_model_soups": "sparse_soup",
    "lottery_ticket_adaptation": "lota",
    "task_singular_vectors": "tsv_m",
    "tsv": "tsv_m",
    "r_tsvm": "not built, for its weights could not be verified; tsv_m is what it starts from",
    "resm": "not built, for its weights could not be verified; tsv_m is what it starts from",
    "iso": "iso_c or iso_cts",
    "wudi_v2": "optmerge",
    "procrustes": "rotate",
    "tensor_sum": "copy_region",
    "swa": "`mergewise average --method swa`",
    "ema": "`mergewise average --method ema`",
    "lawa": "`mergewise average --method lawa`",
    "swad": "`mergewise average --method swad`",
    "lcsc": "`mergewise average --method weights`",
    "regmean_plus_plus": "regmean with the guide regmean_plus_plus",
    **{name: f"a guide, see `mergewise guides {name}`" for name in _GUIDES},
}


def _word(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower()[:40])


SPELLED: Mapping[str, str] = {_word(name): text for name, text in _SPELLED.items()}


def spelled(name: str, methods: Iterable[str]) -> str | None:
    """What a paper's name stands for here, in words; None if it is not known.

    Args:
        methods: those that there are; TIES-Merging is `ties`.
    """
    word = _word(name)
    plain = word.removesuffix("merging")
    own = {_word(method): method for method in methods} if plain != word else {}
    return SPELLED.get(word) or SPELLED.get(plain) or own.get(plain)
