"""The small files of an output folder: config, tokenizer and what else travels with a model."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergewise.checkpoint._config import set_config_value
from mergewise.checkpoint._files import read_small, stays_inside, where
from mergewise.checkpoint._output._write import make_folder, write_file
from mergewise.checkpoint._parts import with_layers
from mergewise.errors import CheckpointError

MAX_COPIED = 200_000_000
"""Bytes of one copied file; the largest tokenizers take about 40 million."""

_COPIED = re.compile(
    r"tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json"
    r"|vocab\.(json|txt|bpe)|merges\.txt|.*\.(model|spm|tiktoken)|chat_template\.(jinja|json)"
    r"|generation_config\.json|(pre|video_pre)?processor_config\.json|LICEN[CS]E[\w.-]*"
)
_DTYPE_KEYS = ("dtype", "torch_dtype")


def edited_config(
    donor: dict[str, Any],
    *,
    dtype: str | None = None,
    kept_layers: Sequence[int] | None = None,
    tie_word_embeddings: bool | None = None,
    vocab_size: int | None = None,
) -> dict[str, Any]:
    """The donor's config with only what a merge changes; everything else as it was.

    Args:
        dtype: torch name of the weights' dtype, such as ``bfloat16``.
        kept_layers: the donor's layer for each layer of the result.
        tie_word_embeddings: whether output head and embedding are one tensor.
        vocab_size: rows of the embedding.

    Raises:
        CheckpointError: if the layers asked for do not fit the config.
        NotBuiltYetError: if the config cannot be rewritten for those layers.
    """
    config = copy.deepcopy(donor) if kept_layers is None else with_layers(donor, kept_layers)
    config.pop("quantization_config", None)
    config.pop("_name_or_path", None)  # it would leak a path and name the wrong model
    if dtype is not None:
        _set_dtype(config, dtype)
    if tie_word_embeddings is not None:
        set_config_value(config, "tie_word_embeddings", tie_word_embeddings)
    if vocab_size is not None:
        set_config_value(config, "vocab_size", vocab_size)
    return config


def _set_dtype(config: dict[str, Any], dtype: str) -> None:
    parts = [config, *(v for v in config.values() if isinstance(v, dict))]
    stated = [(part, key) for part in parts for key in _DTYPE_KEYS if part.get(key) is not None]
    for part, key in stated:
        part[key] = dtype
    if not stated and "_diffusers_version" not in config:
        new = str(config.get("transformers_version", "")).split(".")[0] not in ("", "3", "4")
        config["dtype" if new else "torch_dtype"] = dtype


def write_config(out: Path, config: dict[str, Any]) -> None:
    """Write ``config.json`` into the folder `out`, keys in their order; raises OutputError."""
    write_file(out / "config.json", (json.dumps(config, indent=2) + "\n").encode())


@dataclass(frozen=True)
class Copied:
    """What `copy_tokenizer` did: names copied, and warnings about files left out."""

    names: tuple[str, ...]
    warnings: tuple[str, ...]


def copy_tokenizer(
    donor: Path, out: Path, wanted: Callable[[str], bool] = lambda name: True
) -> Copied:
    """Copy tokenizer, chat templates, generation and processor configs, and licence texts.

    Only regular files of known names are copied, byte for byte. A link is followed within the
    folder and into its hub cache, never elsewhere: a model folder must not be able to publish a
    file of the machine it is merged on.

    Args:
        wanted: whether to copy a file of that name; by default all.

    Raises:
        CheckpointError: if `donor` cannot be listed.
        OutputError: if `out` cannot be written.
    """
    names, warnings = [], []
    for source in copied_files(donor):
        name = source.relative_to(donor).as_posix()
        if not wanted(name):
            continue
        try:
            if not stays_inside(source, donor):
                raise CheckpointError(f"{where(source)}: a link that leaves the folder")
            data = read_small(source, MAX_COPIED)
        except CheckpointError as error:
            warnings.append(f"not copied: {error}")
            continue
        target = out / name
        if target.parent != out:
            make_folder(target.parent)
        write_file(target, data)
        names.append(name)
    return Copied(tuple(names), tuple(warnings))


def copied_files(donor: Path) -> list[Path]:
    """The files of a folder that `copy_tokenizer` may copy, by their names.

    Raises:
        CheckpointError: if the folder cannot be listed.
    """
    templates = donor / "additional_chat_templates"
    try:
        files = [path for path in donor.iterdir() if _COPIED.fullmatch(path.name)]
        if templates.is_dir() and not templates.is_symlink():
            files += [path for path in templates.iterdir() if path.suffix == ".jinja"]
    except OSError as error:
        raise CheckpointError(f"{where(donor)}: cannot be listed: {error}") from None
    return sorted(files)
