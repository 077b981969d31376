"""What a transform is asked, checked before any long work; then run, then written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mergewise._settings import checked
from mergewise.checkpoint import Checkpoint, open_runnable
from mergewise.errors import IncompatibleModelsError, TransformError
from mergewise.evidence import Data, Reading, as_data, see_tokens, survey
from mergewise.methods import Settings
from mergewise.transforms._base import Ask, Opening, Progress, Transform
from mergewise.transforms._write import Output, Transformed

Source = Data | str | Path | Sequence[Any]
Models = Mapping[str, str | Path] | Sequence[str | Path]


def transform(
    name: str,
    checkpoint: str | Path,
    out: str | Path,
    *,
    data: Source | Mapping[str, Source] | None = None,
    models: Models = (),
    weights: Sequence[float] | Mapping[str, float] | None = None,
    reading: Reading | None = None,
    opening: Opening | None = None,
    limit: int | None = None,
    split: str = "train",
    overwrite: bool = False,
    restart: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> Transformed:
    """Run a transform over a checkpoint and write the result as a folder of its own.

    The folder appears whole or not at all; weights that do not change are copied as they are.

    Args:
        name: the transform; `mergewise transforms` lists them.
        checkpoint: a folder or file, or ``BASE+ADAPTER``, which is written as one dense model.
        out: the output folder; must be absent or empty unless `overwrite`.
        data: a path, `Data` or an iterable of records; by model, where each has its own.
        models: further models by label; in a sequence, their folders' names are the labels.
        weights: of these models, in their order or by label; equal ones if not given.
        reading: how data is read: batch size, longest sequence, how images are prepared.
        opening: how models are opened: role, device, dtype.
        limit: at most so many records of each set of data.
        split: of an ``.npz`` file or a set of `datasets`.
        restart: discard an unfinished merge in `out`.
        progress: called with what is being done, how much of it is done, and of how much.
        settings: of the transform.

    Raises:
        TransformError: for an unknown transform or setting, or a model it cannot work on.
        IncompatibleModelsError: if a model has other tensors than the checkpoint.
        DataError: if data is missing, empty, or does not fit the model.
        CheckpointError: if a checkpoint cannot be read or loaded.
        OutputError: if `out` cannot be written, or must not be.
    """
    from mergewise.transforms import get_transform

    chosen = get_transform(name)
    ours = settings_of(chosen, settings)
    source = open_runnable(checkpoint)
    others = _models(chosen, source, models)
    if problem := chosen.problem(ours, source):
        raise TransformError(f"{name}: {source.path}: {problem}")
    ask = Ask(
        settings=ours,
        checkpoint=source,
        models=others,
        weights=_weights(chosen, others, weights),
        data=_data(chosen, others, data, limit, split),
        reading=reading or Reading(),
        opening=opening or Opening(),
        progress=progress or (lambda stage, done, total: None),
    )
    _look(chosen, ask)
    with Output(Path(out), ask, overwrite=overwrite, restart=restart) as output:
        return output.write(chosen, chosen.run(ask))


def settings_of(transform: Transform, given: Mapping[str, Any]) -> Settings:
    """A transform's settings, checked and converted.

    Raises:
        TransformError: for an unknown one, or a value that is not allowed.
    """
    return Settings(checked(transform, given, TransformError))


def _models(transform: Transform, source: Checkpoint, given: Models) -> dict[str, Checkpoint]:
    """Further models by label, opened; each has the checkpoint's tensors."""
    named = given if isinstance(given, Mapping) else _labelled([Path(path) for path in given])
    if named and not transform.models:
        raise TransformError(f"{transform.name} uses no further models; leave out {_some(named)}")
    if transform.models and not named:
        raise TransformError(
            f"{transform.name} needs {transform.models}; give them: --model PATH, or "
            "--model LABEL=PATH"
        )
    found = {label: transform.open(path) for label, path in named.items()}
    for label, model in found.items() if transform.alike else ():
        _same_tensors(source, label, model)
    return found


