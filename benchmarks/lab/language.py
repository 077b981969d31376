"""Family 4, language: a small Llama of many tongues, and experts for five of its skills.

The base learns English prose and some of everything. Experts go on from it with maths and sums,
program text, two further languages and one author's style. Targets that no expert has alone:
maths questions and sums in another language, and programs from descriptions in English. Asking a
merge for maths in a language is Layer Swapping's test (Bandarkar et al. 2024, arXiv 2410.01335).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks.lab import _mixes
from benchmarks.lab._columns import columns
from benchmarks.lab._corpus import Corpus, read_corpus
from benchmarks.lab._evidence import Calibration
from benchmarks.lab._family import Family, LabTask, Models, Size, State
from benchmarks.lab._llama import batches, new_llama, token_loss, train_tokenizer
from benchmarks.lab._mixes import PLANS, Plan
from benchmarks.lab._train import MARK, kept_folder, train
from mergewise._lazy import torch
from mergewise.errors import DataError
from mergewise.evidence.models._live import LiveModel

if TYPE_CHECKING:
    from rich.console import Console

BASE, JOINT = "base", "joint"


class Language(Family):
    """Experts for maths, code, two languages and a style, from one small base model."""

    name: ClassVar[str] = "language"
    calibrating: ClassVar[int] = 128
    title: ClassVar[str] = "language: a small Llama and experts for maths, code, languages, style"

    def __init__(self, data: Path | None, folder: Path, size: Size, device: str) -> None:
        super().__init__(data, folder, size, device)
        if data is None:
            raise DataError(
                "the language family needs texts; name a folder with --data (make lab DATA=folder) "
                "that holds lm_text/ and math_code/, as docs/lab.md describes"
            )
        self.plan: Plan = PLANS[size]
        self.corpus: Corpus = read_corpus(data)
        self.experts = _mixes.expert_mixes(self.corpus, self.plan)
        self._module: Any = None

    @property
    def seeds(self) -> int:
        return self.plan.seeds

    @property
    def budget(self) -> float:
        return self.plan.budget

    def tasks(self, seed: int) -> list[LabTask]:
        return columns(self.corpus, self.plan, tuple(self.experts))

    def train(self, seed: int, console: Console) -> Models:
        mixes = {**self.experts, JOINT: _mixes.joint_mix(self.experts)}
        base = self._kept(seed, BASE, _mixes.base_mix(self.corpus, self.plan), None, console)
        after = {name: self._kept(seed, name, mix, base, console) for name, mix in mixes.items()}
        states = {name: _state(folder) for name, folder in {BASE: base, **after}.items()}
        return Models(states.pop(BASE), joint=states.pop(JOINT), experts=states)

    def live(self, state: State, name: str) -> LiveModel:
        if self._module is None:
            self._module = new_llama(self.plan.shape, self.tokenizer, 0).to(self.device).eval()
        self._module.load_state_dict(dict(state))
        return LiveModel(name=name, module=self._module, tokenizer=self.tokenizer)

    def calibration(self, seed: int, expert: str, state: State, examples: int) -> Calibration:
        shape, size = self.plan.shape, self.plan.batch
        module = new_llama(shape, self.tokenizer, seed).to(self.device).eval()
        module.load_state_dict(dict(state))
        drawn = batches(self._streams, self.experts[expert], size, shape.context, seed)
        windows = torch.cat([next(drawn)[0] for _ in range(-(-examples // size))])[:examples]
        given = [{"input_ids": part.to(self.device)} for part in windows.split(size)]
        return Calibration(LiveModel(expert, module, tokenizer=self.tokenizer), given)

    def examples(self, seed: int, expert: str, state: State, count: int) -> Calibration:
        """Whole texts of the expert's own kind, at even distances, cut to the context."""
        module = new_llama(self.plan.shape, self.tokenizer, seed).to(self.device).eval()
        module.load_state_dict(dict(state))
        texts = self.corpus.skills[expert].train
        chosen = [texts[i * len(texts) // count] for i in range(min(count, len(texts)))]
        ids = [self.tokenizer(text)["input_ids"][: self.plan.shape.context] for text in chosen]
        given = [{"input_ids": torch.tensor([one], device=self.device)} for one in ids]
        return Calibration(LiveModel(expert, module, tokenizer=self.tokenizer), given)

    def steps(self, expert: str) -> int:
        return self.plan.schedule(expert).steps

    def checkpoint(self, seed: int, name: str) -> Path:
        return self.home(seed) / name

    def settings(self) -> dict[str, Any]:
        return {
            "plan": asdict(self.plan),
            "data": self.corpus.digest,
            "base": _mixes.base_mix(self.corpus, self.plan),
            "experts": self.experts,
        }

    def notes(self) -> list[str]:
        return _mixes.notes(self.corpus, self.plan)

    @cached_property
    def tokenizer(self) -> Any:
        """One for all seeds: trained on some of every kind of text."""
        from transformers import AutoTokenizer

        mark = _hash(self.corpus.digest, self.plan.shape.vocabulary, self.plan.characters)
        folder = kept_folder(self.folder / "tokenizer", mark, self._make_tokenizer)
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def _make_tokenizer(self, folder: Path) -> None:
        texts = _mixes.tokenizer_texts(self.corpus, self.plan)
        train_tokenizer(texts, self.plan.shape.vocabulary, folder)

    @cached_property
    def _streams(self) -> dict[str, Any]:
        return _mixes.streams(self.corpus, self.plan, self.tokenizer)

    def _kept(
        self, seed: int, name: str, mix: Mapping[str, float], start: Path | None, console: Console
    ) -> Path:
        """The folder of one model; it depends on its own settings and those of its base."""
        plan, schedule = self.plan, self.plan.schedule(name)
        before = (start / f"{MARK}.txt").read_text("utf-8") if start else self.corpus.digest
        mark = _hash(self.code, seed, before, mix, asdict(schedule), plan.training())

        def make(folder: Path) -> None:
            module = self._fresh(seed, start)
            own = int(_hash(seed, name)[:8], 16)
            windows = batches(self._streams, mix, plan.batch, plan.shape.context, own)
            label = f"{self.name} seed {seed}: {name}"
            gpu = self.device != "cpu"
            train(module, windows, token_loss, schedule, label=label, console=console, bfloat16=gpu)
            _save(module, folder)
            self.tokenizer.save_pretrained(folder)

        return kept_folder(self.home(seed) / name, mark, make)

    def _fresh(self, seed: int, start: Path | None) -> Any:
        module = new_llama(self.plan.shape, self.tokenizer, seed)
        if start is not None:
            module.load_state_dict(_state(start))
        return module.to(self.device)


def _save(module: Any, folder: Path) -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()  # a bar for one small file would break the progress line
    module.save_pretrained(folder)


def _state(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
