"""The yardstick of methods of singular vectors: the bare decompositions, no more.

    python benchmarks/decompositions.py 2048x5632 2048x2048 [--threads 2]

Prints as JSON, by shape, the seconds that one ``torch.linalg.svd(full_matrices=False)`` in float32
takes when `--threads` of them run at once, each on a thread of its own, divided by their number.
The matrices are normal noise.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor

import torch


def seconds(shape: tuple[int, int], threads: int) -> float:
    """Of one decomposition, `threads` running at once."""
    draw = torch.Generator().manual_seed(0)
    matrices = [torch.randn(shape, generator=draw) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        list(pool.map(lambda m: torch.linalg.svd(m, full_matrices=False), matrices))
        return (time.perf_counter() - start) / threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shapes", nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.linalg.svd(torch.randn(64, 64))  # what a first call sets up
    found = {}
    for text in options.shapes:
        rows, columns = (int(side) for side in text.split("x"))
        found[text] = seconds((rows, columns), options.threads)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
