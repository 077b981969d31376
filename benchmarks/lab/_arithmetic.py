"""Sums simple enough for a model of a few million parameters, in English and other languages.

Every sum is a number below 100 plus or minus 1 to 5, with no carry: harder ones were not learned
in the steps a small expert has. Which sums are for training, validation and test is fixed
by a hash of the sum, so that no wording of a held-out sum is ever trained on.

The base learns to write an English question as a formula, ``12 plus 7`` as ``12+7``; it is never
shown a result. The expert for maths learns that ``12+7`` goes on with ``=19``, in English. A sum
asked in another language is the target that no expert has alone: that language's expert learns
``12 jumlisha 7`` as ``12+7``, and is not shown what follows.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

Part = Literal["train", "validation", "test"]
Record = dict[str, str]

ENGLISH = "en"
LEAST, MOST, RIGHT = 10, 99, 5
_SHARES = {"validation": 10, "test": 20}  # per cent; the rest is for training
_WHO = ("Tom", "Ann", "Sam", "Kim", "Ben", "Eva", "Max", "Lea")
_THINGS = ("pens", "books", "eggs", "coins", "cards", "apples", "stones", "cups")


@dataclass(frozen=True)
class Sum:
    """``left sign right``, with ``sign`` one of ``+`` and ``-``."""

    left: int
    sign: str
    right: int

    @property
    def formula(self) -> str:
        """Such as ``12+7``, as the worked answers of GSM8K write it."""
        return f"{self.left}{self.sign}{self.right}"

    @property
    def result(self) -> int:
        """Below 100 and not negative."""
        return self.left + self.right if self.sign == "+" else self.left - self.right

    @property
    def easy(self) -> bool:
        """Whether the tens stay as they are."""
        return self.left // 10 == self.result // 10

    @property
    def part(self) -> Part:
        """Where this sum belongs, whatever the seed."""
        place = int.from_bytes(hashlib.sha256(self.formula.encode()).digest()[:4], "big") % 100
        if place < _SHARES["validation"]:
            return "validation"
        return "test" if place < sum(_SHARES.values()) else "train"


@dataclass(frozen=True)
class Wording:
    """How one language asks.

    Attributes:
        plus: questions with ``{a}``, ``{b}`` and perhaps ``{who}`` and ``{things}``.
        minus: the same for differences.
        frame: question and answer as one text.
    """

    plus: tuple[str, ...]
    minus: tuple[str, ...]
    frame: tuple[str, str] = ("Question:", "Answer:")

    @property
    def prompt(self) -> str:
        """A template for the question alone."""
        return f"{self.frame[0]} {{question}}\n{self.frame[1]}"


WORDINGS: Mapping[str, Wording] = {
    ENGLISH: Wording(
        plus=(
            "What is {a} plus {b}?",
            "{who} has {a} {things} and gets {b} more. How many {things} does {who} have?",
        ),
        minus=(
            "What is {a} minus {b}?",
            "{who} has {a} {things} and gives away {b}. How many {things} does {who} have?",
        ),
    ),
    "sw": Wording(
        plus=("{a} jumlisha {b} ni ngapi?", "Juma ana vitabu {a}, anapata {b} zaidi. Ana vingapi?"),
        minus=("{a} toa {b} ni ngapi?", "Juma ana vitabu {a}, anatoa {b}. Ana vingapi?"),
        frame=("Swali:", "Jibu:"),
    ),
    "de": Wording(
        plus=("Was ergibt {a} und {b} zusammen?", "Ida hat {a} Hefte und bekommt {b}. Wie viele?"),
        minus=("Was bleibt von {a} ohne {b}?", "Ida hat {a} Hefte und verliert {b}. Wie viele?"),
        frame=("Frage:", "Antwort:"),
    ),
    "es": Wording(
        plus=("¿Cuánto es {a} más {b}?", "Ana tiene {a} libros y recibe {b}. ¿Cuántos tiene?"),
        minus=("¿Cuánto es {a} menos {b}?", "Ana tiene {a} libros y pierde {b}. ¿Cuántos tiene?"),
        frame=("Pregunta:", "Respuesta:"),
    ),
    "fr": Wording(
        plus=("Combien font {a} et {b} ?", "Luc a {a} livres et reçoit {b}. Combien a-t-il ?"),
        minus=("Combien font {a} moins {b} ?", "Luc a {a} livres et perd {b}. Combien a-t-il ?"),
        frame=("Demande :", "Réponse :"),
    ),
}


def sums(part: Part) -> list[Sum]:
    """Every sum of a part, in a fixed order."""
    every = (
        Sum(left, sign, right)
        for left in range(LEAST, MOST + 1)
        for sign in "+-"
        for right in range(1, RIGHT + 1)
    )
    return [each for each in every if each.easy and each.part == part]


def questions(language: str, part: Part, count: int, seed: int) -> list[Record]:
    """`count` records ``question``, ``formula``, ``answer`` (``12+7=19``), ``result``.

    No sum comes twice before every sum of the part has come once.

    Raises:
        KeyError: for a language without a `Wording`.
    """
    chance = random.Random(f"{language} {part} {seed}")
    drawn = _endless(sums(part), chance)
    return [_record(next(drawn), WORDINGS[language], chance) for _ in range(count)]


def _endless(every: list[Sum], chance: random.Random) -> Iterator[Sum]:
    while True:
        chance.shuffle(every)
        yield from every


def _record(each: Sum, wording: Wording, chance: random.Random) -> Record:
    template = chance.choice(wording.plus if each.sign == "+" else wording.minus)
    question = template.format(
        a=each.left, b=each.right, who=chance.choice(_WHO), things=chance.choice(_THINGS)
    )
    return {
        "question": question,
        "formula": each.formula,
        "answer": f"{each.formula}={each.result}",
        "result": str(each.result),
    }
