"""Published orders, as data.

A term is a row by the name of its method, without punctuation (``tsvm`` matches `tsv_m`), with
``@default`` or ``@tuned`` where that matters; otherwise the tuned row counts, or the default where
nothing is tuned. ``ties keep .2`` names a variant. Several names separated by ``|`` are spellings
of one thing. ``merged`` stands for every merged row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Strength = Literal["robust", "published", "thin", "fragile"]
MERGED = "merged"

PILOT = "the specification's pilot on digits, section 6"
CLIP = "CLIP, 8 tasks"


@dataclass(frozen=True)
class Claim:
    """Every row of `left` is at least `margin` points above every row of `right`.

    Attributes:
        margin: points of mean accuracy in percent, or where tasks differ in metric hundredths of
            the way from base to expert. Negative: at most so much below.
        strength: ``robust`` held in the pilot and as published, ``thin`` has the published sign
            but a margin that needs five seeds or more, ``fragile`` is known to turn around, and
            ``published`` is a result on larger models that nothing says must hold on small ones.
        families: where it is tried; empty for all.
        or_equal: whether equal rows meet it; with a margin they always may.
    """

    text: str
    left: tuple[str, ...]
    right: tuple[str, ...]
    strength: Strength
    source: str
    margin: float = 0.0
    families: tuple[str, ...] = ()
    or_equal: bool = False


TA = "task_arithmetic"
AVERAGE = "linear"
TIES = "ties keep .2"
DARE_5, DARE_9 = "dare_linear drop .5", "dare_linear drop .9"
REGMEAN = "regmean"
REGMEAN_PP = "regmean++|regmeanpp|regmeanplusplus|regmeanplus"
TSV, ISO, ISO_CTS, ASWUDI = "tsv_m|tsvm|tsv", "iso_c|iso", "iso_cts", "aswudi"
SPECTRAL = (TSV, ISO, ISO_CTS, ASWUDI)
# with each task's masks; the method `emr` is the vector that they share
MASKS, EMR = "tall_mask|tall_masks|tall", "emr_masks|emr_merging"

SAFE: tuple[Claim, ...] = (
    Claim("fine-tuned > joint training", ("fine-tuned",), ("joint",), "robust", PILOT),
    Claim("fine-tuned > masks with per-task state", ("fine-tuned",), (MASKS,), "robust", PILOT),
    Claim("joint training > every single merged model", ("joint",), (MERGED,), "robust", PILOT),
    Claim("TALL masks > EMR", (MASKS,), (EMR,), "robust", PILOT),
    Claim("joint training > EMR", ("joint",), (EMR,), "robust", PILOT),
    Claim("EMR > every single merged model", (EMR,), (MERGED,), "robust", PILOT),
    Claim("RegMean++ > RegMean", (REGMEAN_PP,), (REGMEAN,), "robust", PILOT),
    Claim("RegMean > average by 15 points", (REGMEAN,), (AVERAGE,), "robust",
          f"{CLIP}: 82.4 and 66.5", 15.0, ("digits",)),
    Claim("RegMean > average by more than 25 points", (REGMEAN,), (AVERAGE,), "robust", PILOT,
          25.0, ("digits",)),
    Claim("spectral methods > tuned TA by about 9 points", SPECTRAL, (f"{TA}@tuned",), "robust",
          PILOT, 9.0),
    Claim("spectral methods > DARE by about 9 points", SPECTRAL, (DARE_5, DARE_9), "robust",
          PILOT, 9.0),
    Claim("spectral methods > TIES by about 9 points", SPECTRAL, (TIES,), "robust", PILOT, 9.0),
    Claim("spectral methods > Consensus by about 9 points", SPECTRAL, ("consensus|consensus_ta",),
          "robust", PILOT, 9.0),
    Claim("spectral methods > Fisher by about 9 points", SPECTRAL, ("fisher",), "robust",
          PILOT, 9.0),
    Claim("spectral methods > average by about 9 points", SPECTRAL, (AVERAGE,), "robust",
          PILOT, 9.0),
    Claim("TSV-M at 1 within 1 point of tuned", (f"{TSV}@default",), (f"{TSV}@tuned",), "robust",
          PILOT, -1.0),
    Claim("Iso-C at 1 within 1 point of tuned", (f"{ISO}@default",), (f"{ISO}@tuned",), "robust",
          PILOT, -1.0),
    Claim("Iso-CTS at 1 within 1 point of tuned", (f"{ISO_CTS}@default",), (f"{ISO_CTS}@tuned",),
          "robust", PILOT, -1.0),
    Claim("filtered WUDI > its exact minimiser", (ASWUDI, "swudi"), ("wudi_exact|wudi exact",),
          "robust", PILOT),
    Claim("RegMean with off-diagonals times .95 > with all of them, at 16 samples",
          ("regmean 16 .95|regmean .95 16",), ("regmean 16",), "robust", PILOT),
    Claim("TA >= DARE at .5", (f"{TA}@tuned",), (DARE_5,), "thin", PILOT,
          or_equal=True),
    Claim("DARE at .5 >= DARE at .9", (DARE_5,), (DARE_9,), "thin", PILOT, or_equal=True),
    Claim("tuned TA > average", (f"{TA}@tuned",), (AVERAGE,), "thin", PILOT),
    Claim("average > pretrained (not so where the base is good)", (AVERAGE,), ("pretrained",),
          "thin", PILOT),
    Claim("TIES > TA", (TIES,), (TA,), "fragile", f"{CLIP}: 72.2 and 68.0"),
    Claim("Fisher > average", ("fisher",), (AVERAGE,), "fragile", f"{CLIP}: 70.6 and 66.5"),
    Claim("Model Stock > average", ("model_stock",), (AVERAGE,), "fragile", PILOT),
    Claim("LiNeS on TA > TA", ("lines|lines task_arithmetic",), (TA,), "fragile", PILOT),
    Claim("LOT > RegMean at 16 samples", ("lot 16",), ("regmean 16",), "fragile", PILOT),
)  # fmt: skip
"""Section 6's list of what is safe to assert, and what is not."""

