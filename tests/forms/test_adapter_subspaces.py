"""Adapters merged by methods of singular vectors: as the models BASE+ADAPTER are, at any size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_adapters import lora
from small_models import State, llama_config, llama_shapes, load, random_state, save

import mergewise
from mergewise import merge_state_dicts
from mergewise.errors import MergewiseError
from mergewise.forms import adapter_merge, merge_adapters
from mergewise.methods import Settings, all_methods

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
METHODS = {
    "knots": [{}, {"shared": "inputs"}, {"rule": "mean"}],
    "core_space": [{}, {"rule": "tsv"}, {"rule": "iso"}, {"rule": "ties"}, {"rule": "sum"}],
    "tsv_m": [{}],
    "iso_c": [{}],
}
CASES = [(name, given) for name, each in METHODS.items() for given in each]


def apart(adapters: list[Path], base: Path, method: str, given: Any, out: Path) -> State:
    """What a recipe of BASE+ADAPTER models makes, in float32."""
    models = [{"model": f"{base}+{a}", "parameters": {"weight": 0.8}} for a in adapters]
    document = {
        "merge_method": method, "base_model": str(base), "models": models, "parameters": given,
        "out_dtype": "float32",
    }  # fmt: skip
    mergewise.merge(document, out, device="cpu")
    return load(out)


def on_base(base: Path, adapter: Path, out: Path) -> State:
    models = [{"model": f"{base}+{adapter}", "parameters": {"weight": 1.0}}]
    mergewise.merge({"merge_method": "linear", "models": models}, out, device="cpu")
    return load(out)


@pytest.mark.parametrize(("method", "given"), CASES)
def test_before_it_is_cut_it_is_the_merge_of_the_models(
    method: str, given: dict[str, Any], tmp_path: Path
) -> None:
    shapes = llama_shapes(hidden=24, inner=40)
    state = random_state(shapes, 0, torch.float32)
    base = save(tmp_path / "base", state, llama_config(shapes))
    adapters = [
        lora(tmp_path / "a", state, [Q, DOWN], rank=4, seed=1),
        lora(tmp_path / "b", state, [DOWN, Q], rank=3, alpha=9, seed=2),
        lora(tmp_path / "c", state, [Q], rank=2, seed=3),
    ]
    made = merge_adapters(
        adapters, tmp_path / "out", method=method, parameters=given, weights=[0.8] * 3, energy=1.0
    )
    assert made.error < 1e-5
    wanted = apart(adapters, base, method, given, tmp_path / "dense")
    found = on_base(base, tmp_path / "out", tmp_path / "once")
    assert not torch.allclose(wanted[f"{Q}.weight"], state[f"{Q}.weight"], atol=1e-3)
    for name, tensor in wanted.items():
        assert torch.allclose(found[name], tensor, atol=1e-5), name
    cut = merge_adapters(
        adapters, tmp_path / "cut", method=method, parameters=given, weights=[0.8] * 3, rank=2
    )
    assert {layer.rank for layer in cut.layers} == {2}


@pytest.mark.parametrize("method", ["core_space", "knots"])
def test_nothing_is_as_large_as_a_weight(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = llama_shapes(hidden=64)
    state = random_state(shapes, 0, torch.float32)
    adapters = [lora(tmp_path / x, state, [Q], rank=2, seed=ord(x)) for x in "ab"]
    seen = []
    apply = adapter_merge.merged_alone

    def watched(tensors: Any, *rest: Any) -> Any:
        seen.extend(tuple(t.shape) for each in tensors.values() for t in each)
        return apply(tensors, *rest)

    monkeypatch.setattr(adapter_merge, "merged_alone", watched)
    merge_adapters(adapters, tmp_path / "out", method=method, rank=4)
    assert set(seen) - {(2, 2)} == {(4, 4) if method == "core_space" else (4, 64)}


HEAD = "lm_head"


@pytest.mark.parametrize("method", ["core_space", "knots"])
def test_what_a_method_is_not_for_is_told_and_may_be_asked_for(method: str, tmp_path: Path) -> None:
    state = random_state(llama_shapes(), 0, torch.float32)
    adapters = [lora(tmp_path / x, state, [Q, HEAD], seed=ord(x)) for x in "ab"]
    made = merge_adapters(adapters, tmp_path / "out", method=method, rank=4)
    assert [(layer.name, layer.rank) for layer in made.layers] == [
        (f"{HEAD}.weight", 0), (f"{Q}.weight", 4),
    ]  # fmt: skip
    [told] = made.warnings
    assert told.startswith(f"{method} keeps nothing of 1 weight, such as {HEAD} (embedding, not")
    asked = {"parameters": {"tensors": "all"}, "rank": 4}
    made = merge_adapters(adapters, tmp_path / "all", method=method, **asked)
    assert {layer.rank for layer in made.layers} == {4} and not made.warnings
    only = [lora(tmp_path / f"only {x}", state, [HEAD], seed=ord(x)) for x in "ab"]
    with pytest.raises(MergewiseError, match=f"nothing is left to write: {method} keeps nothing"):
        merge_adapters(only, tmp_path / "none", method=method, rank=4)


@pytest.mark.parametrize("method", ["optmerge", "core_space"])
def test_a_convolution_is_no_matrix(method: str, tmp_path: Path) -> None:
    """`tensors: linear` is without them, as it is in recipes."""
    state = {"conv.weight": torch.zeros(6, 4, 3, 3)}
    adapters = [lora(tmp_path / x, state, ["conv"], seed=ord(x)) for x in "ab"]
    for tensors, left in (("linear", 0), ("matrices", 4)):
        given = {"tensors": tensors, "otherwise": "base"}
        asked: dict[str, Any] = {"method": method, "parameters": given, "rank": 4}
        if left:
            made = merge_adapters(adapters, tmp_path / tensors, **asked)
            assert [layer.rank for layer in made.layers] == [left]
        else:
            with pytest.raises(MergewiseError, match=r"conv \(convolution, not among"):
                merge_adapters(adapters, tmp_path / tensors, **asked)


def turning() -> list[tuple[str, bool, bool]]:
    found = []
    for name, method in all_methods().items():
        defaults = {key: param.default for key, param in method.params.items()}
        rows, columns = method.turns(Settings(defaults))
        if rows or columns:
            found.append((name, rows, columns))
    return found


@pytest.mark.parametrize(("method", "rows", "columns"), turning())
def test_what_is_said_to_turn_turns(method: str, rows: bool, columns: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    small = [torch.randn(5, 7, generator=draw) for _ in range(3)]
    left = torch.linalg.qr(torch.randn(20, 5, generator=draw)).Q if rows else torch.eye(5)
    right = torch.linalg.qr(torch.randn(30, 7, generator=draw)).Q if columns else torch.eye(7)

    def merged(deltas: list[torch.Tensor]) -> torch.Tensor:
        name = f"{Q}.weight"
        return merge_state_dicts(
            [{name: delta} for delta in deltas],
            method,
            base={name: torch.zeros_like(deltas[0])},
        )[name]

    wanted = left @ merged(small) @ right.T
    found = merged([left @ delta @ right.T for delta in small])
    assert torch.allclose(found, wanted, atol=1e-5)


def test_peft_loads_what_core_space_makes(tmp_path: Path) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    shapes = llama_shapes()
    base = save(tmp_path / "base", random_state(shapes, 0, torch.float32), llama_config(shapes))

    def model(folder: Path) -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()

    adapters = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        config = peft.LoraConfig(
            r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"], init_lora_weights=False
        )
        adapters.append(tmp_path / f"peft{seed}")
        peft.get_peft_model(model(base), config).save_pretrained(adapters[-1])
    weights = [0.8, 0.8]
    for method in METHODS:
        out = tmp_path / method
        merge_adapters(adapters, out, method=method, weights=weights, rank=6)
        apart(adapters, base, method, {}, tmp_path / f"dense {method}")
        tokens = torch.tensor([[1, 5, 9, 3]])
        with torch.no_grad():
            found = peft.PeftModel.from_pretrained(model(base), out).eval()(tokens).logits
            wanted = model(tmp_path / f"dense {method}")(tokens).logits
            assert torch.allclose(found, wanted, atol=1e-4), method
