"""Tiny networks for the tests of transforms, and ways to look into them without our own code."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mergewise.evidence._data import Data
from mergewise.evidence._inputs import Feeder, Reading
from mergewise.evidence.models._call import Fed
from mergewise.evidence.models._live import LiveModel

SCALE = 0.2


def images(count: int, size: int = 16) -> list[dict[str, Any]]:
    """Random images in colour, with labels."""
    draw = torch.Generator().manual_seed(7)
    return [
        {
            "image": torch.randint(256, (size, size, 3), generator=draw, dtype=torch.uint8).numpy(),
            "label": i % 3,
        }
        for i in range(count)
    ]


def nudged(module: nn.Module, seed: int) -> nn.Module:
    """The module with random changes of parameters and running statistics."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in module.parameters():
            value.add_(torch.randn(value.shape, generator=draw), alpha=SCALE)
        for child in module.modules():
            if getattr(child, "running_var", None) is not None:
                child.running_mean.copy_(torch.randn(child.running_mean.shape, generator=draw))
                child.running_var.copy_(torch.rand(child.running_var.shape, generator=draw) + 0.5)
    return module.eval()


def resnet(seed: int) -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", num_labels=3
    )
    return nudged(ResNetForImageClassification(config), seed)


def vit(seed: int) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=16, patch_size=4, num_labels=3,
    )  # fmt: skip
    return nudged(ViTForImageClassification(config), seed)


class Plain(nn.Module):
    """Convolutions without batch norms; one activation is a function, one works in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 8, 3, stride=2)
        self.third = nn.Linear(8, 10)
        self.skip = nn.Linear(10, 10)
        self.last = nn.Linear(10, 4)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(pixel_values))
        x = nn.functional.relu(self.second(x).flatten(2), inplace=True).mean(-1)
        x = nn.functional.gelu(self.third(x))
        return self.last(x + self.skip(x))


def plain(seed: int) -> nn.Module:
    torch.manual_seed(0)
    return nudged(Plain(), seed)


def average(target: nn.Module, *modules: nn.Module) -> nn.Module:
    """`target` with the mean of the modules' tensors."""
    states = [module.state_dict() for module in modules]
    with torch.no_grad():
        for name, value in target.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.stack([state[name] for state in states]).mean(0))
    return target.eval()


def save(module: nn.Module, folder: Path) -> Path:
    module.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        '{"image_processor_type": "ViTImageProcessor", "do_resize": false, "do_rescale": true, '
        '"rescale_factor": 0.00392156862745098, "do_normalize": true, '
        '"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}'
    )
    return folder


def fed(data: Iterable[Any], batch_size: int = 8) -> list[Fed]:
    """Batches of images, as a model in memory without a processor takes them."""
    return list(Feeder(Data(list(data)), LiveModel("x", nn.Identity()), Reading(batch_size), False))


def seen(
    module: nn.Module, batches: Iterable[Fed], path: str, inputs: bool = False, axis: int = 1
) -> torch.Tensor:
    """What enters or leaves a module, all rows [rows, channels], by a hook of the test's own."""
    rows = []

    def hook(_: Any, args: Any, output: Any) -> None:
        value = args[0] if inputs else output
        rows.append(value.movedim(axis, -1).flatten(0, -2).double().clone())

    handle = module.get_submodule(path).register_forward_hook(hook)
    with torch.no_grad():
        for one in batches:
            module(one.inputs["pixel_values"])
    handle.remove()
    return torch.cat(rows)


def pixels(batches: Iterable[Fed]) -> torch.Tensor:
    return torch.cat([one.inputs["pixel_values"] for one in batches])


def opener(module: nn.Module) -> Callable[[], LiveModel]:
    return lambda: LiveModel("end", module)