_VISION, _TEXT, _LANGUAGE = ("vision",), ("text",), ("language",)
_ISO_PAPER = "CLIP ViT-B/32, 8 tasks (arXiv 2502.04959, table 1)"
_FUSION = "CLIP ViT-B/32, 8 tasks (FusionBench)"
_T5 = "T5-Large, 8 tasks (arXiv 2502.04959)"
_ROBERTA = "RoBERTa, GLUE (arXiv 2503.08099)"
_LLAMA = "Llama-2-13B, 5 benchmarks (arXiv 2503.08099)"
_L2S = "Qwen2.5-7B, long to short"
_BENCH = "MergeBench, Gemma-2 and Llama-3"

PUBLISHED: tuple[Claim, ...] = (
    Claim("average < tuned TA", (f"{TA}@tuned",), (AVERAGE,), "published",
          f"{_ISO_PAPER}: 66.3, 70.8", 0.0, _VISION),
    Claim("TA < TIES", (TIES,), (TA,), "published", f"{_ISO_PAPER}: 70.8, 75.1", 0.0, _VISION),
    Claim("TIES < Consensus", ("consensus|consensus_ta",), (TIES,), "published",
          "CLIP ViT-B/32, 8 tasks, original checkpoints: 72.4, 73.6", 0.0, _VISION),
    Claim("TIES < TSV-M, Iso-C, Iso-CTS by 10 points", (TSV, ISO, ISO_CTS), (TIES,), "published",
          f"{_ISO_PAPER}: 75.1 against 85.9, 86.3, 86.2", 10.0, _VISION),
    Claim("average < RegMean by 15 points", (REGMEAN,), (AVERAGE,), "published",
          f"{_FUSION}: 66.5, 82.4", 15.0, _VISION),
    Claim("average < layer-wise AdaMerging by 15 points", ("adamerging|adamerging layer",),
          (AVERAGE,), "published", f"{_FUSION}: 66.5, 82.6", 15.0, _VISION),
    Claim("average < TA", (f"{TA}@tuned",), (AVERAGE,), "published",
          f"{_T5}: 56.4, 63.8; {_ROBERTA}: 52.6, 67.8", 0.0, _TEXT),
    Claim("TIES <= TA", (TA,), (TIES,), "published",
          f"{_T5}: 62.8, 63.8; {_ROBERTA}: 64.7, 67.8 (base), 72.4, 70.9 (large)", 0.0, _TEXT,
          or_equal=True),
    Claim("DARE-TIES <= TA", (TA,), ("dare_ties",), "published", f"{_ROBERTA}: 65.6, 67.8", 0.0,
          _TEXT, or_equal=True),
    Claim("TA < RegMean", (REGMEAN,), (TA,), "published", f"{_T5}: 63.8, 69.1", 0.0, _TEXT),
    Claim("RegMean < Iso-C", (ISO,), (REGMEAN,), "published", f"{_T5}: 69.1, 75.6", 0.0, _TEXT),
    Claim("TA < WUDI by 15 points", ("wudi|swudi|aswudi",), (TA,), "published",
          f"{_ROBERTA}: 67.8, 85.3", 15.0, _TEXT),
    Claim("average < TA", (f"{TA}@tuned",), (AVERAGE,), "published", f"{_L2S}: 48.6, 53.5", 0.0,
          _LANGUAGE),
    Claim("TA < TIES", (TIES,), (TA,), "published",
          f"{_L2S}: 53.5, 54.8; {_LLAMA}: 80.4, 82.6", 0.0, _LANGUAGE),
    Claim("TA < DARE", (DARE_5,), (TA,), "published",
          f"{_LLAMA}: 80.4, 84.0 (but {_L2S}: 53.5, 51.3)", 0.0, _LANGUAGE),
    Claim("TIES < DARE-TIES", ("dare_ties",), (TIES,), "published",
          f"{_LLAMA}: 82.6, 87.2 (but {_L2S}: 54.8, 52.4)", 0.0, _LANGUAGE),
    Claim("DARE < TA on larger models", (TA,), (DARE_5, DARE_9), "published", _BENCH, 0.0,
          _LANGUAGE),
    Claim("Fisher < DARE", (DARE_5,), ("fisher",), "published", _BENCH, 0.0, _LANGUAGE),
    Claim("TA < RegMean on small models", (REGMEAN,), (TA,), "published", _BENCH, 0.0, _LANGUAGE),
    Claim("TA < WUDI by 10 points", ("wudi|swudi|aswudi",), (TA,), "published",
          f"{_LLAMA}: 80.4, 91.5", 10.0, _LANGUAGE),
)  # fmt: skip
"""Section 3's orders, tried on the family nearest to the models they were found on."""

CLAIMS = SAFE + PUBLISHED