def _labelled(paths: Sequence[Path]) -> dict[str, Path]:
    names = [path.name or str(path) for path in paths]
    if len(set(names)) < len(names):
        raise TransformError(
            f"two models are called {max(names, key=names.count)!r}; give labels: LABEL=PATH"
        )
    return dict(zip(names, paths, strict=True))


def _same_tensors(source: Checkpoint, label: str, model: Checkpoint) -> None:
    for name in {**source.tensors, **model.tensors}:
        shapes = [list(c.tensors[name].shape) if name in c.tensors else None
                  for c in (source, model)]  # fmt: skip
        if shapes[0] != shapes[1]:
            shown = [f"has it as {shape}" if shape else "lacks it" for shape in shapes]
            raise IncompatibleModelsError(
                f"tensor {name}: {source.path} {shown[0]}, {label} ({model.path}) {shown[1]}; "
                "models of one architecture are expected"
            )


def _weights(
    transform: Transform,
    models: Mapping[str, Checkpoint],
    given: Sequence[float] | Mapping[str, float] | None,
) -> dict[str, float]:
    if not transform.weighted:
        if given is not None:
            raise TransformError(f"{transform.name} gives models no weights; leave them out")
        return {}
    if given is None:
        return {label: 1 / len(models) for label in models}
    if isinstance(given, Mapping):
        if set(given) != set(models):
            raise TransformError(
                f"weights of {_some(given)}, but the models are {_some(models)}; name each once"
            )
        given = [given[label] for label in models]
    if len(given) != len(models):
        raise TransformError(f"{len(given)} weights for {len(models)} models; give one for each")
    total = math.fsum(given)
    if not abs(total - 1) < 1e-6:
        raise TransformError(f"the models' weights sum to {total:g}; give weights that sum to 1")
    return {label: float(weight) for label, weight in zip(models, given, strict=True)}


def _data(
    transform: Transform,
    models: Mapping[str, Checkpoint],
    given: Source | Mapping[str, Source] | None,
    limit: int | None,
    split: str,
) -> dict[str, Data]:
    """By label, or under the empty one."""
    named: Mapping[str, Any] = given if isinstance(given, Mapping) else {"": given}
    named = {label: source for label, source in named.items() if source is not None}
    if transform.data == "none":
        if named:
            raise TransformError(f"{transform.name} reads no data; leave it out")
        return {}
    for label in named:
        if label and (not transform.by_label or label not in models):
            known = _some(models) if transform.by_label else "one set of data for all"
            raise TransformError(f"{transform.name}: data for {label!r}; expected: {known}")
    lacking = [label for label in models if label not in named] if transform.by_label else [""]
    if lacking and "" not in named:
        who = f" for {', '.join(lacking)}" if lacking != [""] else ""
        raise TransformError(
            f"{transform.name} needs {transform.data} examples{who}; give --data "
            f"{f'{lacking[0]}=' if who else ''}FILE"
        )
    if transform.by_label and "" in named and len(lacking) > 1:
        raise TransformError(
            f"{transform.name}: each model needs data of its own; give --data "
            f"{' --data '.join(f'{label}=FILE' for label in lacking)}"
        )
    return {label: as_data(source, limit, (0, 1), split) for label, source in named.items()}


def _look(transform: Transform, ask: Ask) -> None:
    """At the first records, before any model is loaded."""
    if not ask.data:
        return
    folder = ask.checkpoint.tokenizer_folder
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt")
    tokenizer = any((folder / name).is_file() for name in names)
    role = ask.opening.role or transform.role(ask.checkpoint)
    for data in ask.data.values():
        survey(data, role, ask.reading, tokenizer)
        trust = ask.opening.trust_remote_code
        see_tokens(
            str(ask.checkpoint.path), ask.checkpoint, data, role, ask.reading.template, trust
        )


def _some(names: Any) -> str:
    return ", ".join(str(name) for name in list(names)[:6])
