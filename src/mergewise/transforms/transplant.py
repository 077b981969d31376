"""Another model's tokenizer for a model: known rows moved, the others made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from mergewise._device import pick_device
from mergewise._lazy import torch
from mergewise.checkpoint import Checkpoint, locate, open_runnable, shown
from mergewise.errors import CheckpointError, TransformError
from mergewise.methods import Param, Settings
from mergewise.transforms._ask import transform
from mergewise.transforms._base import Ask, Changes, Transform
from mergewise.transforms._transplant._build import Rows, built, is_identity
from mergewise.transforms._transplant._combine import Atoms, Combination
from mergewise.transforms._transplant._names import new_config
from mergewise.transforms._transplant._neighbours import interpolate
from mergewise.transforms._transplant._pieces import from_pieces
from mergewise.transforms._transplant._pursuit import pursue
from mergewise.transforms._transplant._tensors import (
    TokenTensors,
    Use,
    by_rows,
    counterpart,
    token_tensors,
)
from mergewise.transforms._write import Transformed
from mergewise.vocabulary import (
    Cutter,
    Level,
    Lexicon,
    Match,
    OutputFiles,
    Tokenizer,
    match,
    read_lexicon,
    read_tokenizer,
    within,
)

if TYPE_CHECKING:
    from torch import Tensor

LEARNED = ("omp", "nearest")
PARAMS = {
    "method": Param(
        str, "omp", "how rows that the model lacks are made",
        choices=("omp", "nearest", "subword", "mean", "zero", "random"),
    ),
    "k": Param(int, 64, "omp, nearest: tokens that a new row is combined of", ge=1, le=4096),
    "match": Param(
        str, "exact", "which tokens are the model's own: of the same text; byte: also of the same "
        "byte; prefix: then the longest token that the text begins with",
        choices=get_args(Level),
    ),
    "match_for": Param(
        str, "both", "where byte and prefix count; elsewhere match is exact",
        choices=("both", "embed", "lm_head"),
    ),
    "metric": Param(
        str, "euclidean", "nearest: distance of tokens", choices=("euclidean", "cosine")
    ),
    "weighting": Param(
        str, "distance_proportional", "nearest: weights of the tokens found",
        choices=("distance_proportional", "barycentric", "least_squares"),
    ),
    "subword": Param(
        str, "mean", "subword: how the rows of the pieces are combined",
        choices=("mean", "sum", "weighted_mean", "first_last"),
    ),
    "pad_to_multiple_of": Param(
        int, None, "rows are the donor's tokens, rounded up to a multiple of this; without it, "
        "as many as the donor has", ge=1, le=1 << 16,
    ),
    "seed": Param(int, 0, "random: of the numbers drawn", ge=0, lt=2**31),
}  # fmt: skip


class Transplant(Transform):
    """A tokenizer transplanted from a donor."""

    name = "transplant"
    summary = "the tokenizer of another model; embedding and head follow"
    data = "none"
    models = "one donor, or its tokenizer alone"
    alike = False
    source = (
        "omp: Goddard & Fernandes Neto 2025, arXiv 2506.06607; the others as in mergekit's "
        "tokensurgeon"
    )
    variant = (
        "omp takes the atom of the largest cosine with the residual; weighted_mean, and the choice "
        "between embedding and head, are as tokensurgeon means them, which has both reversed"
    )
    params = PARAMS

    def open(self, path: str | Path) -> Checkpoint:
        """The donor; a folder with a tokenizer alone is one without tensors."""
        try:
            return open_runnable(path)
        except CheckpointError:
            folder = Path(path) if Path(path).is_dir() else locate(str(path))
            if folder is None or not (folder / "tokenizer.json").is_file():
                raise
            return Checkpoint(Path(path), folder, (), {}, None, None, (), {})

    def run(self, ask: Ask) -> Changes:
        if len(ask.models) != 1:
            raise TransformError(f"transplant takes one donor, got {len(ask.models)}")
        return _Transplantation(ask, next(iter(ask.models.values()))).changes()

    @classmethod
    def describe(cls) -> str:
        return (
            "Rows of tokens that both tokenizers have (the same text, or the same role, such as "
            "the end of a sequence) are the model's own. Others, where d_t are the donor's rows "
            "and e_t the model's, s the tokens of both:\n"
            "omp: w = argmin |d_t - sum_s w_s d_s|, at most k of them nonzero, chosen greedily; "
            "e_t = sum_s w_s e_s.\n"
            "nearest: the same with the k nearest s, and weights in proportion to 1 / distance, "
            "summing to one (barycentric), or by least squares.\n"
            "subword: the pieces that the model's own tokenizer cuts the token's text into.\n"
            "mean, zero, random: the mean row; zeros; normal numbers with the rows' moments."
        )


def transplant(
    model: str | Path, donor: str | Path, out: str | Path, **options: Any
) -> Transformed:
    """Give a model another model's tokenizer; see `transform` for options and errors.

    Args:
        model: what is changed: a folder or file, or ``BASE+ADAPTER``.
        donor: whose tokenizer it gets. A folder with a tokenizer alone will do for the methods
            that do not read the donor's embedding: all but ``omp`` and ``nearest``.
        options: settings (``method="omp"``, ``k=64``, ...), ``opening`` for a device,
            ``overwrite``, ``progress``.
    """
    return transform("transplant", model, out, models={"donor": donor}, **options)


class _Transplantation:
    """One transplantation; everything that may be refused is looked at before rows are made."""

    def __init__(self, ask: Ask, donor: Checkpoint) -> None:
        self.ask, self.model, self.donor = ask, ask.checkpoint, donor
        self.settings: Settings = ask.settings
        self.tensors: TokenTensors = token_tensors(self.model)
        self.stored = self.tensors.found.rows
        self.mine = _lexicon(self.model, self.stored)
        theirs = token_tensors(donor).found.rows if donor.tensors else None
        self.theirs = _lexicon(donor, theirs)
        self.count = self._count(theirs)
        uses = {*self.tensors.uses.values()}
        self.matches: dict[Use, Match] = {
            use: match(self.mine, self.theirs, self.count, self.stored, self._level(use))
            for use in sorted(uses)
        }
        self._refuse()
        self.files = OutputFiles(self.tokenizer, self.count, self.model.folder)
        self.made: dict[Use, Rows] = {}
        self.learned: dict[tuple[str, Level], Combination] = {}
        self.left: dict[str, float] = {}
        self.unknown: set[str] = set()

    @property
    def tokenizer(self) -> Tokenizer:
        return self.theirs.tokenizer

    def _count(self, rows: int | None) -> int:
        tokens = max(self.tokenizer.tokens.values(), default=-1) + 1
        multiple = self.settings.pad_to_multiple_of
        if multiple:
            return int(-(-tokens // multiple) * multiple)
        return max(tokens, rows or 0)

    def _level(self, use: Use) -> Level:
        chosen = {"both": ("input", "output"), "embed": ("input",), "lm_head": ("output",)}
        level: Level = self.settings.match
        return level if use in chosen[self.settings.match_for] else "exact"

    def _refuse(self) -> None:
        missing = any(m.missing for m in self.matches.values())
        if self.settings.method not in LEARNED or not missing:
            return
        how = self.settings.method
        if not self.donor.tensors:
            raise TransformError(
                f"{self.donor.path}: holds a tokenizer alone, and {how} reads the donor's "
                "embedding; give a model, or another method, such as subword"
            )
        if not any(m.shared for m in self.matches.values()):
            raise TransformError(
                f"{self.model.path} and {self.donor.path} have no token in common, of which {how} "
                "could combine others; take another method, such as subword"
            )

    def changes(self) -> Changes:
        """New tensors, config, and small files."""
        tensors = {}
        for name, axis in self.tensors.found.axes.items():
            if name in self.tensors.same:
                continue
            rows = self._rows(self.tensors.uses[name])
            if is_identity(rows, self.stored):
                continue
            tensors[name] = self._tensor(name, axis, rows)
        tensors |= {n: tensors[e] for n, e in self.tensors.same.items() if e in tensors}
        config, lost = new_config(
            self.model, self.mine.tokenizer, self.donor, self.tokenizer, self.count, self.stored
        )
        return Changes(
            tensors,
            notes=tuple(self._notes()),
            warnings=(*self._warnings(), *lost),
            numbers=self._numbers(),
            config=None if config == self.model.config else config,
            small=self.files,
            resized=True,
        )

    def _tensor(self, name: str, axis: int, rows: Rows) -> Tensor:
        self.ask.progress(f"making {name}", 0, 1)
        shape = self.model.tensors[name].shape
        flat = built(by_rows(self.model, name, axis), rows, name)
        others = [size for place, size in enumerate(shape) if place != axis]
        return flat.reshape(self.count, *others).movedim(0, axis).contiguous()

    def _rows(self, use: Use) -> Rows:
        if use not in self.made:
            self.made[use] = self._make(use)
        return self.made[use]

    def _make(self, use: Use) -> Rows:
        found = self.matches[use]
        made, combination = self._combined(use, found)
        drawn = sorted({*found.missing} - {*made})
        taken = {*self.tokenizer.tokens.values()}
        padding = [row for row in range(self.count) if row not in taken]
        mine = {*self.mine.tokenizer.tokens.values()}
        kept = {row: row for row in padding if row < self.stored and row not in mine}
        real = sorted(row for row in mine if row < self.stored)
        how = self.settings.method
        draw = (how if how in ("mean", "zero", "random") else "mean", int(self.settings.seed))
        return Rows(found, made, combination, drawn, draw, padding, kept, real)

    def _combined(self, use: Use, found: Match) -> tuple[list[int], Combination | None]:
        """The output rows that are combined of the model's, and how."""
        if not found.missing or self.settings.method in ("mean", "zero", "random"):
            return [], None
        if self.settings.method == "subword":
            return self._cut(use, found)
        name = counterpart(self.donor, use)
        key = (name, self._level(use))  # one space for both uses, if the donor's head is tied
        if key not in self.learned:
            self.learned[key] = self._learn(name, found)
        return list(found.missing), self.learned[key]

    def _cut(self, use: Use, found: Match) -> tuple[list[int], Combination | None]:
        cutter = Cutter(self.mine, self.stored)
        names = {row: token for token, row in self.tokenizer.tokens.items()}
        pieces = {row: cutter.cut(self.theirs.text(names[row])) for row in found.missing}
        self.unknown |= {names[row] for row, own in pieces.items() if not own}
        known = {row: own for row, own in pieces.items() if own}
        if not known:
            return [], None
        combined = from_pieces(list(known.values()), self.settings.subword, use == "output")
        return list(known), combined

    def _learn(self, name: str, found: Match) -> Combination:
        """Rows combined as in the space of one of the donor's tensors."""
        theirs = by_rows(self.donor, name, token_tensors(self.donor).found.axes[name])
        shared = torch.tensor(found.shared)
        device = pick_device(self.ask.opening.device)
        atoms = Atoms(theirs[shared[:, 0]], shared[:, 1], device)
        targets = theirs[torch.tensor(found.missing)]
        settings, how = self.settings, self.settings.method
        tick = self._ticker(f"{how} in {name}")
        if how == "omp":
            combination, left = pursue(targets, atoms, settings.k, tick)
        else:
            weighting = settings.weighting
            combination, left = interpolate(
                targets, atoms, settings.k, settings.metric, weighting, tick
            )
        self.left[name] = left
        return combination

    def _ticker(self, stage: str) -> Any:
        return lambda done, total: self.ask.progress(stage, done, total)

    def _numbers(self) -> dict[str, Any]:
        """How many rows come from where, by use; and how well the donor's rows were met."""
        found: dict[str, Any] = {"tokens": len(self.tokenizer.tokens), "rows": self.count}
        for use, one in self.matches.items():
            counts = dict.fromkeys(("exact", "role", "byte", "prefix"), 0)
            for how in one.how.values():
                counts[how] += 1
            found[use] = {**counts, "made": 0, "mean": 0, "zero": 0, **self._made_of(use)}
        return found | ({"relative_residual": dict(self.left)} if self.left else {})

    def _made_of(self, use: Use) -> dict[str, int]:
        rows = self.made.get(use)
        if rows is None:
            return {}
        how = {"mean": "mean", "zero": "zero"}.get(rows.draw[0], "made")
        counts = {"made": len(rows.made), "padding": len(rows.padding)}
        counts[how] = counts.get(how, 0) + len(rows.drawn)
        return counts

    def _notes(self) -> list[str]:
        numbers = self._numbers()
        notes = [f"{self.donor.path}: {numbers['tokens']:,} tokens, {self.count:,} rows"]
        shown_as = {"input": "embedding", "output": "head"}
        for use in self.matches:
            counts = {k: n for k, n in numbers[use].items() if n}
            told = ", ".join(f"{n:,} {_WORDS[k]}" for k, n in counts.items())
            notes.append(f"{shown_as[use]}: {told}")
        for name, left in self.left.items():
            notes.append(f"donor's {name}: {left:.3f} of a row's length is not met, on average")
        return notes

    def _warnings(self) -> list[str]:
        out = []
        if self.unknown:
            some = ", ".join(shown(token, 40) for token in sorted(self.unknown)[:3])
            out.append(f"{len(self.unknown)} tokens of unknown text get the mean row: {some}")
        return out


_WORDS = {
    "exact": "of the same text", "role": "of the same role", "byte": "of the same byte",
    "prefix": "by prefix", "made": "made", "mean": "mean rows", "zero": "zeros",
    "padding": "without a token",
}  # fmt: skip


def _lexicon(checkpoint: Checkpoint, rows: int | None) -> Lexicon:
    found = read_tokenizer(checkpoint.tokenizer_folder)
    if found is None:
        raise TransformError(
            f"{checkpoint.path}: has no tokenizer (no tokenizer.json), so what its rows stand for "
            "is not known; put it there"
        )
    return read_lexicon(found if rows is None else within(found, rows))
