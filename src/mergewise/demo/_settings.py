"""The demo's sizes and training schedule, and their fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

DOMAINS = ("maths", "code", "prose")
EXPERTS = ("maths", "code")


@dataclass(frozen=True)
class Settings:
    """Sizes in tokens and elements, learning rates as AdamW takes them.

    Attributes:
        base_mix: share of each kind of text in the base model's batches.
        expert_mix: share of the expert's own kind; the rest is drawn as for the base. Without that
            rest the experts forget so much that no merge is better than the base.
        initial_spread: standard deviation of the initial weights. Llama's 0.02 is for widths in
            the thousands; at 128 it learns markedly slower.
        heldout_tokens: the most tokens scored for each kind of text.
        examples: recipes to run, by file stem; empty for all of `examples/*.yml`.
    """

    vocabulary: int = 1024
    hidden: int = 128
    intermediate: int = 384
    layers: int = 5
    heads: int = 4
    context: int = 128
    batch: int = 8
    base_steps: int = 1000
    expert_steps: int = 250
    base_rate: float = 2e-3
    expert_rate: float = 7e-4
    base_mix: Mapping[str, float] = field(
        default_factory=lambda: {"maths": 0.15, "code": 0.15, "prose": 0.7}
    )
    expert_mix: float = 0.75
    heldout_tokens: int = 8192
    initial_spread: float = 0.05
    seed: int = 7
    examples: tuple[str, ...] = ()

    def fingerprint(self, texts: Mapping[str, str]) -> str:
        """Changes whenever the trained models would: with the schedule or the text."""
        schedule = {k: v for k, v in asdict(self).items() if k not in _NOT_TRAINING}
        digest = hashlib.sha256(json.dumps(schedule, sort_keys=True).encode())
        for name in sorted(texts):
            digest.update(f"{name}\0{texts[name]}\0".encode())
        return digest.hexdigest()


_NOT_TRAINING = {"heldout_tokens", "examples"}

FULL = Settings()
FAST = Settings(
    vocabulary=384,
    hidden=32,
    intermediate=64,
    layers=2,
    heads=2,
    context=64,
    batch=8,
    base_steps=80,
    expert_steps=60,
    base_rate=1e-2,
    expert_rate=5e-3,
    heldout_tokens=2048,
)
