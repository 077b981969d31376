"""Two tiny ResNets and ViTs and their averages, as folders; images for them."""

from types import SimpleNamespace

import pytest
import torch
from _transform_models import average, images, resnet, save, vit


@pytest.fixture(scope="session")
def nets(tmp_path_factory):
    """``resnet_a``, ``resnet_b``, their average ``resnet``, likewise ``vit``; read only."""
    root = tmp_path_factory.mktemp("nets")
    for name, make in (("resnet", resnet), ("vit", vit)):
        a, b = make(1), make(2)
        save(a, root / f"{name}_a")
        save(b, root / f"{name}_b")
        save(average(make(1), a, b), root / name)
    return SimpleNamespace(root=root, data=images(24), **{p.name: p for p in root.iterdir()})


@pytest.fixture(autouse=True)
def _same_draws():
    torch.manual_seed(0)
