"""Transforms: one checkpoint in, one out; one file a transform.

    transform       run one over a checkpoint folder, into another folder
    transplant      one of them: give a model another model's tokenizer
    all_transforms  every transform by name

Some need data, some need the models that a merge was made of; each says what it needs.
"""

from __future__ import annotations

import functools

from mergewise._registry import chosen, registered
from mergewise.errors import TransformError
from mergewise.transforms._ask import transform
from mergewise.transforms._base import Ask, Changes, Opening, Transform
from mergewise.transforms._write import Transformed
from mergewise.transforms.transplant import transplant

__all__ = [
    "Ask",
    "Changes",
    "Opening",
    "Transform",
    "Transformed",
    "all_transforms",
    "get_transform",
    "transform",
    "transplant",
]


@functools.cache
def all_transforms() -> dict[str, Transform]:
    """Every registered transform by name, in alphabetical order.

    Raises:
        MergewiseError: if two transforms claim one name.
    """
    base: type[Transform] = Transform  # type: ignore[type-abstract]
    return {name: cls() for name, cls in registered(__name__, base, "transforms").items()}


def get_transform(name: str) -> Transform:
    """The transform called `name`.

    Raises:
        TransformError: with the closest names, if there is none.
    """
    return chosen("transform", name, all_transforms(), "mergewise transforms", TransformError)
