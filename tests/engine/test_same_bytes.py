"""The same bytes, whoever computes them: any workers, any process, in memory or through files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_evidence import base_evidence_for, evidence_for
from small_models import NO_BASE, PARAMETERS, assert_same, contents, family, load, near, recipe
from small_models import random_state as random

from mergewise import merge, merge_state_dicts
from mergewise.engine import _compile, _memory, _ranks, _run
from mergewise.engine._schedule import Scheduler
from mergewise.methods import all_methods, get_method

METHODS = sorted(set(all_methods()) - {"passthrough"})
SHAPES = {"a.weight": (300, 97), "b.weight": (70, 3, 5, 5), "c": (501,), "d": ()}


def experts_of(method: str) -> int:
    return get_method(method).experts[1] or 3


def fewest(method: str) -> int:
    """Two if the method takes two, else as near as it comes."""
    return max(get_method(method).experts[0], min(2, experts_of(method)))


def in_memory(method: str, base: Any, experts: list[Any], **options: Any) -> dict[str, Any]:
    parameters: dict[str, Any] = {**PARAMETERS.get(method, {}), **options.pop("parameters", {})}
    if "weight" in get_method(method).params:
        parameters.setdefault("weight", [0.3, 0.5, 0.4][: len(experts)])
    used = None if method in NO_BASE else base
    options.setdefault("evidence", evidence_for(get_method(method), experts, parameters))
    options.setdefault("base_evidence", base_evidence_for(get_method(method), base, parameters))
    return merge_state_dicts(experts, method, base=used, parameters=parameters, **options)


def models(method: str, dtype: torch.dtype = torch.bfloat16, shapes: Any = None) -> Any:
    base = random(shapes or SHAPES, 1, dtype)
    return base, [near(base, i) for i in range(experts_of(method))]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: Any) -> Path:
    return family(tmp_path_factory.mktemp("models"), experts=3, layers=3)


@pytest.mark.parametrize("method", METHODS)
def test_any_number_of_workers(method: str) -> None:
    base, experts = models(method)
    results = [
        in_memory(method, base, experts, workers=workers, block_size=4096)
        for workers in (1, 2, 3, 7)
    ]
    for other in results[1:]:
        assert_same(results[0], other)


@pytest.mark.parametrize("method", ["ties", "della", "slerp", "sce", "fisher", "regmean"])
def test_any_number_of_workers_in_files(method: str, folders: Path, tmp_path: Path) -> None:
    document = recipe(folders, method, fewest(method))
    made = []
    for workers in (1, 2, 3, 7):
        out = tmp_path / str(workers) / "out"
        merge(document, out, workers=workers, shard_size=5000)
        made.append(contents(out))
    assert all(other == made[0] for other in made[1:])


def test_torch_runs_no_threads_of_its_own(folders: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """It would split long sums among them, and their order decides the last bit."""
    seen = []
    real = Scheduler.run

    def spy(self: Any, pieces: Any) -> None:
        seen.append(torch.get_num_threads())
        real(self, pieces)

    monkeypatch.setattr(Scheduler, "run", spy)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        merge(recipe(folders, "model_stock"), tmp_path / "out", workers=1)
        base, experts = models("model_stock")
        in_memory("model_stock", base, experts, workers=1)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert seen and set(seen) == {1}


@pytest.mark.parametrize("method", METHODS)
def test_in_memory_as_through_files(method: str, folders: Path, tmp_path: Path) -> None:
    count = fewest(method)
    document = recipe(folders, method, count, seed=11)
    merge(document, tmp_path / "out", shard_size=6000)
    given = {**PARAMETERS.get(method, {})}
    if "weight" in get_method(method).params:
        given["weight"] = document["models"][0].get("parameters", {}).get("weight", 1.0)
    experts = [load(folders / f"expert_{c}") for c in "abc"[:count]]
    result = merge_state_dicts(
        experts,
        method,
        evidence=evidence_for(get_method(method), experts, given),
        base_evidence=base_evidence_for(get_method(method), load(folders / "base"), given),
        base=None if method in NO_BASE else load(folders / "base"),
        parameters=given,
        seed=11,
    )
    assert_same(load(tmp_path / "out"), result)


@pytest.fixture
def plain(monkeypatch: Any) -> Any:
    """A function that makes the engine run in plain torch, and one that lets it compile."""
    if _compile.helpers() is None:
        pytest.skip("no C compiler here")
    helpers = _compile.helpers

    def choose(compiled: bool) -> None:
        for module in (_memory, _run):
            monkeypatch.setattr(module, "FUSE_FROM_ELEMENTS", 0 if compiled else 1 << 60)
        monkeypatch.setattr(_compile, "helpers", helpers if compiled else lambda: None)

    return choose


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("method", METHODS)
def test_compiled_as_plain(method: str, dtype: torch.dtype, plain: Any) -> None:
    base, experts = models(method, dtype)
    results = []
    for compiled in (False, True):
        plain(compiled)
        results.append(in_memory(method, base, experts, block_size=4096))
    assert_same(*results)


ROWWISE = [
    ("ties", {"granularity": "row"}),
    ("breadcrumbs", {"granularity": "row"}),
    ("ties", {"granularity": "model"}),
    ("ties", {"ties_at_threshold": "keep", "sign": "count"}),
    ("breadcrumbs_ties", {"granularity": "model"}),
    ("pcb", {"inter": "pairs", "density": 0.3}),
    ("pcb", {"granularity": "tensor"}),
    ("lota", {"overlap": "first", "tensors": "all"}),
    ("dare_ties", {"rescale_by": "density"}),
    ("della", {"rescale_by": "density", "lambda": 0.7}),
    ("ties", {"score": "activation"}),
    ("ties", {"score": "gain", "granularity": "model"}),
    ("ties", {"score": "fisher", "granularity": "row", "rescale": True}),
    ("breadcrumbs", {"score": "activation_gain", "granularity": "model"}),
    ("breadcrumbs_ties", {"score": "fisher"}),
    ("della", {"score": "gain"}),
    ("della_linear", {"score": "activation", "rescale_by": "density"}),
    ("model_stock", {"filter_wise": True}),
    ("nuslerp", {"nuslerp_flatten": False}),
    ("nuslerp", {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
]


@pytest.mark.parametrize(("method", "parameters"), ROWWISE)
def test_variants(method: str, parameters: dict[str, Any], plain: Any) -> None:
    """Compiled as plain, and any number of workers, with the options that change the path."""
    base, experts = models(method)
    results = []
    for compiled, workers in ((False, 1), (True, 1), (True, 3)):
        plain(compiled)
        more = {"parameters": parameters, "workers": workers, "block_size": 4096}
        results.append(in_memory(method, base, experts, **more))
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


SCRIPT = """
import hashlib, json, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from small_models import recipe
from mergewise import merge
import mergewise.engine._run as run
run.FUSE_FROM_ELEMENTS = 0
found = {{}}
for method in ("ties", "multislerp", "sce", "ram", "della", "model_stock"):
    out = Path({out!r}) / method / "out"
    merge(recipe(Path({models!r}), method, 2), out, shard_size=5000)
    found[method] = {{f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in out.iterdir()}}
