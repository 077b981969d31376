"""Let mergekit 0.1.5 merge small models, and keep its outputs as numbers.

Run with the interpreter that `install.sh` makes; see README.md. mergekit is a black box here:
cases without filters go through its in-memory function, those with filters are written as
checkpoints and a recipe and go through `mergekit-yaml`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from mergekit.merge_methods import merge_state_dicts
from safetensors.numpy import load_file, save_file

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden"
sys.path.insert(0, str(GOLDEN))

from inputs import CONFIG, STORED, fingerprint, models  # noqa: E402

Case = dict[str, Any]


def names_of(case: Case) -> list[str]:
    return case.get("experts", ["e0", "e1", "e2"])


def has_filters(case: Case) -> bool:
    lists = [v for v in case["parameters"].values() if isinstance(v, list)]
    return any(isinstance(item, list) for values in lists for item in values)


def in_memory(case: Case, made: dict[str, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    experts = names_of(case)
    with_base = case.get("base", True)
    chosen = [*(["base"] if with_base else []), *experts]
    inputs = {n: {k: torch.from_numpy(v.copy()) for k, v in made[n].items()} for n in chosen}
    parameters = {
        key: dict(zip(experts, value, strict=True)) if isinstance(value, list) else value
        for key, value in case["parameters"].items()
    }
    torch.manual_seed(0)
    merged = merge_state_dicts(
        inputs, case["method"], parameters=parameters, base="base" if with_base else None
    )
    return {name: merged[name].numpy() for name in STORED}


def recipe(case: Case, folder: Path) -> dict[str, Any]:
    experts = names_of(case)
    entries = []
    for i, expert in enumerate(experts):
        own = {k: v[i] for k, v in case["parameters"].items() if isinstance(v, list)}
        entries.append({"model": str(folder / expert), "parameters": own})
    document = {
        "merge_method": case["method"],
        "models": entries,
        "parameters": {k: v for k, v in case["parameters"].items() if not isinstance(v, list)},
        "dtype": "float32",
    }
    if case.get("base", True):
        document["base_model"] = str(folder / "base")
    return document


def on_disk(case: Case, made: dict[str, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        for name, tensors in made.items():
            (folder / name).mkdir()
            (folder / name / "config.json").write_text(json.dumps(CONFIG))
            save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})
        (folder / "recipe.yml").write_text(yaml.safe_dump(recipe(case, folder)))
        tool = Path(sys.executable).with_name("mergekit-yaml")
        command = [tool, folder / "recipe.yml", folder / "out", "--no-copy-tokenizer"]
        subprocess.run(command, check=True, capture_output=True)
        merged: dict[str, np.ndarray] = {}
        for shard in (folder / "out").glob("*.safetensors"):
            merged |= load_file(shard)
        return {name: merged[name] for name in STORED}


def main() -> None:
    made = models()
    out = {"fingerprint": np.array(fingerprint(made))}
    refused = {}
    for name, case in yaml.safe_load((GOLDEN / "cases.yaml").read_text()).items():
        try:
            merged = (on_disk if has_filters(case) else in_memory)(case, made)
        except Exception as problem:
            refused[name] = f"{type(problem).__name__}: {problem}"
            continue
        out |= {f"{name}/{key}": value for key, value in merged.items()}
    np.savez_compressed(GOLDEN / "mergekit-0.1.5.npz", **out)
    for name, problem in refused.items():
        print(f"mergekit refused {name}: {problem}")


if __name__ == "__main__":
    main()
