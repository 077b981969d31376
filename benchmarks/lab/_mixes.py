"""What the language family's models are trained on: sizes, steps, and shares of each text."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.lab._arithmetic import ENGLISH, WORDINGS, Record, questions
from benchmarks.lab._corpus import CODE, STYLE, Corpus
from benchmarks.lab._llama import Shape, Stream, answers, stream
from benchmarks.lab._train import Schedule

PROSE, MATHS, PROGRAMS = "prose", "maths", "programs"
FORMULAS, SUMS = "formulas", "sums"
"""Questions answered by a formula; formulas followed by their result."""
_FIRST = ("sw", "de", "es", "fr")
"""Languages that are taken first, the one that maths is asked in before all others."""


@dataclass(frozen=True)
class Plan:
    """Sizes and steps for one size of the lab.

    Attributes:
        batch: windows of ``shape.context`` tokens a step.
        base_steps, expert_steps, joint_steps: updates.
        maths_steps: updates of the maths expert; sums take longer to learn than a style.
        base_rate, expert_rate: learning rates.
        own: share of an expert's batches that is its own text; the rest is the base's mixture.
            Without that rest the loss of the German and the Swahili expert on English rose from
            4.0 to more than 7 (0.75: 4.2), and half the sum of their task vectors gained 0.01 and
            0.11 on German and Swahili (0.75: 0.41 and 0.29), one seed.
        prose, formulas: shares of the base's batches; other kinds share what is left evenly.
        languages: how many languages besides English get an expert.
        characters: the most that is read of each kind of text; 0 for all.
        problems: sums that are worded for training.
        validation, test: records scored of each text.
        validation_sums, test_sums: sums asked.
        seeds: seeds a run takes unless told otherwise.
        budget: minutes for a whole run.
    """

    shape: Shape
    batch: int
    base_steps: int
    expert_steps: int
    maths_steps: int
    joint_steps: int
    base_rate: float
    expert_rate: float
    own: float = 0.75
    prose: float = 0.4
    formulas: float = 0.15
    languages: int = 2
    characters: int = 1_000_000
    problems: int = 20_000
    validation: int = 16
    test: int = 40
    validation_sums: int = 50
    test_sums: int = 120
    seeds: int = 1
    budget: float = 20

    def schedule(self, name: str) -> Schedule:
        """How the model `name` is trained: base, joint, or an expert."""
        steps = {"base": self.base_steps, "joint": self.joint_steps, MATHS: self.maths_steps}
        rate = self.base_rate if name == "base" else self.expert_rate
        return Schedule(
            steps.get(name, self.expert_steps), rate, betas=(0.9, 0.95), weight_decay=0.05
        )

    def training(self) -> dict[str, Any]:
        """What decides every model besides its own schedule."""
        names = ("shape", "batch", "characters", "problems")
        return {name: asdict(self)[name] for name in names}


PLANS: Mapping[str, Plan] = {
    "fast": Plan(
        Shape(384, 32, 64, 2, 2, 64, 0.05),
        batch=4, base_steps=20, expert_steps=6, maths_steps=6, joint_steps=8,
        base_rate=1e-2, expert_rate=5e-3, characters=20_000, problems=300,
        validation=2, test=3, validation_sums=4, test_sums=6, budget=1,
    ),
    "cpu": Plan(
        Shape(2048, 192, 512, 5, 6, 128, 0.05),
        batch=8, base_steps=1400, expert_steps=300, maths_steps=700, joint_steps=900,
        base_rate=2e-3, expert_rate=1e-3,
    ),
    "gpu": Plan(
        Shape(4096, 640, 1728, 14, 10, 256, 0.02),
        batch=32, base_steps=1200, expert_steps=300, maths_steps=700, joint_steps=900,
        base_rate=6e-4, expert_rate=3e-4, characters=0, problems=100_000,
        validation=48, test=128, validation_sums=60, test_sums=120, budget=60,
    ),
}  # fmt: skip
"""By size of the lab."""


def taught(corpus: Corpus, plan: Plan) -> list[str]:
    """The languages that get an expert, as skills."""

    def order(skill: str) -> tuple[int, str]:
        code = corpus.languages[skill]
        return (_FIRST.index(code) if code in _FIRST else len(_FIRST), code)

    return sorted(corpus.languages, key=order)[: plan.languages]


def asked_in(corpus: Corpus, plan: Plan) -> str | None:
    """The skill of the language in which maths is asked; None if no language can."""
    return next((s for s in taught(corpus, plan) if corpus.languages[s] in WORDINGS), None)


def base_mix(corpus: Corpus, plan: Plan) -> dict[str, float]:
    """Shares of the base's batches: English prose above all, and some of everything."""
    others = [name for name in corpus.skills if name != PROSE]
    rest = (1 - plan.prose - plan.formulas) / len(others)
    return {PROSE: plan.prose, FORMULAS: plan.formulas, **dict.fromkeys(sorted(others), rest)}


