"""Sets of images in a data folder: ``images/*.npz`` of 28×28 grey pixels, a task each."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.lab._classified import LabSet
from mergewise._lazy import torch
from mergewise.errors import DataError

if TYPE_CHECKING:
    import numpy
    from torch import Tensor

    Array = numpy.ndarray[Any, Any]

SIDE = 28
FEWEST = 2
"""Sets below which there is nothing to merge."""


@dataclass(frozen=True)
class ImageSet:
    """One file: images uint8 [n, 28, 28] and labels int64 [n], by the file's own two parts."""

    name: str
    names: tuple[str, ...]
    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    digest: str

    def split(self, seed: int, training: int, validation: int, test: int) -> LabSet:
        """At most so many examples of each part; validation is taken from the training part."""
        chance = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.labels), generator=chance)
        validation = min(validation, len(order) // 4)
        held, rows = order[:validation], order[validation:][:training]
        tests = torch.randperm(len(self.test_labels), generator=chance)[:test]
        return LabSet(
            self.name,
            self.names,
            self.images[rows],
            self.labels[rows],
            records(self.images[held], self.labels[held]),
            records(self.test_images[tests], self.test_labels[tests]),
        )


def read_images(folder: Path) -> tuple[list[ImageSet], list[str]]:
    """The sets of ``folder/images`` by name, and the names of files of another shape.

    Raises:
        DataError: if fewer than two sets can be used, or a file cannot be read.
    """
    files = sorted((folder / "images").glob("*.npz"))
    read = {file.stem: _read(file) for file in files}
    found = [item for item in read.values() if item is not None]
    if len(found) < FEWEST:
        raise DataError(
            f"{folder / 'images'}: {len(found)} sets of {SIDE}x{SIDE} grey images among "
            f"{len(files)} .npz files; the vision family needs {FEWEST} or more, each with "
            "x_train, y_train, x_test, y_test; name the data folder with --data"
        )
    return found, [name for name, item in read.items() if item is None]


def _read(file: Path) -> ImageSet | None:
    """None for images of another shape."""
    import numpy

    try:
        with numpy.load(file, allow_pickle=False) as arrays:
            parts = [arrays[name] for name in ("x_train", "y_train", "x_test", "y_test")]
            names = tuple(map(str, arrays["label_names"])) if "label_names" in arrays else ()
    except (KeyError, OSError, ValueError) as error:
        raise DataError(
            f"{file}: arrays x_train, y_train, x_test and y_test expected: {error}"
        ) from None
    if any(part.dtype != "uint8" or part.shape[1:] != (SIDE, SIDE) for part in parts[::2]):
        return None
    for part, images, labels in (("train", *parts[:2]), ("test", *parts[2:])):
        check_labels(file, part, images, labels)
    classes = 1 + max(int(parts[1].max()), int(parts[3].max()))
    if names and len(names) < classes:
        raise DataError(f"{file}: {len(names)} label_names, but labels go up to {classes - 1}")
    x, y, test_x, test_y = (torch.from_numpy(part) for part in parts)
    return ImageSet(
        file.stem, names or tuple(map(str, range(classes))), x, y.long(), test_x, test_y.long(),
        hashlib.sha256(file.read_bytes()).hexdigest(),
    )  # fmt: skip


def check_labels(file: Path, part: str, images: Array, labels: Array) -> None:
    """Refuse labels that are not one class number for each image.

    Raises:
        DataError: saying which array of the file is wrong.
    """
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"{file}: y_{part} is {labels.dtype} {list(labels.shape)}; whole numbers, one for "
            "each image, expected"
        )
    if len(images) != len(labels) or len(labels) == 0:
        raise DataError(
            f"{file}: {len(images)} images but {len(labels)} labels; one label an image, "
            "and one image at least, expected"
        )
    if labels.min() < 0:
        raise DataError(f"{file}: y_{part} holds {labels.min()}; classes are numbered from 0")


def records(images: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """What evaluators of images read."""
    pairs = zip(images.numpy(), labels.tolist(), strict=True)
    return [{"image": image, "label": label} for image, label in pairs]
