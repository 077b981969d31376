"""Adapters that are broken, lie, or ask for what is not built: an error each, nothing written."""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_adapters import PREFIX, lora, write
from small_models import State, contents, llama_config, llama_shapes, load, random_state, save

import mergewise
from mergewise.checkpoint import open_reference
from mergewise.errors import MergewiseError, NotBuiltYetError

Q = "model.layers.0.self_attn.q_proj"
A, B = f"{PREFIX}{Q}.lora_A.weight", f"{PREFIX}{Q}.lora_B.weight"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Attack = Callable[[Path], None]


def setting(**values: Any) -> Attack:
    """A config with other values."""

    def act(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text()) | values
        (folder / CONFIG).write_text(json.dumps(config))

    return act


def config(text: bytes) -> Attack:
    return lambda folder: _put(folder / CONFIG, text)


def weights(data: bytes) -> Attack:
    return lambda folder: _put(folder / WEIGHTS, data)


def _put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def tensors(change: Callable[[State], State], **values: Any) -> Attack:
    """Weights with other tensors, and perhaps another config."""

    def act(folder: Path) -> None:
        save_file(change(load(folder)), folder / WEIGHTS)
        setting(**values)(folder)

    return act


def plus(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Callable[[State], State]:
    return lambda state: state | {name: torch.zeros(shape, dtype=dtype)}


def minus(name: str) -> Callable[[State], State]:
    return lambda state: {n: t for n, t in state.items() if n != name}


def renamed(old: str, new: str) -> Callable[[State], State]:
    return lambda state: {n.replace(old, new): t for n, t in state.items()}


def header(document: Any, size: int | None = None, data: bytes = b"") -> bytes:
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    return struct.pack("<Q", len(raw) if size is None else size) + raw + data


def absent(name: str) -> Attack:
    return lambda folder: (folder / name).unlink()


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


def pipe(folder: Path) -> None:
    (folder / CONFIG).unlink()
    os.mkfifo(folder / CONFIG)


def circle(name: str) -> Attack:
    """A link to itself."""

    def act(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(name)

    return act


def adalora(**values: Any) -> Attack:
    """An AdaLoRA, and other values in its config."""
    given = {"peft_type": "ADALORA", "init_r": 3, "lora_alpha": 2} | values
    return tensors(plus(f"{PREFIX}{Q}.lora_E", 3, 1), **given)


def a_folder(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()


ENTRY = {"dtype": "F32", "shape": [3, 16], "data_offsets": [0, 192]}
ATTACKS: dict[str, tuple[Attack, str]] = {
    # the config
    "empty": (config(b""), "not valid JSON"),
    "bad json": (config(b"{'r': 8}"), "not valid JSON"),
    "list": (config(b"[1]"), "must be a JSON object"),
    "key twice": (config(b'{"r": 1, "r": 2}'), "occurs twice"),
    "latin": (config(b'{"r": "\xff"}'), "not valid JSON"),
    "deep": (config(b'{"r": ' + b"[" * 5000 + b"]" * 5000 + b"}"), "nested"),
    "many values": (config(b'{"target_modules": [' + b"1," * 1_100_000 + b"1]}"), "more than"),
    "digits": (config(b'{"peft_type": "LORA", "r": ' + b"9" * 5000 + b"}"), "digits"),
    "no kind": (config(b"{}"), "peft_type: LORA, ADALORA or IA3 expected"),
    "kind a number": (setting(peft_type=3), "peft_type"),
    "loha's kind": (setting(peft_type="LOHA"), "kind 'LOHA'"),
    "kind a list": (setting(peft_type=["LORA"]), "peft_type"),
    "adalora without E": (setting(peft_type="ADALORA"), "lora_E [3, 1]"),
    "adalora of less": (adalora(init_r=2), "of rank 2 at most"),
    "adalora of nothing": (adalora(init_r=0), "init_r: ranks from 1 on"),
    "adalora, alpha below 0": (adalora(lora_alpha=-1), "lora_alpha: a number above 0"),
    "adalora with dora": (adalora(use_dora=True), "use_dora: nothing of AdaLoRA"),
    "adalora, E flat": (
        tensors(plus(f"{PREFIX}{Q}.lora_E", 3), peft_type="ADALORA"), "lora_E [3, 1]",
    ),
    "E in lora": (tensors(plus(f"{PREFIX}{Q}.lora_E", 3, 1)), "lora_A and lora_B expected"),
    "escapes": (setting(peft_type="\x1b[2J"), r"kind '\x1b[2J'"),
    "rank 0": (setting(r=0), "r: ranks from 1 on"),
    "rank below 0": (setting(r=-3), "r: ranks from 1 on"),
    "rank a fraction": (setting(r=2.5), "r: ranks from 1 on"),
    "rank true": (setting(r=True), "r: ranks from 1 on"),
    "rank huge": (setting(r=1 << 40), "r: ranks from 1 on"),
    "another rank": (setting(r=4), "lora_A [4, 16] expected (rank 4), got [3, 16]"),
    "alpha nan": (setting(lora_alpha=float("nan")), "lora_alpha: a finite number"),
    "alpha infinite": (setting(lora_alpha=float("inf")), "lora_alpha: a finite number"),
    "alpha text": (setting(lora_alpha="8"), "lora_alpha: a finite number"),
    "alpha huge": (setting(lora_alpha=1e300), "lora_alpha: a finite number"),
    "flag text": (setting(use_dora="yes"), "use_dora: true or false"),
    "fan text": (setting(fan_in_fan_out=1), "fan_in_fan_out: true or false"),
    "bias": (setting(bias="some"), "bias: none, all or lora_only"),
    "pattern a list": (setting(rank_pattern=[1]), "rank_pattern: at most"),
    "pattern rank": (setting(rank_pattern={"q_proj": 0}), "rank_pattern: ranks from 1 on"),
    "pattern alpha": (setting(alpha_pattern={"q_proj": None}), "alpha_pattern: a finite number"),
    "pattern broken": (setting(alpha_pattern={"(": 1}), "not a regular expression"),
    "pattern slow": (setting(rank_pattern={"(a+)+$": 1}), "at most two repetitions"),
    "pattern slower": (setting(alpha_pattern={"(.|a)*(b|c)*d": 1}), "at most two repetitions"),
    "pattern slowest": (setting(alpha_pattern={".*.*.*.*.*.*!": 1}), "at most two repetitions"),
    "pattern long": (setting(alpha_pattern={"a" * 400: 1}), "a short regular expression"),
    "pissa": (setting(init_lora_weights="pissa"), "init_lora_weights: 'pissa'"),
    "replication": (setting(layer_replication=[[0, 2]]), "'layer_replication'"),
    "parameters": (setting(target_parameters=["experts.w1"]), "'target_parameters'"),
    "tokens": (setting(trainable_token_indices=[1]), "'trainable_token_indices'"),
    "qalora": (setting(use_qalora=True), "'use_qalora': True is not built yet"),
    "unknown": (setting(times_two=True), "'times_two': True is not known"),
    "config of 9 MB": (config(b'{"r": "' + b"r" * 9_000_000 + b'"}'), "adapter_config.json"),
    "rank a float": (setting(r=3.0), "r: ranks from 1 on"),
    "rank a list": (setting(r=[3]), "r: ranks from 1 on"),
    "rank null": (setting(r=None), "r: ranks from 1 on"),
    "alpha null": (setting(lora_alpha=None), "lora_alpha: a finite number"),
    "alpha a list": (setting(lora_alpha=[1]), "lora_alpha: a finite number"),
    "patterns too many": (
        setting(rank_pattern={f"m{i}": 3 for i in range(10_001)}), "at most 10,000 patterns",
    ),
    "pattern turns back": (setting(rank_pattern={r"(a)(b)\\2\\1": 3}), "none of a group"),
    "pattern looks ahead": (setting(rank_pattern={"(?=a)a": 3}), "none of a group"),
    "pattern counts": (setting(rank_pattern={"a{1,60000}{1,60000}": 3}), "rank_pattern"),
    "pattern gives a rank": (setting(rank_pattern={"q_proj": 2}), "(rank 2), got [3, 16]"),
    "pattern of a path": (setting(rank_pattern={"../../q_proj": -1}), "ranks from 1 on"),
    "arrow": (setting(arrow_config={"top_k": 2}), "'arrow_config'"),
    "a config in a config": (setting(eva={"file": "/etc/passwd"}), "'eva'"),
    "links in a circle": (circle(CONFIG), "no adapter_config.json"),
    "weights in a circle": (circle(WEIGHTS), "adapter_model.safetensors"),
    "a pipe": (pipe, "a regular file expected"),
    "no config": (absent(CONFIG), "no adapter_config.json"),
    # the weights
    "no weights": (absent(WEIGHTS), "no adapter_model.safetensors"),
    "pickle": (pickled, "which is a pickle"),
    "folder": (a_folder, "a regular file expected"),
    "truncated": (weights(header({"a": ENTRY})), "truncated"),
    "huge header": (weights(header(b"{}", 1 << 60)), "claims a header"),
    "not safetensors": (weights(b"PK\x03\x04" + b"z" * 60), "not a safetensors"),
    "empty file": (weights(b""), "too few"),
    "no tensors": (weights(header({})), "holds no tensors"),
    "lfs": (weights(b"version https://git-lfs.github.com/spec/v1\n"), "Git LFS"),
    "overlapping": (
        weights(header({n: {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
                        for n in ("a", "b")}, data=b"0" * 16)), "adapter_model.safetensors",
    ),
    "below the file": (
        weights(header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}},
                       data=b"0" * 8)), "adapter_model.safetensors",
    ),
    "beyond the file": (
        weights(header({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}},
                       data=b"0" * 8)), "adapter_model.safetensors",
    ),
    "a size that overflows": (
        weights(header({"a": {"dtype": "F32", "shape": [1 << 62, 1 << 62],
                              "data_offsets": [0, 0]}})), "adapter_model.safetensors",
    ),
    "nan in A": (tensors(lambda s: s | {A: s[A] * float("nan")}), "NaN or infinity"),
    "infinite B": (tensors(lambda s: s | {B: s[B] / 0}), "NaN or infinity"),
    "too large together": (
        tensors(lambda s: {n: t.float() * 1e25 for n, t in s.items()}), "NaN or infinity",
    ),
    "modules to save, a path": (
        tensors(plus(f"{PREFIX}../../../etc/passwd", 4), modules_to_save=["../../../etc/passwd"]),
        "not in the base",
    ),
    "modules to save, twice": (
        tensors(plus(f"{PREFIX}model.norm.modules_to_save.weight", 16)), "a kind of adapter",
    ),
    "an absolute path": (tensors(renamed("q_proj", "/etc/q_proj")), "not in the base"),
    "nothing but the prefix": (tensors(renamed(A, PREFIX)), "not in the base"),
    "outside": (tensors(renamed("layers.0", "layers.9")), "not in the base"),
    "a path": (tensors(renamed("model.layers.0", "../../etc")), "not in the base"),
    "another tensor": (tensors(plus(f"{PREFIX}score.weight", 2, 16)), "not in the base"),
    "a long name": (tensors(renamed("model.layers", "m" * 400)), "no name of a module"),
    "control": (tensors(renamed("self_attn", "self\nattn")), "no name of a module"),
    "no A": (tensors(minus(A)), "lora_A and lora_B expected"),
    "no B": (tensors(minus(B)), "lora_A and lora_B expected"),
    "A turned": (tensors(lambda s: s | {A: s[A].T.contiguous()}), "lora_A [3, 16] expected"),
    "B flat": (tensors(lambda s: s | {B: s[B].flatten()}), "lora_B [16, 3] expected"),
    "A wide": (tensors(plus(A, 3, 17)), "lora_A [3, 16] expected"),
    "A empty": (tensors(plus(A, 0, 16)), "lora_A [3, 16] expected"),
    "whole numbers": (tensors(plus(A, 3, 16, dtype=torch.int64)), "elements of type I64"),
    "no dora": (setting(use_dora=True), "use_dora is set"),
    "dora unsaid": (
        tensors(plus(f"{PREFIX}{Q}.lora_magnitude_vector", 16)), "use_dora is not set",
    ),
    "dora short": (
        tensors(plus(f"{PREFIX}{Q}.lora_magnitude_vector", 15), use_dora=True), "16 numbers",
    ),
    "bias without bias": (
        tensors(plus(f"{PREFIX}{Q}.lora_B.bias", 16), lora_bias=True), "the base no",
    ),
    "A with a bias": (tensors(plus(f"{PREFIX}{Q}.lora_A.bias", 3)), "lora_A has no bias"),
    "ia3 in lora": (tensors(plus(f"{PREFIX}{Q}.ia3_l", 16, 1)), "lora_A and lora_B expected"),
    "lora in ia3": (setting(peft_type="IA3"), "ia3_l expected"),
    "loha": (tensors(plus(f"{PREFIX}{Q}.hada_w1_a", 16, 3)), "a kind of adapter"),
    "whole, wrong shape": (
        tensors(plus(f"{PREFIX}model.norm.weight", 17)), "[16], as in the base, expected",
    ),
    "another vocabulary": (
        tensors(plus(f"{PREFIX}model.embed_tokens.weight", 44, 16)), "another vocabulary",
    ),
    "twice": (tensors(plus(f"{Q}.lora_A.weight", 3, 16)), "the same part of one module"),
    "embedding of a linear": (
        tensors(renamed("lora_A.weight", "lora_embedding_A")),
        "lora_embedding_A and lora_embedding_B expected",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ATTACKS)
def test_an_error_and_nothing_written(case: str, tmp_path: Path) -> None:
    act, words = ATTACKS[case]
    shapes = llama_shapes(layers=1)
    base = save(tmp_path / "base", random_state(shapes, 0), llama_config(shapes))
    adapter = lora(tmp_path / "adapter", load(base), [Q])
    open_reference(f"{base}+{adapter}")
    act(adapter)
    before = set(contents(tmp_path)) if case != "a pipe" else None
    recipe = {
        "merge_method": "linear",
        "models": [{"model": f"{base}+{adapter}", "parameters": {"weight": 1}}],
    }
    start = time.monotonic()
    with pytest.raises(MergewiseError) as caught:
        mergewise.merge(recipe, tmp_path / "out")
    assert time.monotonic() - start < 5
    assert words in str(caught.value), caught.value
    assert "\x1b" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert before is None or set(contents(tmp_path)) == before


def test_patterns_of_target_modules_are_not_matched(tmp_path: Path) -> None:
    """Tensors say what is changed, so the config's expressions cannot cost hours."""
    state = random_state({"a" * 40 + ".weight": (4, 4)}, 0, torch.float32)
    base = save(tmp_path / "base", state)
    adapter = lora(tmp_path / "adapter", state, ["a" * 40], target_modules="(a+)+$",
                   exclude_modules="(a|a)*b", layers_pattern=["(a*)*c"])  # fmt: skip
    start = time.monotonic()
    assert open_reference(f"{base}+{adapter}").adapter == adapter
    assert time.monotonic() - start < 2


def test_a_prefix_that_fits_everything(tmp_path: Path) -> None:
    """Adapters of the bare model and of the one with a head name the same tensors differently."""
    state = random_state({"h.0.a.weight": (4, 4), "h.1.a.weight": (4, 4)}, 0, torch.float32)
    base = save(tmp_path / "base", state)
    named = {f"transformer.{n}": t for n, t in state.items()}
    longer = lora(tmp_path / "longer", named, ["transformer.h.0.a"])
    assert open_reference(f"{base}+{longer}").adapter == longer
    headed = save(tmp_path / "headed", named)
    shorter = lora(tmp_path / "shorter", state, ["h.1.a"])
    found = open_reference(f"{headed}+{shorter}").tensors["transformer.h.1.a.weight"]
    assert type(found).__name__ == "ChangedRef"
    tower = {f"model.{n}": t.clone() for n, t in state.items()}
    tower["visual.h.0.b.weight"] = torch.zeros(4, 4)
    folder = save(tmp_path / "tower", tower)
    inner = {f"model.language_model.{n}": t for n, t in state.items()}
    third = lora(tmp_path / "third", inner, ["model.language_model.h.0.a"])
    found = open_reference(f"{folder}+{third}").tensors["model.h.0.a.weight"]
    assert type(found).__name__ == "ChangedRef"
    twice = save(tmp_path / "twice", named | {f"model.{n}": t.clone() for n, t in state.items()})
    with pytest.raises(MergewiseError, match="fits 2 tensors of the base"):
        open_reference(f"{twice}+{shorter}")


def test_a_prefix_of_the_same_words_in_another_order(tmp_path: Path) -> None:
    """transformers names towers otherwise in memory, and two may have layers alike."""
    parts = random_state({"h.0.a.weight": (4, 4), "h.1.a.weight": (4, 4)}, 0, torch.float32)
    towers = ("language_model.model", "vision_tower.encoder")
    state = {f"{tower}.{n}": t.clone() for tower in towers for n, t in parts.items()}
    base = save(tmp_path / "base", state)
    inner = {f"model.language_model.{n}": t for n, t in parts.items()}
    adapter = lora(tmp_path / "adapter", inner, ["model.language_model.h.1.a"])
    found = open_reference(f"{base}+{adapter}").tensors
    changed = [n for n, ref in found.items() if type(ref).__name__ == "ChangedRef"]
    assert changed == ["language_model.model.h.1.a.weight"]


def test_integers_take_no_adapter(tmp_path: Path) -> None:
    state = {"a.weight": torch.zeros(4, 4, dtype=torch.int8)}
    base = save(tmp_path / "base", state)
    adapter = lora(tmp_path / "adapter", {"a.weight": torch.zeros(4, 4)}, ["a"])
    with pytest.raises(NotBuiltYetError, match="I8 cannot be combined"):
        open_reference(f"{base}+{adapter}")


def test_a_plus_in_a_folder_name(tmp_path: Path) -> None:
    base = save(tmp_path / "a+b", random_state({"x.weight": (2, 2)}, 0))
    assert open_reference(base).adapter is None
    adapter = write(
        tmp_path / "c",
        {"x.lora_A.weight": torch.ones(1, 2), "x.lora_B.weight": torch.ones(2, 1)},
        {"peft_type": "LORA", "r": 1, "lora_alpha": 1},
    )
    assert open_reference(f"{base}+{adapter}").adapter == adapter