def expert_mixes(corpus: Corpus, plan: Plan) -> dict[str, dict[str, float]]:
    """Shares of each expert's batches, by the expert's name."""
    own: dict[str, dict[str, float]] = {}
    if MATHS in corpus.skills:
        own[MATHS] = {MATHS: 0.35, SUMS: 0.65}
    if CODE in corpus.skills:
        own[CODE] = {CODE: 0.6, PROGRAMS: 0.4} if corpus.described.train else {CODE: 1.0}
    for skill in taught(corpus, plan):
        own[skill] = {skill: 1.0}
    if asked := asked_in(corpus, plan):
        own[asked] = {asked: 0.75, _foreign(asked): 0.25}
    if STYLE in corpus.skills:
        own[STYLE] = {STYLE: 1.0}
    base = base_mix(corpus, plan)
    return {name: _added([(plan.own, mix), (1 - plan.own, base)]) for name, mix in own.items()}


def joint_mix(experts: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The experts' mixtures in equal parts."""
    return _added([(1 / len(experts), mix) for mix in experts.values()])


def _added(parts: Sequence[tuple[float, Mapping[str, float]]]) -> dict[str, float]:
    names = sorted({name for _, mix in parts for name in mix})
    return {name: sum(share * mix.get(name, 0.0) for share, mix in parts) for name in names}


def _foreign(skill: str) -> str:
    return f"{FORMULAS} in {skill}"


def streams(corpus: Corpus, plan: Plan, tokenizer: Any) -> dict[str, Stream]:
    """Every kind of text as tokens, by the names that the mixtures use."""
    made = {
        name: stream(tokenizer, some(skill.train, plan.characters))
        for name, skill in corpus.skills.items()
    }
    asked = asked_in(corpus, plan)
    english = questions(ENGLISH, "train", plan.problems, seed=0)
    made[FORMULAS] = answers(tokenizer, _asked(ENGLISH, english, "formula"), unfinished=True)
    made[SUMS] = answers(tokenizer, _results(english, plan.problems))
    if corpus.described.train:
        made[PROGRAMS] = stream(tokenizer, corpus.described.train)
    if asked:
        language = corpus.languages[asked]
        records = questions(language, "train", plan.problems, seed=0)
        pairs = _asked(language, records, "formula")
        made[_foreign(asked)] = answers(tokenizer, pairs, unfinished=True)
    return made


def _asked(language: str, records: Sequence[Record], ending: str) -> list[tuple[str, str]]:
    prompt = WORDINGS[language].prompt
    return [(prompt.format(question=r["question"]), f" {r[ending]}") for r in records]


def _results(asked: Sequence[Record], count: int) -> list[tuple[str, str]]:
    """Formulas and what follows them: after a question, and three times as many alone."""
    alone = questions(ENGLISH, "train", 3 * count, seed=1)
    begun = [f"{prompt}{formula}" for prompt, formula in _asked(ENGLISH, asked, "formula")]
    starts = [*begun, *(record["formula"] for record in alone)]
    ends = [r["answer"].removeprefix(r["formula"]) for r in (*asked, *alone)]
    return list(zip(starts, ends, strict=True))


def some(texts: Sequence[str], characters: int) -> list[str]:
    """Texts at even distances, `characters` in all or a little less; everything for 0."""
    whole = sum(map(len, texts))
    if not characters or whole <= characters:
        return list(texts)
    step = whole / characters
    return [texts[int(i * step)] for i in range(int(len(texts) / step))]


def tokenizer_texts(corpus: Corpus, plan: Plan) -> Iterable[str]:
    """A shuffled part of every kind of text, as much of each."""
    each = plan.characters or 1_000_000
    texts = [text for skill in corpus.skills.values() for text in some(skill.train, each)]
    sums = questions(ENGLISH, "train", plan.problems // 10, seed=0)
    texts += [*corpus.described.train, *map("".join, _asked(ENGLISH, sums, "answer"))]
    random.Random(0).shuffle(texts)
    return texts


def notes(corpus: Corpus, plan: Plan) -> list[str]:
    """What a reader of the numbers must know."""
    lines = [
        f"every expert's batches are {plan.own:.0%} its own text and {1 - plan.own:.0%} the base's "
        "mixture; without it experts forget so much that merges lose most of their gain",
        "losses are nats a token on held-out text; sums are right if the last number written is",
    ]
    if MATHS in corpus.skills:
        lines.append(
            "two thirds of the maths expert's own text are generated sums without a carry; no sum "
            "that is scored was trained on in any wording; the base saw formulas, no results"
        )
    if CODE in corpus.skills and corpus.described.train:
        lines.append("the code expert saw programs without the descriptions they were written from")
    if asked := asked_in(corpus, plan):
        lines.append(
            f"the {asked} expert also learned to write a sum asked in {asked} as a formula, "
            "without its result; translated maths questions were never trained on"
        )
    unread = sorted(skill for skill in corpus.languages if skill not in taught(corpus, plan))
    if unread:
        lines.append(f"{', '.join(unread)}: in the base's mixture only, no expert")
    return lines
