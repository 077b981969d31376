"""Find out what becomes of a stage's vocabularies, as its recipe asks, or says nothing of it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from mergewise.checkpoint import shown
from mergewise.errors import CheckpointError, IncompatibleModelsError, MergewiseError
from mergewise.plan._model import View
from mergewise.plan._vocabulary import Opener, StageVocabulary, special_ids
from mergewise.recipe import ModelRef, Stage
from mergewise.vocabulary import (
    MAX_ID,
    Party,
    RowMap,
    Tokenizer,
    TokenSource,
    VocabularyTensors,
    compare,
    fingerprint_of,
    listed_entry,
    map_rows,
    read_tokenizer,
    union,
    vocabulary_tensors,
    with_tokens,
    within,
)


class Tokenizers:
    """The tokenizers of a plan's models, each read once."""

    def __init__(self) -> None:
        self._read: dict[Any, Tokenizer | None] = {}

    def of(self, view: View) -> Tokenizer | None:
        """A model's; None if it has none. Raises CheckpointError, MissingExtraError."""
        if view.tokenizer is not None:
            return view.tokenizer
        if view.folder not in self._read:
            self._read[view.folder] = read_tokenizer(view.folder)
        return self._read[view.folder]


def stage_vocabulary(
    stage: Stage,
    views: Mapping[ModelRef, View],
    tokenizers: Tokenizers,
    opened: Opener,
    warnings: list[str],
) -> StageVocabulary | None:
    """How a stage's vocabularies are mapped; None if everything stays as it is.

    Args:
        opened: opens models that only `tokenizer` names.
        warnings: told here.

    Raises:
        MergewiseError: if vocabularies do not fit together, or a request cannot be met.
    """
    meeting = _Meeting(stage, list(views.values()), tokenizers, opened, warnings)
    if not meeting.tensors:
        return meeting.kept()
    return meeting.unasked() if stage.tokenizer is None else meeting.asked(stage.tokenizer)


