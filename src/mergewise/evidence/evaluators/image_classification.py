"""Images into classes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

from mergewise._lazy import torch
from mergewise.errors import DataError, TaskError
from mergewise.evidence._data import Record
from mergewise.evidence.evaluators._classify import COMMON, Classifier, Items
from mergewise.evidence.evaluators._features import Batch
from mergewise.evidence.models._live import LiveModel, Role
from mergewise.methods import Param

if TYPE_CHECKING:
    from torch import Tensor


class ImageClassification(Classifier):
    """Accuracy, per-class recall and calibration on images."""

    name = "image_classification"
    summary = "classes of images, by a whole classifier or a body with a head"
    fields = "`image` [height, width] or [height, width, 3], `label`; an .npz file has x and y"
    whole: ClassVar[Role] = "image_classifier"
    pool = "cls"
    params = {
        "image": Param(str, "image", "field of the image"),
        "size": Param(int, None, "resize to this height and width (bilinear); by default the "
                      "config's image_size", ge=1),
        "mean": Items(float, None, "subtracted from values in 0 to 1: one number, or one for each "
                      "channel; by default the processor's, else 0"),
        "std": Items(float, None, "then divided by; by default the processor's, else 1", gt=0),
        **COMMON,
    }  # fmt: skip
    example = """\
- name: fashion
  kind: image_classification
  data: images/fashion_mnist.npz
  head: heads/fashion.safetensors
  mean: 0.5
  std: 0.5
"""

    def mark(self) -> str:
        """Processors resize a little differently, and run only where these are installed."""
        return " ".join(name for name in ("PIL", "torchvision") if find_spec(name))

    def read(self, record: Record, row: int) -> Tensor:
        """[channels, height, width]; uint8, or floating point which is taken to lie in 0 to 1."""
        import numpy

        field = self.option("image")
        if field not in record:
            raise DataError(
                f"task {self.task.name}: row {row + 1} has no field {field!r}; "
                f"it has {', '.join(record) or 'none'}"
            )
        pixels = torch.from_numpy(numpy.array(record[field]))
        if pixels.dim() not in (2, 3) or (pixels.dim() == 3 and pixels.shape[2] > 4):
            raise DataError(
                f"task {self.task.name}: row {row + 1}: {field} has the shape "
                f"{list(pixels.shape)}; expected [height, width] or [height, width, channels]"
            )
        if pixels.dtype != torch.uint8 and not pixels.is_floating_point():
            raise DataError(
                f"task {self.task.name}: row {row + 1}: {field} is {pixels.dtype}, expected uint8 "
                "(0 to 255), or floating point (0 to 1)"
            )
        return pixels[None] if pixels.dim() == 2 else pixels.movedim(-1, 0).contiguous()

    def batches(self, model: LiveModel, inputs: Sequence[Any], notes: list[str]) -> Iterator[Batch]:
        """Images in the data's order."""
        size = self.option("batch_size")
        prepare = self._by_processor if self._uses_processor(model) else self._by_options
        for start in range(0, len(inputs), size):
            rows = range(start, min(start + size, len(inputs)))
            pixels = prepare(model, [inputs[i] for i in rows], notes)
            yield Batch(rows, {"pixel_values": pixels.to(_dtype(model))})

    def _uses_processor(self, model: LiveModel) -> bool:
        told = [self.option(name) for name in ("size", "mean", "std")]
        return model.processor is not None and all(value is None for value in told)

    def _by_processor(self, model: LiveModel, images: Sequence[Tensor], notes: list[str]) -> Tensor:
        channels = _channels(model)
        whole = [_repeated(image, channels, model.name).movedim(0, -1).numpy() for image in images]
        # values in 0 to 1 would be divided by 255 again
        scaled = {} if whole[0].dtype == "uint8" else {"do_rescale": False}
        made = model.processor(
            images=whole, return_tensors="pt", input_data_format="channels_last", **scaled
        )
        return made["pixel_values"]

    def _by_options(self, model: LiveModel, images: Sequence[Tensor], notes: list[str]) -> Tensor:
        """What the task says; else mean, std and size as the checkpoint's files state them."""
        stated = _stated(model)
        size = self.option("size") or _side(stated.get("size")) or _image_size(model)
        mean = _levels(self.option("mean"), stated.get("image_mean"), 0.0)
        std = _levels(self.option("std"), stated.get("image_std"), 1.0)
        made = []
        for image in images:
            pixels = image.float() / 255 if image.dtype == torch.uint8 else image.float()
            if size is not None and tuple(pixels.shape[1:]) != (size, size):
                pixels = _resized(pixels, size)
                _once(notes, f"images resized from {image.shape[1]}x{image.shape[2]} to {size}")
            pixels = _repeated(pixels, _channels(model), model.name)
            if any(len(levels) not in (1, len(pixels)) for levels in (mean, std)):
                raise TaskError(
                    f"task {self.task.name}: images have {len(pixels)} channels, but mean has "
                    f"{len(mean)} numbers and std {len(std)}; give one, or one for each channel"
                )
            made.append((pixels - mean) / std)
        if len({tuple(pixels.shape) for pixels in made}) > 1:
            raise TaskError(f"task {self.task.name}: images differ in size; give `size`")
        return torch.stack(made)


def _stated(model: LiveModel) -> dict[str, Any]:
    """The checkpoint's preprocessor_config.json, read even where its processor cannot run."""
    if model.processor is not None:
        return dict(model.processor.to_dict())
    file = None if model.folder is None else model.folder / "preprocessor_config.json"
    if file is None or not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise TaskError(f"{file}: not JSON: {error}") from None
    return found if isinstance(found, dict) else {}


def _levels(told: Any, stated: Any, default: float) -> Tensor:
    """One number or one for each channel, [channels, 1, 1]."""
    values = next((v for v in (told, stated) if v is not None), default)
    listed = values if isinstance(values, list | tuple) else [values]
    return torch.tensor(listed, dtype=torch.float32).view(-1, 1, 1)


def _side(size: Any) -> int | None:
    """The side of a square from ``224`` or ``{"height": 224, "width": 224}``."""
    if isinstance(size, Mapping):
        size = {size.get("height"), size.get("width")}
        size = size.pop() if len(size) == 1 else None
    return size if isinstance(size, int) else None


def _once(notes: list[str], note: str) -> None:
    if note not in notes:
        notes.append(note)


def _channels(model: LiveModel) -> int | None:
    found = getattr(getattr(model.module, "config", None), "num_channels", None)
    return found if isinstance(found, int) else None


def _image_size(model: LiveModel) -> int | None:
    found = getattr(getattr(model.module, "config", None), "image_size", None)
    found = found[0] if isinstance(found, list | tuple) and len(set(found)) == 1 else found
    return found if isinstance(found, int) else None


def _resized(pixels: Tensor, size: int) -> Tensor:
    """Bilinear; when shrinking every pixel counts, as image libraries do it."""
    return torch.nn.functional.interpolate(
        pixels[None], size=(size, size), mode="bilinear", align_corners=False, antialias=True
    )[0]


def _repeated(pixels: Tensor, channels: int | None, name: str) -> Tensor:
    """Grey images as the three equal channels that models of colour expect."""
    if channels is None or len(pixels) == channels:
        return pixels
    if len(pixels) != 1:
        raise TaskError(f"images have {len(pixels)} channels, but {name} takes {channels}")
    return pixels.expand(channels, -1, -1)


def _dtype(model: LiveModel) -> torch.dtype:
    kinds = (p.dtype for p in model.module.parameters() if p.is_floating_point())
    return next(kinds, torch.float32)
