"""Run the authors' code on random tensors and write what it gives; see the README."""

from __future__ import annotations

import json
import runpy
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

OUT = Path(__file__).resolve().parents[2] / "tests/golden/arithmetic.json"
Case = dict[str, Any]


def draw(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def case(method: str, shape: tuple[int, ...], seeds: list[int], out: Any, **settings: Any) -> Case:
    """`seeds`: the base's first where the method has a base; `settings`: ours."""
    values = [float(f"{v:.9g}") for v in out.double().flatten().tolist()]
    return {
        "method": method, "shape": shape, "seeds": seeds, "parameters": settings, "out": values,
    }  # fmt: skip


def sd_mecha(folder: Path) -> Iterator[Case]:
    sys.path.insert(0, str(folder / "sd-mecha"))
    from sd_mecha.extensions.builtin.merge_methods import linear, slicing, svd, ties
    from sd_mecha.extensions.builtin.merge_methods.crossover import crossover

    shape = (9, 6)
    a, b, c = (draw(seed, *shape) for seed in (1, 2, 3))
    yield case("geometric_median", shape, [1, 2, 3], ties.geometric_median.__wrapped__(a, b, c))
    d = linear.perpendicular_component.__wrapped__(a - c, b - c)
    yield case("add_perpendicular", shape, [3, 1, 2], a + 0.7 * d, weight=[1.0, 0.7])
    for alignment, alpha in ((1.0, 0.0), (1.0, 0.3), (0.4, 0.0), (0.7, 0.25)):
        given = {"alignment": alignment, "alpha": alpha}
        out = svd.rotate.__wrapped__(
            {"x": a}, {"x": b}, alignment, torch.tensor(alpha, dtype=a.dtype), key="x"
        )
        yield case("rotate", shape, [1, 2], out, **given)
    kernels = (4, 3, 3, 3)
    out = svd.rotate.__wrapped__(
        {"x": draw(1, *kernels)}, {"x": draw(2, *kernels)}, 1.0, torch.tensor(0.0), key="x"
    )
    yield case("rotate", kernels, [1, 2], out, alignment=1.0, alpha=0.0)
    for size in (shape, (8,), (5, 7), (4, 3, 3, 3)):
        for alpha, tilt in ((0.5, 0.0), (0.3, 0.2), (0.6, 0.7)):
            pair = draw(1, *size), draw(2, *size)
            out = crossover.__wrapped__(*pair, alpha, tilt)
            yield case("crossover", size, [1, 2], out, alpha=alpha, tilt=tilt)
    for width, offset in ((0.5, 0.0), (0.4, 0.3), (0.5, 0.8)):
        out = slicing.tensor_sum.__wrapped__(draw(1, *shape), draw(2, *shape), width, offset)
        yield case("copy_region", shape, [1, 2], out, width=width, offset=offset)


def ext_sub(folder: Path) -> Iterator[Case]:
    sys.path.insert(0, str(folder / "ext-sub"))
    from ext_sub import weigth_extraction_before_subtraction
    from safetensors.torch import load_file, save_file

    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 3, "target_modules": ["q"]}
    with tempfile.TemporaryDirectory() as name:
        paths = [Path(name) / part for part in ("expert", "anti", "out")]
        for seed, path in zip((1, 2), paths, strict=False):
            path.mkdir()
            (path / "adapter_config.json").write_text(json.dumps(config))
            start = "base_model.model.q.lora_"
            factors = {"A": draw(seed, 3, 8), "B": draw(10 + seed, 8, 3)}
            tensors = {f"{start}{k}.weight": v.float() for k, v in factors.items()}
            save_file(tensors, path / "adapter_model.safetensors")
        paths[2].mkdir()
        for alpha in (1.0, 0.6):
            weigth_extraction_before_subtraction(*map(str, paths[:2]), alpha, str(paths[2]))
            found = load_file(paths[2] / "adapter_model.safetensors")
            out = next(value for key, value in found.items() if "lora_B" in key)
            yield case("ext_sub", (8, 8), [1, 2], out, alpha=alpha)


def expo(folder: Path) -> Iterator[Case]:
    """The file alone, with stand-ins for the classes that its function does not use."""
    path = folder / "fusion_bench/fusion_bench/method/linear/expo.py"
    if not path.exists():
        raise ImportError(f"no {path}")
    plain = type("Plain", (), {"_config_mapping": {}})
    names = ("BaseAlgorithm", "BaseModelPool", "SimpleAverageAlgorithm")
    names += ("state_dict_add", "state_dict_mul", "state_dict_sub")
    for module in ("", ".method", ".utils", ".utils.state_dict_arithmetic"):
        fake = types.ModuleType("fusion_bench" + module)
        vars(fake).update(dict.fromkeys(names, plain))
        sys.modules[fake.__name__] = fake
    expo_merge = runpy.run_path(str(path))["expo_merge"]
    models = [torch.nn.Linear(6, 5, bias=False).double() for _ in range(2)]
    for seed, model in zip((1, 2), models, strict=True):
        model.weight.data = draw(seed, 5, 6)
    out = expo_merge(*models, extrapolation_factor=0.3).weight.data
    yield case("task_arithmetic", (5, 6), [1, 2], out, weight=1.3)


def main(folder: Path) -> None:
    parts: list[Callable[[Path], Iterator[Case]]] = [sd_mecha, ext_sub, expo]
    cases: list[Case] = []
    for part in parts:
        try:
            cases += part(folder)
        except ImportError as error:
            print(f"{part.__name__} is left out: {error}", file=sys.stderr)
    OUT.write_text("[\n" + ",\n".join(json.dumps(one) for one in cases) + "\n]\n")
    print(f"{len(cases)} cases in {OUT.name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
