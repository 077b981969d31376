"""Tokenizers and vocabularies: what a token's row is in every model, and in the output."""

from __future__ import annotations

from mergewise.vocabulary._chat import NAMED, lacking, template_in, write_template
from mergewise.vocabulary._compare import Difference, compare
from mergewise.vocabulary._cut import Cutter
from mergewise.vocabulary._files import OutputFiles, moved_ids
from mergewise.vocabulary._ids import IdChange
from mergewise.vocabulary._match import Level, Lexicon, Match, match, read_lexicon, roles_of
from mergewise.vocabulary._rows import (
    MEAN,
    OWN,
    PADDING,
    ZERO,
    Fills,
    Party,
    RowMap,
    TokenSource,
    map_rows,
)
from mergewise.vocabulary._tensors import VocabularyTensors, vocabulary_tensors
from mergewise.vocabulary._tokenizer import (
    Tokenizer,
    fingerprint_of,
    read_tokenizer,
    tokenizer_content,
)
from mergewise.vocabulary._tokenizer_json import MAX_ID
from mergewise.vocabulary._union import listed_entry, union, with_tokens, within

__all__ = [
    "MAX_ID",
    "MEAN",
    "NAMED",
    "OWN",
    "PADDING",
    "ZERO",
    "Cutter",
    "Difference",
    "Fills",
    "IdChange",
    "Level",
    "Lexicon",
    "Match",
    "OutputFiles",
    "Party",
    "RowMap",
    "TokenSource",
    "Tokenizer",
    "VocabularyTensors",
    "compare",
    "fingerprint_of",
    "lacking",
    "listed_entry",
    "map_rows",
    "match",
    "moved_ids",
    "read_lexicon",
    "read_tokenizer",
    "roles_of",
    "template_in",
    "tokenizer_content",
    "union",
    "vocabulary_tensors",
    "with_tokens",
    "within",
    "write_template",
]
