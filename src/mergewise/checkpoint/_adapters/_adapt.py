"""A base with an adapter on top, as a checkpoint whose changed tensors are computed when read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mergewise._paths import exists, expanded
from mergewise.checkpoint._adapters._adapter import Adapter, open_adapter
from mergewise.checkpoint._adapters._fit import Fit
from mergewise.checkpoint._adapters._layout import names_in
from mergewise.checkpoint._adapters._vocabulary import OtherVocabulary, other_vocabulary
from mergewise.checkpoint._change import Change, ChangedRef
from mergewise.checkpoint._files import where
from mergewise.checkpoint._folder import open_checkpoint
from mergewise.checkpoint._model import Checkpoint, TensorRef
from mergewise.checkpoint._output import edited_config
from mergewise.checkpoint._packed import PackedRef
from mergewise.checkpoint._parts import tied_head
from mergewise.errors import CheckpointError

Refs = dict[str, TensorRef]
Changes = dict[str, Change]


def open_reference(text: Path | str) -> Checkpoint:
    """Open a checkpoint, or ``BASE+ADAPTER``: a base with an adapter on top.

    Raises:
        CheckpointError, NotBuiltYetError: as `open_checkpoint` and `open_adapter`, and if the
            adapter does not fit the base.
    """
    pair = split_reference(text)
    if pair is None:
        return open_checkpoint(text)
    return adapt(open_checkpoint(pair[0]), open_adapter(pair[1]))


def split_reference(text: Path | str) -> tuple[str, str] | None:
    """The two paths of ``BASE+ADAPTER``; None for a plain path, which may hold a `+` itself."""
    given = str(text)
    if "+" not in given or exists(expanded(given)):
        return None
    at = [i for i, c in enumerate(given) if c == "+" and 0 < i < len(given) - 1]
    found = [(given[:i], given[i + 1 :]) for i in at]
    there = [pair for pair in found if all(exists(expanded(part)) for part in pair)]
    return next(iter(there or found), None)


def adapt(base: Checkpoint, adapter: Adapter) -> Checkpoint:
    """The base as the adapter changes it; no tensor is read.

    Changed tensors are `ChangedRef`s under the base's names, shapes and types. Where the base's
    output head is its embedding and the adapter changes one of the two, the result has both, as
    the model had when the adapter was trained. An adapter that holds embedding and head with
    another number of rows gives the result its vocabulary.

    Raises:
        CheckpointError: if names or shapes do not fit the base.
        NotBuiltYetError: for changes that are not built.
    """
    tie = tied_head(base.tensors.keys(), base.config)
    refs = dict(base.tensors)
    if tie:
        refs[tie[0]] = replace(refs[tie[1]], name=tie[0])
    names = names_in(base, adapter, refs.keys())
    words = other_vocabulary(adapter, refs, names, tie)
    refs = words.refs
    fit = Fit(adapter, refs, names)
    changes = fit.changes()
    replaced = fit.replaced()
    if not changes and not replaced:
        raise CheckpointError(f"{where(adapter.file)}: the adapter changes nothing")
    found, untied = _tied(base, adapter, tie, words, changes, replaced)
    config, warnings = words.config(base.config), [*base.warnings, *words.warnings]
    if untied and tie:
        warnings.append(
            f"{where(adapter.folder)}: it changes {' and '.join(untied)} alone, where the base's "
            f"head is its embedding; with the adapter they are two tensors, {tie[0]} and {tie[1]}"
        )
        config = _untied_config(config)
    return replace(
        base,
        path=Path(f"{base.path}+{adapter.folder}"),
        files=(*base.files, *adapter.stamps),
        tensors=found,
        config=config,
        warnings=tuple(warnings),
        stamps={**base.stamps, **adapter.stamps},
        adapter=adapter.folder,
        tokenizer=words.tokenizer,
    )


def _tied(
    base: Checkpoint,
    adapter: Adapter,
    tie: tuple[str, str] | None,
    words: OtherVocabulary,
    changes: Changes,
    replaced: Refs,
) -> tuple[Refs, list[str]]:
    """The result's tensors, and which of head and embedding the adapter changes if that unties."""
    refs = words.refs
    touched = [name for name in tie or () if name in changes or name in words.untied]
    if not touched or adapter.config.keeps_tied:
        if touched and tie and tie[1] not in touched:
            raise CheckpointError(
                f"{where(adapter.file)}: ensure_weight_tying, but the adapter changes {tie[0]} and "
                f"not {tie[1]}, with which it is tied; train or save it anew"
            )
        return {n: _changed(n, refs, changes, replaced) for n in base.tensors}, []
    wanted = [*base.tensors, *(n for n in tie or () if n not in base.tensors)]
    return {n: _changed(n, refs, changes, replaced) for n in wanted}, touched


def _changed(name: str, refs: Refs, changes: Changes, replaced: Refs) -> TensorRef:
    ref = replaced.get(name, refs[name])
    change = changes.get(name)
    if change is None:
        return ref if ref.name == name else replace(ref, name=name)
    packed = ref if isinstance(ref, PackedRef) else None
    where_ = (ref.start, ref.end, ref.file)
    return ChangedRef(name, ref.dtype, ref.shape, *where_, change, packed)


def _untied_config(config: dict[str, object] | None) -> dict[str, object] | None:
    if config is None:
        return None
    name = config.get("_name_or_path")
    edited = edited_config(config, tie_word_embeddings=False)
    return edited if name is None else {**edited, "_name_or_path": name}
