"""Several documents in one file: names, and who refers to whom."""

from __future__ import annotations

from collections.abc import Sequence

from mergewise.recipe._nodes import Node
from mergewise.recipe._problems import Position, Problems
from mergewise.recipe._recipe import Stage
from mergewise.recipe._reference import ModelRef


def check_names(
    documents: Sequence[Node], stages: Sequence[Stage | None], problems: Problems
) -> None:
    """Report nameless and equally named stages, and references that run in a circle."""
    if len(documents) == 1:
        return
    names: dict[str, int] = {}
    for i, document in enumerate(documents):
        name = document.get("name")
        if name is None and i < len(documents) - 1:
            problems.error(
                document.position,
                f"document {i + 1} of {len(documents)} needs `name:`; only the last, which is "
                "the result, may do without",
            )
        elif name is not None and name.raw in names:
            problems.error(
                name.position,
                f"stage {name.raw!r} is already document {names[name.raw] + 1}; rename one",
            )
        elif name is not None:
            names[name.raw] = i
    used = _check_references(stages, names, problems)
    _check_unused(documents, stages, names, used, problems)


def _references(stage: Stage) -> list[tuple[ModelRef, Position]]:
    found = [
        (source.model, source.position)
        for module in stage.modules
        for slice_ in module.slices
        for source in slice_.sources
    ]
    if stage.base_model is not None:
        found.append((stage.base_model, stage.positions["base_model"]))
    return found


def _check_references(
    stages: Sequence[Stage | None], names: dict[str, int], problems: Problems
) -> set[str]:
    used = set()
    for i, stage in enumerate(stages):
        for ref, at in _references(stage) if stage else ():
            target = names.get(ref.path) if ref.revision is None else None
            if target is None:
                continue
            used.add(ref.path)
            if target >= i:
                what = "this stage itself" if target == i else f"document {target + 1}, below"
                problems.error(
                    at, f"{ref.path!r} is {what}; a stage can use only the ones above it"
                )
    return used


def _check_unused(
    documents: Sequence[Node],
    stages: Sequence[Stage | None],
    names: dict[str, int],
    used: set[str],
    problems: Problems,
) -> None:
    paths = [ref.path for stage in stages if stage for ref, _ in _references(stage)]
    for name, i in names.items():
        if i == len(documents) - 1 or name in used or None in stages:
            continue
        like = next(
            (p for p in paths if p.replace("\\", "/").rstrip("/").endswith(f"/{name}")), None
        )
        hint = (
            f"; `{like}` is a folder on disk: write `model: {name}` for this stage" if like else ""
        )
        node = documents[i].get("name")
        at = node.position if node else documents[i].position
        problems.warn(at, f"stage {name!r} is not used by a later one{hint}")
