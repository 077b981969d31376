"""The explicit recipe of an average over a run's checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergewise import __version__
from mergewise.checkpoint import is_adapter, open_adapter
from mergewise.errors import RecipeError, TrajectoryError
from mergewise.recipe import Recipe, dump_documents, load_recipe
from mergewise.trajectories._find import all_adapters, find
from mergewise.trajectories._rules import RULES, Pair, weighted


@dataclass(frozen=True)
class Average:
    """An average over checkpoints, as a recipe.

    Attributes:
        text: the document, with comments that say where its weights come from.
        recipe: the same, checked.
        steps: of the checkpoints that take part.
        weights: theirs; they sum to 1.
        notes: what was found, in words.
    """

    text: str
    recipe: Recipe
    steps: tuple[int, ...]
    weights: tuple[float, ...]
    notes: tuple[str, ...]


def average_recipe(
    folder: Path | str,
    method: str = "uniform",
    *,
    match: str | None = None,
    base: str | None = None,
    dtype: str | None = None,
    rank: int | None = None,
    space: str | None = None,
    **settings: Any,
) -> Average:
    """The explicit recipe that averages checkpoints of one training run.

    Args:
        folder: holds the checkpoints: ``checkpoint-500`` and so on, or files; see `match`.
        method: `uniform`, `swa`, `lawa`, `ema`, `mwa`, `swad` or `weights`: see `RULES`.
        match: a glob that says which of the folder's entries are checkpoints.
        base: of adapters: their base model; by default the one that the last names.
        dtype: of the result; by default the checkpoints' own.
        rank, space: of adapters: as `form: adapter` takes them.
        settings: of the method: `start`, `stop`, `every`, `last`, `decay`, ...

    Raises:
        TrajectoryError: if the checkpoints are not found, or cannot be averaged so.
    """
    home = Path(folder)
    saved = find(home, match)
    pairs, notes = weighted(home, saved, method, settings)
    adapters = all_adapters([one for one, _ in pairs])
    if not adapters and (base or rank or space):
        raise TrajectoryError(f"{home}: base, rank and space are for adapters; these are none")
    document: dict[str, Any] = {"merge_method": "task_arithmetic" if adapters else "linear"}
    if adapters:
        base = base or _base(pairs[-1])
        document["base_model"] = _reference(base)
    document["models"] = [
        {"model": _reference(str(one.path), base), "parameters": {"weight": weight}}
        for one, weight in pairs
    ]
    if adapters:
        extra = {"rank": rank, "space": space}
        given = {key: value for key, value in extra.items() if value is not None}
        document["form"] = {"name": "adapter", **given}
    if dtype is not None:
        document["dtype" if adapters else "out_dtype"] = dtype
    told = [f"{len(pairs)} of {len(saved)} checkpoints, steps {_span(pairs)}", *notes]
    text = "".join(f"# {line}\n" for line in _header(method, told)) + dump_documents([document])
    steps, weights = zip(*((one.step, weight) for one, weight in pairs), strict=True)
    with told_of_the_run(home):
        return Average(text, load_recipe(text), steps, weights, tuple(told))


@contextmanager
def told_of_the_run(home: Path | str) -> Iterator[None]:
    """Problems of a recipe that nobody wrote are told without its lines.

    Raises:
        TrajectoryError: instead of a RecipeError.
    """
    try:
        yield
    except RecipeError as error:
        problems = [each.message for each in error.diagnostics if each.severity == "error"]
        hint = (
            f"{home} was not averaged; leave checkpoints out with --match, --start, --stop or "
            "--last, or change the recipe that --recipe prints"
        )
        raise TrajectoryError("\n".join([*problems, hint])) from error


def _header(method: str, notes: Sequence[str]) -> list[str]:
    rule = RULES[method]
    found = [f"mergewise {__version__}, average, {method}: {rule.summary}", rule.source, *notes]
    return [" ".join(line.split()) for line in found]


def _span(pairs: Sequence[Pair]) -> str:
    first, last = pairs[0][0].step, pairs[-1][0].step
    return str(first) if first == last else f"{first} to {last}"


def _base(pair: Pair) -> str:
    named = open_adapter(pair[0].path).config.raw.get("base_model_name_or_path")
    if not isinstance(named, str) or not named.strip() or is_adapter(named):
        raise TrajectoryError(
            f"{pair[0].path}: the adapter names no base model; say which it is: --base MODEL"
        )
    return named


def _reference(path: str, base: str | None = None) -> Any:
    """As text where that says the same, else as a mapping."""
    plain = not any(c in part for part in (path, base or "") for c in "+@")
    if base is None:
        return path if plain else {"path": path}
    if plain:
        return f"{base}+{path}"
    return {"model": {"path": base}, "lora": {"path": path}}