print(json.dumps(found))
"""


def in_process(folders: Path, out: Path, **environment: str) -> Any:
    tests = str(Path(__file__).parents[1])
    code = SCRIPT.format(tests=tests, out=str(out), models=str(folders))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_any_hash_seed_and_without_a_compiler(folders: Path, tmp_path: Path) -> None:
    one = in_process(folders, tmp_path / "1", PYTHONHASHSEED="1")
    assert one == in_process(folders, tmp_path / "2", PYTHONHASHSEED="4242")
    plain = in_process(folders, tmp_path / "3", PYTHONHASHSEED="7", MERGEWISE_FUSE="0")
    for method, files in plain.items():
        # the provenance says whether kernels were compiled, and so may differ
        odd = {name for name, digest in files.items() if digest != one[method][name]}
        assert odd <= {"mergewise_provenance.json"}, method


def test_the_ranks_of_rows_compiled_as_plain(monkeypatch: Any) -> None:
    if _compile.helpers() is None:
        pytest.skip("no C compiler here")
    draw = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 9, (40, 130), generator=draw).float().flatten()
    compiled = _ranks.row_ranks(scores, 17, 130, (5, -9))
    monkeypatch.setattr(_compile, "helpers", lambda: None)
    assert torch.equal(compiled, _ranks.row_ranks(scores, 17, 130, (5, -9)))


def test_where_a_block_begins_does_not_matter() -> None:
    """Methods without sums: any block size gives the same bytes (sums may round otherwise)."""
    for method in ("linear", "ties", "dare_linear", "della", "breadcrumbs", "nearswap"):
        base, experts = models(method)
        more = {"rescale": False} if "rescale" in get_method(method).params else {}
        results = [
            in_memory(method, base, experts, block_size=size, parameters=more)
            for size in (1 << 18, 1000, 4097)
        ]
        assert_same(results[0], results[1])
        assert_same(results[0], results[2])


SCORED = [
    ("ties", "activation", "tensor"),
    ("ties", "fisher", "model"),
    ("ties", "gain", "row"),
    ("ties", "activation_gain", "model"),
    ("breadcrumbs", "activation", "row"),
    ("della", "gain", None),
]


@pytest.mark.parametrize(("method", "score", "granularity"), SCORED)
@pytest.mark.parametrize("compiled", [False, True])
def test_evidence_in_blocks(
    method: str, score: str, granularity: str | None, compiled: bool, plain: Any
) -> None:
    """Numbers by input channel meet the same elements, wherever a block begins."""
    plain(compiled)
    base, experts = models(method)
    given = {"score": score, "rescale": False} | (
        {"granularity": granularity} if granularity else {}
    )
    results = [
        in_memory(method, base, experts, block_size=size, parameters=given)
        for size in (1 << 18, 1000, 4097, 90)
    ]
    for other in results[1:]:
        assert_same(results[0], other)
    assert_not_by_magnitude(method, base, experts, given, results[0])


def assert_not_by_magnitude(
    method: str, base: Any, experts: Any, given: Any, result: dict[str, Any]
) -> None:
    by_size = in_memory(method, base, experts, parameters={**given, "score": "magnitude"})
    assert not torch.equal(result["a.weight"], by_size["a.weight"])
