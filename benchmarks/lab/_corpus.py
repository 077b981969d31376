"""What lies in a data folder, by skill: texts to train on, records to score on, never the same.

lm_text/<language>_<title>.txt.gz   prose; `code_...` is program text
math_code/*.jsonl.gz                question and answer (a name with `train` is trained on,
                                    one with `test` scored), or text and code (MBPP)
math_code/*_<language>.tsv.gz       the questions of the maths test, translated, and a number
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mergewise.errors import DataError
from mergewise.evidence._data import Data

Record = dict[str, str]

ENGLISH, CODE = "en", "code"
STYLE = "shakespeare"
"""An English title with this word in it is an author's style, with an expert of its own."""
PASSAGE = 400
"""Characters, about a hundred tokens."""
_HELD_OUT = 0.05
_LANGUAGES = {"de": "german", "sw": "swahili", "es": "spanish", "fr": "french"}


@dataclass
class Skill:
    """One kind of text; passages and records in the order of the data.

    Attributes:
        train: texts, each a whole (a passage, a problem with its solution, a program).
        validation: records, scored for tuning.
        test: records, scored for the table.
    """

    train: list[str] = field(default_factory=list)
    validation: list[Record] = field(default_factory=list)
    test: list[Record] = field(default_factory=list)


@dataclass(frozen=True)
class Corpus:
    """A data folder.

    Attributes:
        skills: by name: ``prose``, ``maths``, ``code``, ``shakespeare`` and the languages.
        languages: code by name of skill, such as ``sw`` by ``swahili``.
        described: programs, and for those held out the description they were written from.
        translated: maths questions with answers by language code.
        digest: SHA-256 of every file that was read.
    """

    skills: dict[str, Skill]
    languages: dict[str, str]
    described: Skill
    translated: dict[str, Skill]
    digest: str


def read_corpus(folder: Path) -> Corpus:
    """Find and split everything in `folder` that the language family can use.

    Raises:
        DataError: if there is no English prose, or no second kind of text.
    """
    texts = _files(folder / "lm_text", ".txt")
    tables = _files(folder / "math_code", ".jsonl")
    translations = _files(folder / "math_code", ".tsv")
    skills: dict[str, Skill] = defaultdict(Skill)
    languages = _read_texts(texts, skills)
    translated = {path.name.split(".")[0].rpartition("_")[2]: path for path in translations}
    questions = {lang: _translation(path) for lang, path in translated.items()}
    described = Skill()
    longest = max((len(s.validation) + len(s.test) for s in questions.values()), default=0)
    for path in tables:
        _read_table(path, skills, described, longest)
    if "maths" in skills and not skills["maths"].test:
        _hold_out(skills["maths"])
    digest = _digest([*texts, *tables, *translations])
    skills = {name: s for name, s in skills.items() if s.train and s.validation and s.test}
    languages = {name: code for name, code in languages.items() if name in skills}
    if "prose" not in skills or len(skills) < 3:
        raise DataError(
            f"{folder}: texts for the language family expected: lm_text/en_*.txt.gz and at least "
            f"two other kinds of text, each of at least {3 * PASSAGE} characters (see "
            f"docs/lab.md); found {', '.join(skills) or 'none'}"
        )
    return Corpus(skills, languages, described, questions, digest)


def _files(folder: Path, suffix: str) -> list[Path]:
    return sorted(p for p in folder.glob("*") if p.name.endswith((suffix, f"{suffix}.gz")))


def _digest(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _read_texts(paths: Iterable[Path], skills: dict[str, Skill]) -> dict[str, str]:
    languages = {}
    for path in paths:
        code, _, title = path.name.split(".")[0].partition("_")
        name = _skill_of(code, title)
        if code not in (ENGLISH, CODE):
            languages[name] = code
        for record in Data(path):
            _cut(list(passages(record["text"])), skills[name])
    return languages


def _skill_of(code: str, title: str) -> str:
    if code == ENGLISH:
        return STYLE if STYLE in title else "prose"
    return _LANGUAGES.get(code, code)


def passages(text: str, size: int = PASSAGE) -> Iterator[str]:
    """`text` in pieces of whole lines, each of at least `size` characters but for the last."""
    held, length = [], 0
    for line in text.replace("\r\n", "\n").split("\n"):
        held.append(line)
        length += len(line) + 1
        if length >= size:
            yield "\n".join(held).strip("\n")
            held, length = [], 0
    if rest := "\n".join(held).strip():
        yield rest


def _cut(pieces: Sequence[str], skill: Skill) -> None:
    """The last tenth of a text is held out: half of it for validation, half for the test."""
    held = max(1, int(len(pieces) * _HELD_OUT)) if len(pieces) > 2 else 0
    first, second = len(pieces) - 2 * held, len(pieces) - held
    skill.train += pieces[:first]
    skill.validation += [{"text": piece} for piece in pieces[first:second]]
    skill.test += [{"text": piece} for piece in pieces[second:]]


def _read_table(path: Path, skills: dict[str, Skill], described: Skill, longest: int) -> None:
    rows = [{k: str(v).replace("\r\n", "\n") for k, v in row.items()} for row in Data(path)]
    fields = set(rows[0]) if rows else set()
    if {"question", "answer"} <= fields:
        _add_maths(path.name, rows, skills["maths"], longest)
    elif {"text", "code"} <= fields:
        _add_programs(rows, described)


def _add_maths(name: str, rows: list[Record], skill: Skill, longest: int) -> None:
    if "test" not in name:
        skill.train += [maths_text(row) for row in rows]
        return
    # the first questions are those that were translated; a translation is no new question
    rest = rows[longest:] or rows
    half = len(rest) // 2
    skill.validation += [{"text": maths_text(row)} for row in rest[:half]]
    skill.test += [{"text": maths_text(row)} for row in rest[half:]]


def _hold_out(skill: Skill) -> None:
    """Where no file is a test, the last rows are."""
    whole, skill.train = skill.train, []
    _cut(whole, skill)


def maths_text(row: Record) -> str:
    """A question and its worked answer as one text."""
    return f"Question: {row['question']}\nAnswer: {row['answer']}"


def _add_programs(rows: list[Record], described: Skill) -> None:
    """Programs of the first 70 % are trained on, without their descriptions."""
    first, second = int(0.7 * len(rows)), int(0.8 * len(rows))
    pairs = [{"description": row["text"], "code": row["code"]} for row in rows]
    described.train += [pair["code"] for pair in pairs[:first]]
    described.validation += pairs[first:second]
    described.test += pairs[second:]


def _translation(path: Path) -> Skill:
    rows = [dict(row) for row in Data(path, columns=("question", "answer"))]
    first = int(0.4 * len(rows))
    return Skill(validation=rows[:first], test=rows[first:])


def spread(records: Sequence[Record], count: int) -> list[Record]:
    """`count` records at even distances; all of them if there are fewer."""
    if len(records) <= count:
        return list(records)
    return [records[i * len(records) // count] for i in range(count)]
