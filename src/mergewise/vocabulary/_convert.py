"""Older tokenizer files turned into what ``tokenizer.json`` holds, by `transformers`."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from mergewise.checkpoint import where
from mergewise.errors import CheckpointError, MissingExtraError

SLOW_FILES = (
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model", "vocab.json",
    "merges.txt", "vocab.txt", "added_tokens.json", "special_tokens_map.json",
    "tokenizer_config.json",
)  # fmt: skip
_VOCABULARIES = (*SLOW_FILES[:5], "vocab.txt")


def converted(folder: Path) -> bytes | None:
    """The folder's tokenizer in the form of `tokenizers`; None if it holds no vocabulary.

    No code of the folder is run.

    Raises:
        MissingExtraError: without `transformers`.
        CheckpointError: if they cannot be converted.
    """
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        return None
    stamps = tuple(
        (name, (folder / name).stat().st_mtime_ns)
        for name in SLOW_FILES
        if (folder / name).exists()
    )
    return _converted(folder, stamps)


@lru_cache(8)
def _converted(folder: Path, stamps: tuple[tuple[str, int], ...]) -> bytes:
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise MissingExtraError("hf", "transformers") from None
    try:
        found = AutoTokenizer.from_pretrained(
            folder, use_fast=True, trust_remote_code=False, local_files_only=True
        )
        text: str = found.backend_tokenizer.to_str()
    except Exception as error:  # whatever a library makes of files that nobody vouches for
        raise CheckpointError(
            f"{where(folder)}: there is no tokenizer.json, and transformers cannot convert the "
            f"older files ({type(error).__name__}: {' '.join(str(error).split())[:300]}); open "
            "the tokenizer with transformers and save it, or fetch tokenizer.json"
        ) from None
    return text.encode()
