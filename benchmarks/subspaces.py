"""Time of methods of singular vectors, beside the bare time of the decompositions they need.

    python benchmarks/subspaces.py [--shapes 2048x5632,2048x2048] [--experts 2] [--threads 1]

Random task vectors of the given shapes; a method's `update` alone is timed, and beside it
``torch.linalg.svd(full_matrices=False)`` of as many matrices, in float32, as the method's formula
decomposes: what the authors' code spends, within the rough count of `NEEDED`. `--layer` weighs the
shapes as one layer of Llama's 1.1 B parameters holds them (2048x5632 three times, 2048x2048 twice,
256x2048 twice) and multiplies by its 22 layers; that total is an estimate, not a run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from mergewise.methods import MatrixMethod, Settings, get_method

# decompositions of the formula: of the experts' matrices, and of others
NEEDED: dict[str, tuple[int, int]] = {
    "tsv_m": (1, 2),
    "iso_c": (0, 1),
    "iso_cts": (1, 3),
    "star": (1, 0),
    "cart": (1, 0),
    "subspace_boosting": (0, 1),
    "svc": (0, 1),
    "knots": (1, 0),  # one of a matrix as wide as all experts
    "core_space": (2, 3),  # two of such, and tsv_iso in the core
}
LAYER = {"2048x5632": 3, "2048x2048": 2, "256x2048": 2}
LAYERS = 22


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    print(f"{options.experts} experts, {options.threads} threads; seconds, best of {options.runs}")
    totals: dict[str, list[float]] = {}
    for text in options.shapes.split(","):
        rows, columns = (int(side) for side in text.split("x"))
        draw = torch.Generator().manual_seed(0)
        deltas = [torch.randn(rows, columns, generator=draw) for _ in range(options.experts)]
        bare = _best(lambda d=deltas[0]: torch.linalg.svd(d, full_matrices=False), options.runs)
        print(f"\n{text}: one bare SVD {bare:.2f}")
        for name in options.methods.split(","):
            took = _best(lambda n=name, d=deltas: _update(n, d), options.runs)
            each, more = NEEDED[name]
            needed = bare * (each * options.experts + more)
            print(f"  {name:18} {took:7.2f}  SVDs {needed:7.2f}  ratio {took / needed:5.2f}")
            known = totals.setdefault(name, [0.0, 0.0])
            known[0] += took * LAYER.get(text, 0) * LAYERS
            known[1] += needed * LAYER.get(text, 0) * LAYERS
    if options.layer:
        print(f"\n{LAYERS} layers, by multiplication")
        for name, (took, needed) in totals.items():
            print(f"  {name:18} {took / 60:6.1f} min  SVDs {needed / 60:6.1f} min")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="2048x5632,2048x2048")
    parser.add_argument("--experts", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--methods", default=",".join(NEEDED))
    parser.add_argument("--layer", action="store_true")
    return parser.parse_args()


def _best(work: Callable[[], object], runs: int) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def _update(name: str, deltas: list[torch.Tensor]) -> torch.Tensor:
    method = get_method(name)
    if not isinstance(method, MatrixMethod):
        raise SystemExit(f"{name} is not a method of matrices")
    values = {
        key: [param.default] * len(deltas) if param.per_model else param.default
        for key, param in method.params.items()
    }
    settings = Settings({**values, "kind": "matrix", "turned": False})
    return method.update(deltas, settings)


if __name__ == "__main__":
    main()
