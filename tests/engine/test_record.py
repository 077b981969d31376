"""The provenance says what a recipe left unsaid: defaults, and what became of other tensors."""

from __future__ import annotations

import json
from pathlib import Path

from small_models import family

from mergewise import merge


def test_policies_are_recorded(tmp_path: Path) -> None:
    root = str(family(tmp_path))
    models = [{"model": f"{root}/expert_{c}"} for c in "ab"]
    first = {"merge_method": "magmax", "base_model": f"{root}/base", "models": models}
    second = {
        "merge_method": "iso_c", "base_model": f"{root}/base", "models": models,
        "parameters": {"otherwise": "base", "weight": [{"filter": "layers.0", "value": 2.0}]},
        "exclude": ["lm_head.weight"],
    }  # fmt: skip
    records = []
    for i, document in enumerate((first, second)):
        merge(document, tmp_path / str(i))
        file = tmp_path / str(i) / "mergewise_provenance.json"
        [record] = json.loads(file.read_text())["stages"]
        records.append(record)
    assert records[0] == {
        "merge_method": "magmax", "defaults": {"weight": 1.0, "lambda": 0.5}, "otherwise": {},
    }  # fmt: skip
    # some weights are said, the others are not
    assert records[1]["defaults"] == {
        "weight": 1.0, "lambda": 1.0, "tensors": "matrices", "null": "skip",
    }  # fmt: skip
    assert list(records[1]["otherwise"].values()) == [1, 1, 5]
    told = " ".join(records[1]["otherwise"])
    assert "embedding, not among `tensors: matrices`: as the base" in told
    assert "excluded by the recipe: copied from" in told
