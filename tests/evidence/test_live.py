"""Checkpoints as models that run; what cannot be loaded is said so."""

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from small_language import random_llama

from mergewise.errors import CheckpointError, MergewiseError
from mergewise.evidence import LiveModel, fingerprint_of, open_model
from mergewise.evidence.models import _weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("live") / "model"
    model = random_llama()
    model.module.save_pretrained(out)
    model.tokenizer.save_pretrained(out)
    return out


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def edit(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_checkpoint_runs_as_it_was_saved(folder):
    live = open_model(folder)
    saved = random_llama()
    ids = torch.arange(3, 13)[None]
    with torch.inference_mode():
        assert torch.equal(live.module(ids).logits, saved.module(ids).logits)
    assert (live.name, live.folder, live.device.type) == ("model", folder, "cpu")
    assert not live.module.training
    assert live.fingerprint == fingerprint_of(folder)
    assert live.tokenizer("ab")["input_ids"] == saved.tokenizer("ab")["input_ids"]
    assert live.tokenizer.padding_side == "right"


def test_dtypes(folder, copy):
    assert open_model(folder, dtype="bfloat16").module.dtype == torch.bfloat16
    model = random_llama()
    model.module.half().save_pretrained(copy)
    assert open_model(copy).module.dtype == torch.float32, "float16 is slow and coarse on a CPU"
    model.module.bfloat16().save_pretrained(copy)
    assert open_model(copy).module.dtype == torch.bfloat16
    with pytest.raises(MergewiseError, match="dtype 'int8': one of bfloat16, float16"):
        open_model(folder, dtype="int8")


def test_a_body_needs_no_head(folder):
    live = open_model(folder, "body")
    with torch.inference_mode():
        assert live.module(torch.arange(3, 9)[None]).last_hidden_state.shape == (1, 6, 32)


def test_a_head_that_is_not_there_is_no_random_one(folder):
    with pytest.raises(CheckpointError, match=r"1 tensors that .* needs .*score\.weight"):
        open_model(folder, "text_classifier")


def test_a_model_without_a_tokenizer_has_none(copy):
    for file in copy.glob("tokenizer*"):
        file.unlink()
    assert open_model(copy).tokenizer is None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "cannot be loaded with AutoModelForCausalLM"),
        (lambda f: edit(f, model_type="zebra"), "cannot be loaded with AutoModelForCausalLM"),
        (lambda f: edit(f, hidden_size=64), "cannot be loaded with AutoModelForCausalLM"),
        (lambda f: edit(f, hidden_act="zebra"), "cannot be loaded with AutoModelForCausalLM"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "its tokenizer cannot be loaded"),
        (lambda f: (f / "model.safetensors").write_bytes(b"12"), "model.safetensors"),
        (lambda f: (f / "model.safetensors").unlink(), "copy"),
    ],
    ids=["no config", "type", "shapes", "config", "tokenizer", "weights", "none"],
)
def test_what_cannot_be_loaded_is_a_checkpoint_error(copy, spoil, message):
    spoil(copy)
    with pytest.raises(CheckpointError, match=message):
        open_model(copy)


def test_devices_that_do_not_exist_are_refused(folder):
    with pytest.raises(MergewiseError, match="device 'cuda:77'"):
        open_model(folder, device="cuda:77")


def test_fingerprints_see_weights_config_and_tokenizer(copy):
    marks = [fingerprint_of(copy)]
    (copy / "README.md").write_text("not part of it")
    assert fingerprint_of(copy) == marks[0]
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "modeling_x.py"):
        with (copy / name).open("ab") as file:
            file.write(b"\n")
        marks.append(fingerprint_of(copy))
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-2] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    marks.append(fingerprint_of(copy))
    assert len(set(marks)) == 6


def test_fingerprints_see_one_value_in_a_large_file(tmp_path):
    marks = set()
    for value in (0.0, 1.0):
        # 16 MiB, of which a sample of pages reads a quarter
        tensor = torch.zeros(1 << 22)
        tensor[40_000] = value
        save_file({"x": tensor}, tmp_path / "model.safetensors")
        marks.add(fingerprint_of(tmp_path))
    assert len(marks) == 2


def test_hashes_of_large_files_are_remembered_until_they_change(tmp_path, monkeypatch):
    monkeypatch.setenv("MERGEWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_weights, "REMEMBERED_FROM", 4)
    monkeypatch.setattr(_weights, "_SETTLED", -1)
    file = tmp_path / "large"
    file.write_bytes(b"one..")
    first = _weights.weights_hash(file)
    with monkeypatch.context() as without:
        without.setattr("mergewise.checkpoint.sha256_file", None)
        assert _weights.weights_hash(file) == first
    for spoil in (b"", b"[]", b'{"file": 1}'):
        next((tmp_path / "cache/hashes").iterdir()).write_bytes(spoil)
        assert _weights.weights_hash(file) == first
    file.write_bytes(b"two..")
    assert _weights.weights_hash(file) == hashlib.sha256(b"two..").hexdigest() != first


def test_a_hash_of_a_file_just_written_is_not_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("MERGEWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_weights, "REMEMBERED_FROM", 4)
    (tmp_path / "large").write_bytes(b"one..")
    _weights.weights_hash(tmp_path / "large")
    assert not (tmp_path / "cache").exists()


def test_the_device_of_a_module_without_parameters():
    assert LiveModel("x", torch.nn.Identity()).device == torch.device("cpu")
