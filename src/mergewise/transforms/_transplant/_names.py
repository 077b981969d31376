"""The output's config: the model's, with the donor's vocabulary."""

from __future__ import annotations

import copy
from typing import Any

from mergewise.checkpoint import Checkpoint, edited_config
from mergewise.vocabulary import Tokenizer, moved_ids

_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "mask_token_id")
_NOT_EDITED = ("_name_or_path", "quantization_config")


def new_config(
    model: Checkpoint, before: Tokenizer, donor: Checkpoint, after: Tokenizer, rows: int, old: int
) -> tuple[dict[str, Any] | None, list[str]]:
    """The config, and what was lost.

    Ids of tokens are moved to the new vocabulary; begin, end, padding, unknown and mask are those
    that the donor's config states, where they have a row.

    Args:
        rows, old: of the new embedding, and of the model's.
    """
    if model.config is None:
        return None, []
    config, lost = moved_ids(model.config, before.tokens, after.tokens, rows)
    if donor.config:
        stated = {k: v for k, v in donor.config.items() if k in _SPECIAL and v is not None}
        theirs = moved_ids(stated, after.tokens, after.tokens, rows)[0]
        lost = [text for text in lost if text.split()[0] not in theirs]
        config = _with_ids(config, theirs)
    if rows != old:
        kept = {key: value for key, value in config.items() if key in _NOT_EDITED}
        config = edited_config(config, vocab_size=rows) | kept
    return config, lost


def _with_ids(config: dict[str, Any], ids: dict[str, Any]) -> dict[str, Any]:
    """Ids set wherever the config states them, and at the top where it does not."""
    out = copy.deepcopy(config)
    parts = [out, *(v for k, v in out.items() if isinstance(v, dict) and "text" in k)]
    for key, value in ids.items():
        places = [part for part in parts if key in part] or [out]
        for part in places:
            part[key] = value
    return out
