"""Patterns of a recipe that match no tensor: a misspelling there would change a result silently."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterator, Mapping

from mergewise.recipe import Setting, Stage


def idle_patterns(stage: Stage, outputs: Collection[str], names: Collection[str]) -> list[str]:
    """A warning for each pattern of `exclude` and each `filter` that no tensor's name matches.

    Args:
        outputs: names that `exclude` is about.
        names: those, and what the same tensors are called in the models.
    """
    found = [
        f"exclude: {pattern!r} matches no tensor"
        for pattern in stage.exclude
        if not any(fnmatch.fnmatchcase(name, pattern) for name in outputs)
    ]
    for setting in _settings(stage):
        found += _idle_blocks(setting, names)
        for condition in setting.conditions:
            if condition.block:
                continue
            wanted = condition.filter
            if wanted in (None, "*") or any(condition.matches(name) for name in names):
                continue
            found.append(
                f"{condition.position} {setting.where}: filter {wanted!r} matches no tensor"
            )
    return list(dict.fromkeys(found))


def _idle_blocks(setting: Setting, names: Collection[str]) -> list[str]:
    """A warning if numbers for blocks of a UNet apply to none of its tensors."""
    idle: dict[str, bool] = {}
    for condition in setting.conditions:
        if condition.block and condition.block not in ("BASE", "VAE"):
            used = any(condition.matches(name) for name in names)
            idle[condition.block] = idle.get(condition.block, True) and not used
    blocks = [block for block, unused in idle.items() if unused]
    if not blocks:
        return []
    few = f"{', '.join(blocks[:4])}{', …' if blocks[4:] else ''}"
    return [
        f"{setting.position} {setting.where}: no tensor belongs to {len(blocks)} of the blocks "
        f"({few}); are these numbers for SD1, and the model SDXL, or neither?"
    ]


def _settings(stage: Stage) -> Iterator[Setting]:
    levels: list[Mapping[str, Setting]] = [stage.parameters]
    levels += [module.parameters for module in stage.modules]
    for slice_ in (slice_ for module in stage.modules for slice_ in module.slices):
        levels += [slice_.parameters, *(source.parameters for source in slice_.sources)]
    for level in levels:
        yield from level.values()
