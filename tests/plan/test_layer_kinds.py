"""Layers of several kinds, moved: each stays what it was, in the config too, or is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import assert_same, load
from small_parts import (
    EXPERTS,
    LINEAR,
    MAKERS,
    deepseek,
    logits,
    made,
    modernbert,
    qwen3_moe,
    reload,
    stacked,
    states,
)  # fmt: skip
from test_module_slices import passthrough, slices

from mergewise import merge, plan
from mergewise.errors import RecipeError

LAYERS = "model.layers."


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def moved(kind: Any, tmp_path: Path, order: list[int], *sizes: int, **more: Any) -> Any:
    """A model with its layers in another order: the one merged, and its parts applied by hand."""
    a = made(kind, tmp_path / "a", 1, *sizes, **more)
    return merged_by_hand(a, order, tmp_path)


def merged_by_hand(a: Path, order: list[int], tmp_path: Path) -> Any:
    merge(passthrough(slices=slices(*((a, i, i + 1) for i in order))), tmp_path / "out")
    [one] = states(a)
    assert_same(load(tmp_path / "out"), stacked(LAYERS, [(one, i) for i in order], one))
    found = reload(tmp_path / "out")
    original = reload(a)
    layers = [copy.deepcopy(original.model.layers[i]) for i in order]
    for index, layer in enumerate(layers):  # where it keeps its cache; its kind it has already
        for part in layer.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = index
    original.model.layers = torch.nn.ModuleList(layers)
    original.config.num_hidden_layers = len(order)
    return found, original


@pytest.mark.parametrize("stated", [True, False])
def test_sliding_and_full_attention(stated: bool, tmp_path: Path) -> None:
    """Gemma 2 alternates; older configs do not list the kinds, and the class assumes them."""
    a = made("gemma2", tmp_path / "a", 1, 4)
    if not stated:
        edit(a, lambda config: config.pop("layer_types"))
    order = [0, 1, 3, 2, 3]
    found, original = merged_by_hand(a, order, tmp_path)
    kinds = ["sliding_attention", "full_attention"]
    assert found.config.layer_types == [kinds[i % 2] for i in order]
    original.config.layer_types = found.config.layer_types
    assert torch.equal(logits(found), logits(original))


def test_kinds_in_their_usual_order_are_not_spelled_out(tmp_path: Path) -> None:
    a = made("gemma2", tmp_path / "a", 1, 4)
    edit(a, lambda config: config.pop("layer_types"))
    merge(passthrough(slices=slices((a, 0, 4), (a, 2, 4))), tmp_path / "out")
    assert "layer_types" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_linear_and_full_attention(tmp_path: Path) -> None:
    found, original = moved("qwen3-next", tmp_path, [0, 3, 1], 4)
    assert found.config.layer_types == ["linear_attention", "full_attention", "linear_attention"]
    original.config.layer_types = found.config.layer_types
    assert torch.allclose(logits(found), logits(original), atol=1e-6)
    assert EXPERTS["num_experts"] == 4 and LINEAR


def test_dense_layers_of_a_mixture_are_listed_anew(tmp_path: Path) -> None:
    found, original = moved(qwen3_moe, tmp_path, [1, 0, 1], 3, dense=[1])
    assert found.config.mlp_only_layers == [0, 2]
    assert torch.allclose(logits(found), logits(original), atol=1e-6)


def test_a_step_between_mixtures_becomes_a_list(tmp_path: Path) -> None:
    found, original = moved(qwen3_moe, tmp_path, [1, 0, 2], 4, dense=[], step=2)
    assert (found.config.decoder_sparse_step, found.config.mlp_only_layers) == (1, [1, 2])
    assert torch.allclose(logits(found), logits(original), atol=1e-6)


def test_first_dense_layers_are_counted_anew(tmp_path: Path) -> None:
    found, original = moved(deepseek, tmp_path, [0, 0, 2, 1], 3)
    assert found.config.first_k_dense_replace == 2
    assert torch.allclose(logits(found), logits(original), atol=1e-6)


def refused(a: Path, *order: int) -> str:
    with pytest.raises(RecipeError) as caught:
        plan(passthrough(slices=slices(*((a, i, i + 1) for i in order))))
    return str(caught.value)


def test_a_dense_layer_behind_a_mixture_is_refused(tmp_path: Path) -> None:
    text = refused(made(deepseek, tmp_path / "a", 1, 3), 0, 1, 0)
    assert "first_k_dense_replace" in text and "layer 0 is of another kind than layer 2" in text


def test_whole_periods_may_be_repeated(tmp_path: Path) -> None:
    a = made("jamba", tmp_path / "a", 1, 4)
    assert "attn_layer_period" in refused(a, 0, 2)
    merge(passthrough(slices=slices((a, 0, 4), (a, 0, 2))), tmp_path / "out")
    assert reload(tmp_path / "out").config.num_hidden_layers == 6


def test_a_first_layer_without_a_norm_stays_first(tmp_path: Path) -> None:
    a = made(modernbert, tmp_path / "a", 1, 7)
    assert "layer 0 lacks attn_norm.weight" in refused(a, 0, 0)
    assert "layer 3 of" in refused(a, 3, 1) and "cannot become layer 0" in refused(a, 3, 1)
    merge(passthrough(slices=slices((a, 0, 2), (a, 1, 7))), tmp_path / "out")
    kinds = reload(tmp_path / "out").config.layer_types
    assert [kind[0] for kind in kinds] == list("fsssfssf")


def test_a_donor_of_other_depth_and_pattern_gives_its_own_kinds(tmp_path: Path) -> None:
    a = made(MAKERS["gemma2"], tmp_path / "a", 1, 2)
    b = made(MAKERS["gemma2"], tmp_path / "b", 2, 6)
    merge(passthrough(slices=slices((a, 0, 2), (b, 5, 6))), tmp_path / "out")
    kinds = reload(tmp_path / "out").config.layer_types
    assert [kind[0] for kind in kinds] == ["s", "f", "f"]


def test_layers_past_the_last_are_left_out_and_said_so(tmp_path: Path) -> None:
    """DeepSeek's layer for predicting ahead lies in the files as one more layer."""
    a = made(deepseek, tmp_path / "a", 1, 4)
    edit(a, lambda config: config.update(num_hidden_layers=3, num_nextn_predict_layers=1))
    assert "has 3 layers (0 to 2)" in refused(a, 0, 3)
    found = plan(passthrough(slices=slices((a, 0, 3), (a, 1, 3)))).output
    gone = [name for name in found.omitted if name.startswith("model.layers.3.")]
    assert gone and "beyond the 3 that the config counts" in found.omitted[gone[0]]
    assert found.config is not None and found.config["num_nextn_predict_layers"] == 0
