"""Index files and configs that are broken or malicious: refused by name, quickly and cheaply."""

import json
import os
import random
import struct

import pytest
from _bounds import MB, as_bytes, bounded, entry, refused
from _mutate import edit_json, valid_file

from mergewise.checkpoint import edited_config, inspect_checkpoint, open_checkpoint, with_layers
from mergewise.errors import MergewiseError, NotBuiltYetError

S1, S2 = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
GOOD_MAP = {"a": S1, "b": S2}

# name: (index document or text, part of the message)
BAD_INDEXES = {
    "empty-file": (b"", "not valid JSON"),
    "not-json": (b"{", "not valid JSON"),
    "list": (b"[]", "must be a JSON object"),
    "null": (b"null", "must be a JSON object"),
    "string": (b'"x"', "must be a JSON object"),
    "number": (b"1e400", "must be a JSON object"),
    "empty-object": ({}, "weight_map must map"),
    "map-null": ({"weight_map": None}, "weight_map must map"),
    "map-list": ({"weight_map": [S1]}, "weight_map must map"),
    "map-string": ({"weight_map": S1}, "weight_map must map"),
    "map-empty": ({"weight_map": {}}, "weight_map must map"),
    "shard-null": ({"weight_map": {"a": None}}, "a file name expected"),
    "shard-number": ({"weight_map": {"a": 1}}, "a file name expected"),
    "shard-list": ({"weight_map": {"a": [S1]}}, "a file name expected"),
    "shard-object": ({"weight_map": {"a": {S1: 1}}}, "a file name expected"),
    "shard-bool": ({"weight_map": {"a": True}}, "a file name expected"),
    "metadata-list": ({"metadata": [1], "weight_map": GOOD_MAP}, "metadata must be"),
    "metadata-string": ({"metadata": "x", "weight_map": GOOD_MAP}, "metadata must be"),
    "missing-shard": ({"weight_map": {**GOOD_MAP, "c": "model-00003.safetensors"}}, "missing"),
    "ghost-tensor": ({"weight_map": {**GOOD_MAP, "c": S1}}, "'c' should be in"),
    "swapped-shards": ({"weight_map": {"a": S2, "b": S1}}, "should be in"),
    "half-an-index": ({"weight_map": {"a": S1}}, "is not listed in"),
    "unlisted-tensor": ({"weight_map": {"a": S1, "x": S2}}, "'x' should be in"),
    "control-in-name": ({"weight_map": {"\x1b[2J": S1, **GOOD_MAP}}, r"\x1b[2J"),
    "duplicate-tensor": (f'{{"weight_map":{{"a":"{S1}","a":"{S2}"}}}}'.encode(), "twice"),
    "duplicate-map": (b'{"weight_map":{},"weight_map":{}}', "occurs twice"),
    "deep": (b'{"weight_map":' + b"[" * 90_000, "nested too deeply"),
    "deep-objects": (b'{"a":' * 90_000, "nested too deeply"),
    "deep-but-closed": (b'{"weight_map":' + b"[" * 300 + b"]" * 300 + b"}", "nested more than"),
    "crowd-of-lists": (b'{"a":[' + b"[]," * 200_000, "lists and objects"),
    "crowd-of-values": (b'{"a":[' + b"1," * 1_100_000, "values"),
    "huge-number": (b'{"a":' + b"9" * 1_000_000 + b"}", "digits"),
    "invalid-utf-8": (b'{"weight_map":{"\xff":"x"}}', "not valid JSON"),
    "utf-16": ('{"weight_map":{}}'.encode("utf-16"), "not valid JSON"),
    "many-shards": (
        {"weight_map": {str(i): f"{i}.safetensors" for i in range(10_001)}},
        "at most 10,000",
    ),
}
LEAVING = [
    *("../model.safetensors", "../../etc/passwd", "/etc/passwd", "/dev/zero", "a/../../x"),
    *("sub/model.safetensors", "./model.safetensors", "..\\model.safetensors", "\\\\host\\share"),
    *("C:\\model.safetensors", "C:model.safetensors", "file:///etc/passwd", "//host/x", "~/x"),
    *("https://example.org/model.safetensors", "a\0.safetensors", "a\n.safetensors"),
    *("", ".", "..", "...", "~", "model.bin", "passwd", "x.safetensors/", ".safetensors.json"),
    *("\u202ex.safetensors", "\ud800.safetensors", "x" * 300 + ".safetensors"),
    *("é" * 150 + ".safetensors", "x" * MB + ".safetensors", "nul\u0000.safetensors"),
]