class _Meeting:
    def __init__(
        self,
        stage: Stage,
        views: list[View],
        tokenizers: Tokenizers,
        opened: Opener,
        warnings: list[str],
    ) -> None:
        self.stage = stage
        self.donor = views[0]
        self.tokenizers = tokenizers
        self.opened = opened
        self.warnings = warnings
        self.tensors: dict[str, VocabularyTensors] = {}
        self.views: list[View] = []
        for view in views:
            if self._look(view) is not None:
                self.views.append(view)
        self.merged = len(self.views)
        self.numbers = {view.label: number for number, view in enumerate(self.views)}

    def _look(self, view: View) -> VocabularyTensors | None:
        shapes = {name: meta.shape for name, meta in view.tensors.items()}
        found = vocabulary_tensors(shapes, view.config)
        if found is not None:
            self.tensors[view.label] = found
        return found

    @cached_property
    def rows(self) -> dict[str, int]:
        """By model that is merged."""
        return {view.label: self.tensors[view.label].rows for view in self.views[: self.merged]}

    def kept(self) -> StageVocabulary | None:
        """The donor's tokenizer: only worth a word if an earlier stage made it."""
        if self.donor.tokenizer is None:
            return None
        found = self.tensors.get(self.donor.label)
        return self._result(self.donor.tokenizer, found.rows if found else 0, [])

    # without `tokenizer`

    def unasked(self) -> StageVocabulary | None:
        known = self._known()
        if len(set(self.rows.values())) == 1:
            self._warn_of(known)
            return self.kept()
        sizes = ", ".join(f"{count:,} rows in {label}" for label, count in self.rows.items())
        if len(known) < len(self.rows):
            lacks = ", ".join(label for label in self.rows if label not in known)
            raise IncompatibleModelsError(
                f"embeddings of different sizes ({sizes}), and no tokenizer in {lacks} that would "
                "say what the rows mean; put its tokenizer.json there, and add "
                "`tokenizer_source: union`"
            )
        first, *others = known
        for label in others:
            difference = compare(known[first].tokens, known[label].tokens)
            if not difference.same:
                raise IncompatibleModelsError(
                    f"embeddings of different sizes ({sizes}), and different vocabularies: "
                    f"{difference.tell(first, label)}. Add `tokenizer_source: union` to keep the "
                    "tokens of all models (rows that a model lacks come from those that have "
                    "them), or `tokenizer_source: base` to keep those of "
                    f"{self.donor.label} alone"
                )
        count = max(self.rows.values())
        self._say(
            "embeddings",
            f"of different sizes ({sizes}) and the same tokens: merged by token, and further rows "
            "come from the models that have them",
        )
        tokenizer = self._tokenizer(self.donor) or known[first]
        return self._result(tokenizer, count, self._maps(known[first].tokens, count, {}))

    def _known(self) -> dict[str, Tokenizer]:
        """Tokenizers of the models, without tokens that have no row; unread if all are alike."""
        if self._alike():
            return {}
        try:
            found = {v.label: self._tokenizer(v) for v in self.views[: self.merged]}
        except MergewiseError as error:
            if len(set(self.rows.values())) > 1:
                raise
            self.warnings.append(f"tokenizers not compared: {' '.join(str(error).split())}")
            return {}
        return {label: within(t, self.rows[label]) for label, t in found.items() if t}

    def _print(self, view: View) -> object:
        if view.tokenizer is not None:
            return id(view.tokenizer) if view.tokenizer.edited else view.tokenizer.fingerprint
        try:
            return fingerprint_of(view.folder)
        except CheckpointError as error:
            return str(error)

    def _warn_of(self, known: Mapping[str, Tokenizer]) -> None:
        """Tokens that do not mean the same though the sizes agree."""
        mine = known.get(self.donor.label)
        for label, other in known.items() if mine else ():
            difference = compare(mine.tokens, other.tokens) if mine else None
            if difference is None or difference.same:
                continue
            told = difference.tell(self.donor.label, label)
            if difference.contradicts:
                self.warnings.append(
                    f"tokenizers differ: {told}. Embeddings are merged row by row all the same; "
                    "add `tokenizer_source: base` (or union) to merge them token by token"
                )
            elif difference.only_second:
                self.warnings.append(
                    f"tokenizers differ: {told}. The output gets {self.donor.label}'s; for the "
                    f"other tokens add `tokenizer_source: union`, or `tokenizer_source: {label}`"
                )

    # with `tokenizer`

    def asked(self, request: Mapping[str, Any]) -> StageVocabulary | None:
        source = str(request["source"])
        start = self.donor if source in ("base", "union") else self._named(source)
        if start is self.donor and request.keys() == {"source"} and self._alike():
            return self.kept()
        mine = self._tokenizer(start)
        if mine is None and not any(map(self._tokenizer, self.views)):
            if len(set(self.rows.values())) > 1:
                raise IncompatibleModelsError(f"no model has a tokenizer ({_files()})")
            self.warnings.append("no model has a tokenizer: embeddings are merged row by row")
            return self.kept()
        if mine is None:
            raise IncompatibleModelsError(
                f"{start.label} has no tokenizer ({_files()}), and the output is to get it; name "
                "a model that has one as `source`"
            )
        rows = self.tensors[start.label].rows if start.label in self.tensors else None
        out = within(mine, rows) if rows is not None else mine
        if mine.tokens and out is not mine:
            few = f"{len(mine.tokens) - len(out.tokens):,} of {start.label}'s tokens"
            self._say("left out", f"{few}, which have no row in its embedding")
        if source == "union":
            others = [(v.label, self._full(v)) for v in self.views[: self.merged] if v is not start]
            out, odd = union(out, others)
            self.warnings += odd
        out, sources = self._listed(out, request.get("tokens") or {})
        count = self._count(out, rows, request.get("pad_to_multiple_of"))
        maps = self._maps(out.tokens, count, sources)
        self._tell(out, start, maps)
        if all(rows.is_identity for rows in maps) and self._unchanged(out):
            return self.kept()
        return self._result(out, count, maps, start)

    def _alike(self) -> bool:
        """Whether nothing is to be mapped: one tokenizer, byte for byte, and one size."""
        merged = self.views[: self.merged]
        return len(set(self.rows.values())) == 1 and len({self._print(v) for v in merged}) == 1

    def _count(self, out: Tokenizer, rows: int | None, multiple: int | None) -> int:
        tokens = max(out.tokens.values(), default=-1) + 1
        count = -(-tokens // multiple) * multiple if multiple else max(tokens, rows or 0)
        if count > MAX_ID:
            raise IncompatibleModelsError(f"{count:,} rows; at most {MAX_ID:,} are possible")
        return count

    def _unchanged(self, out: Tokenizer) -> bool:
        return self.donor.tokenizer is None and not out.edited and out.folder == self.donor.folder

    def _named(self, text: str) -> View:
        """A model by its reference, opened if it is not one of those merged."""
        label = str(ModelRef.parse(text))
        known = next((v for v in self.views if v.label == label), None)
        return known or self.opened(label)

    def _number(self, text: str) -> int:
        view = self._named(text)
        if view.label not in self.numbers:
            if self._look(view) is None:
                raise IncompatibleModelsError(f"{view.label}: has no embedding to take rows from")
            self.numbers[view.label] = len(self.views)
            self.views.append(view)
        return self.numbers[view.label]

    def _listed(
        self, out: Tokenizer, tokens: Mapping[str, Any]
    ) -> tuple[Tokenizer, dict[str, TokenSource]]:
        """The tokenizer with the tokens that the recipe lists, and where their rows come from."""
        sources: dict[str, TokenSource] = {}
        entries: dict[str, dict[str, Any]] = {}
        for name, settings in tokens.items():
            token = str(name)
            if not token:
                raise IncompatibleModelsError("tokenizer.tokens: a token is empty")
            sources[token], renamed = self._source(token, settings or {})
            if token not in out.tokens:
                known = [t for v in self.views if (t := self._tokenizer(v))]
                entries[token] = listed_entry(token, known, renamed)
        return with_tokens(out, entries) if entries else out, sources

    def _source(self, token: str, settings: Mapping[str, Any]) -> tuple[TokenSource, Any]:
        """Where one token comes from, and the settings of the token that is renamed to it."""
        source, force = settings.get("source"), bool(settings.get("force"))
        if source is None:
            return TokenSource(force=force), None
        if isinstance(source, dict) and source.get("kind") == "zero":
            return TokenSource(zero=True, force=force), None
        theirs: Any = token
        if isinstance(source, dict) and "kind" in source:
            theirs = source["token"] if "token" in source else int(source["token_id"])
            source = source["model"]
        number = self._number(_reference(source))
        view = self.views[number]
        tokenizer = self._full(view)
        rows = self.tensors[view.label].rows
        row = theirs if isinstance(theirs, int) else tokenizer.tokens.get(str(theirs), -1)
        if not 0 <= row < rows:
            raise IncompatibleModelsError(
                f"tokenizer.tokens.{shown(token, 60)}: {view.label} has no token "
                f"{shown(theirs, 60)}, nor {rows:,} rows for it"
                if isinstance(theirs, int)
                else f"tokenizer.tokens.{shown(token, 60)}: {view.label} has no token "
                f"{shown(theirs, 60)} with a row; name a model that has it, or leave `source` out"
            )
        return TokenSource(number, row, force=force), tokenizer.added.get(str(theirs))

    def _tokenizer(self, view: View) -> Tokenizer | None:
        return self.tokenizers.of(view)

    def _full(self, view: View) -> Tokenizer:
        """A model's tokenizer without tokens that have no row; the base's for one without."""
        found = self._tokenizer(view)
        rows = self.tensors[view.label].rows
        if found is None:
            mine = self._tokenizer(self.donor)
            if mine is None or rows != self.rows.get(self.donor.label):
                raise IncompatibleModelsError(
                    f"{view.label} has no tokenizer ({_files()}), so what its {rows:,} rows stand "
                    "for is not known; put its tokenizer.json there"
                )
            told = f"{view.label} has no tokenizer: taken to be {self.donor.label}'s"
            if told not in self.warnings:
                self.warnings.append(told)
            found = mine
        return within(found, rows)

    def _maps(
        self, tokens: Mapping[str, int], count: int, sources: Mapping[str, TokenSource]
    ) -> list[RowMap]:
        merged = self.views[: self.merged]
        parties = [Party(self._full(v).tokens, self.rows[v.label]) for v in merged]
        base = self.numbers.get(str(self.stage.base_model)) if self.stage.base_model else None
        return map_rows(tokens, count, parties, base, sources)

    def _tell(self, out: Tokenizer, start: View, maps: list[RowMap]) -> None:
        new = f", with {out.put_in:,} put in" if out.put_in else ""
        known = f"{len(out.tokens):,} tokens, {maps[0].count:,} rows"
        self._say("tokenizer", f"that of {start.label}{new}: {known}")
        for view, rows in zip(self.views, maps, strict=False):
            if rows.is_identity:
                continue
            counts = {k: n for k, n in rows.counts.items() if n and k != "own"}
            more = ", ".join(f"{n:,} {_HOW[k]}" for k, n in counts.items())
            more = f"; {more}" if more else ""
            self._say(view.label, f"{rows.counts['own']:,} rows are its own{more}")
        nowhere = maps[0].unknown(out.tokens)
        if nowhere:
            self.warnings.append(
                f"no model has {len(nowhere)} tokens of the output, whose rows are zeros: "
                + ", ".join(shown(t, 40) for t in nowhere[:3])
            )

    def _say(self, of: str, text: str) -> None:
        self.said.append((of, text))

    @cached_property
    def said(self) -> list[tuple[str, str]]:
        return []

    def _result(
        self, out: Tokenizer, count: int, maps: list[RowMap], start: View | None = None
    ) -> StageVocabulary:
        used = {v.label: m for v, m in zip(self.views, maps, strict=False) if not m.is_identity}
        mine = self._tokenizer(self.donor)
        before = mine.tokens if mine else out.tokens
        special: dict[str, Any] = {}
        whose = start or self.donor
        if whose is not self.donor or whose.tokenizer:  # not as the donor's folder has them
            theirs = self._tokenizer(whose)
            special = special_ids(whose, out.tokens, count, theirs)
        return StageVocabulary(
            tokenizer=out,
            rows=count,
            views=tuple(self.views),
            maps=used,
            tensors=self.tensors,
            before=before,
            special=special,
            resized=count != self.rows.get(self.donor.label, count),
            said=tuple(self.said),
        )


_HOW = {
    "filled": "from a model that has the token",
    "mean": "the mean of models that have the token",
    "zero": "zeros",
    "padding": "without a token",
}


def _reference(source: Any) -> str:
    """A model reference as `tokens` may give it, as text."""
    if not isinstance(source, dict):
        return str(source)
    if "path" in source:
        revision = source.get("revision")
        return str(source["path"]) + (f"@{revision}" if revision is not None else "")
    model = _reference(source["model"])
    return f"{model}+{_reference(source['lora'])}" if source.get("lora") else model


def _files() -> str:
    return "no tokenizer.json"