@pytest.fixture
def pair(tmp_path):
    """A folder with two shards holding `a` and `b`, and a function to write its index."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name, shard in GOOD_MAP.items():
        header = json.dumps({name: entry()}).encode()
        (folder / shard).write_bytes(struct.pack("<Q", len(header)) + header + b"x")

    def write(document):
        (folder / "model.safetensors.index.json").write_bytes(as_bytes(document))
        return folder

    return write


@pytest.mark.parametrize("case", BAD_INDEXES)
def test_index_is_refused(pair, case):
    document, message = BAD_INDEXES[case]
    refused(open_checkpoint, pair(document), message)


@pytest.mark.parametrize("shard", LEAVING, ids=lambda name: ascii(name[:40]))
def test_names_that_are_no_plain_shards(pair, shard):
    folder = pair({"weight_map": {**GOOD_MAP, "c": shard}})
    (folder.parent / "model.safetensors").write_bytes(valid_file())
    assert "plain file name" in str(refused(open_checkpoint, folder))


@pytest.mark.parametrize("total", [None, 0, 3, -1, 10**30, 2.0, "2", [2], True])
def test_total_size_is_only_compared(pair, total):
    """Valid by design: the total is not needed, a wrong one is a warning."""
    folder = pair({"metadata": {"total_size": total}, "weight_map": GOOD_MAP})
    with bounded():
        warnings = open_checkpoint(folder).warnings
    assert len(warnings) == (total not in (None, 2))


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "dangling", "loop"])
@pytest.mark.parametrize("name", [S1, "model.safetensors.index.json", "config.json"])
def test_not_a_regular_file(pair, kind, name):
    folder = pair({"weight_map": GOOD_MAP})
    (folder / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(folder / name)
    elif kind == "folder":
        (folder / name).mkdir()
    else:
        target = {"device": "/dev/zero", "dangling": "nowhere", "loop": name}[kind]
        (folder / name).symlink_to(target)
    assert name in str(refused(open_checkpoint, folder))


@pytest.mark.parametrize("seed", range(100))
def test_damaged_index(pair, seed):
    rng = random.Random(seed)
    good = {"metadata": {"total_size": 2}, "weight_map": GOOD_MAP}
    folder = pair(edit_json(rng, good))
    try:
        with bounded():
            checkpoint = open_checkpoint(folder)
    except MergewiseError:
        return
    assert set(checkpoint.tensors) == {"a", "b"}
    assert {file.parent for file in checkpoint.files} == {folder}


# configs

# name: (config document or text, part of the message)
BAD_CONFIGS = {
    "empty-file": (b"", "not valid JSON"),
    "not-json": (b"model_type: llama", "not valid JSON"),
    "list": (b"[]", "must be a JSON object"),
    "string": (b'"x"', "must be a JSON object"),
    "null": (b"null", "must be a JSON object"),
    "duplicate-key": (b'{"a":1,"a":2}', "'a' occurs twice"),
    "nested-duplicate-key": (b'{"a":{"b":1,"b":2}}', "'b' occurs twice"),
    "deep": (b'{"a":' + b"[" * 90_000, "nested too deeply"),
    "deep-but-closed": (b'{"a":' + b"[" * 300 + b"]" * 300 + b"}", "nested more than"),
    "huge-number": (b'{"a":' + b"9" * 1_000_000 + b"}", "digits"),
    "huge-negative": (b'{"a":-' + b"9" * 5000 + b"}", "digits"),
    "huge-file": (b"{" + b" " * 8_000_001, "at most 8,000,000 are plausible"),
    "crowd": (b'{"a":[' + b"{}," * 200_000, "lists and objects"),
    "invalid-utf-8": (b'{"a":"\xff"}', "not valid JSON"),
    "architectures-string": ({"architectures": "LlamaForCausalLM"}, "architectures must be list"),
    "architectures-numbers": ({"architectures": [1]}, "architectures must be list"),
    "model-type": ({"model_type": ["llama"]}, "model_type must be str"),
    "tie-string": ({"tie_word_embeddings": "false"}, "tie_word_embeddings must be bool"),
    "tie-number": ({"tie_word_embeddings": 1}, "tie_word_embeddings must be bool"),
    "layers-string": ({"num_hidden_layers": "2"}, "num_hidden_layers must be int"),
    "layers-bool": ({"num_hidden_layers": True}, "num_hidden_layers must be int"),
    "layers-infinite": (b'{"num_hidden_layers": Infinity}', "num_hidden_layers must be int"),
    "vocab-list": ({"vocab_size": [1]}, "vocab_size must be int"),
    "dtype-number": ({"dtype": 16}, "dtype must be"),
    "torch-dtype-list": ({"torch_dtype": ["float16"]}, "torch_dtype must be"),
    "text-config-list": ({"text_config": []}, "text_config must be dict"),
    "nested-wrong-type": ({"text_config": {"vocab_size": "1"}}, "vocab_size must be int"),
    "quantised-wrong-type": ({"quantization_config": "fp8"}, "quantization_config must be"),
    "quantised": ({"quantization_config": {"quant_method": "fp8"}}, "'fp8'"),
    "quantised-unnamed": ({"quantization_config": {"bits": 4}}, "quantised"),
    "quantised-control": ({"quantization_config": {"quant_method": "\x1b[2J"}}, r"\x1b[2J"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_config_is_refused(pair, case):
    document, message = BAD_CONFIGS[case]
    folder = pair({"weight_map": GOOD_MAP})
    (folder / "config.json").write_bytes(as_bytes(document))
    error = refused(open_checkpoint, folder, message)
    not_built = case in ("quantised-unnamed", "quantised-control")
    assert isinstance(error, NotBuiltYetError) == not_built


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"time_step_limit": [0.0, Infinity]}',
        '{"auto_map": {"AutoModel": "evil.py--__import__"}}',
        '{"architectures": []}',
        '{"architectures": null, "dtype": null}',
        '{"num_hidden_layers": 1000000000000000019884624838656}',
        '{"unknown": "\\ud800"}',
    ],
)
def test_config_is_accepted(pair, text):
    """Valid by design: models in the wild say such things, and none of it is executed."""
    folder = pair({"weight_map": GOOD_MAP})
    (folder / "config.json").write_text(text)
    with bounded():
        assert open_checkpoint(folder).architecture is None


@pytest.mark.parametrize("seed", range(100))
def test_damaged_config(llama, tmp_path, seed):
    rng = random.Random(seed)
    config = json.loads((llama / "config.json").read_text())
    for _ in range(3):
        config = edit_json(rng, config)
    (tmp_path / "model.safetensors").symlink_to(llama / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    try:
        with bounded():
            checkpoint = open_checkpoint(tmp_path)
            inspect_checkpoint(checkpoint).to_dict()
            edited_config(checkpoint.config, dtype="float16", tie_word_embeddings=False)
            with_layers(checkpoint.config, [0, 0])
    except MergewiseError as error:
        assert str(error).isprintable()
