"""Which files of a folder count, and which folders are refused by name."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from mergewise.checkpoint import open_checkpoint
from mergewise.errors import CheckpointError, HubError, NotBuiltYetError

INDEX = "model.safetensors.index.json"


def test_single_file_folder(llama, llama_model):
    checkpoint = open_checkpoint(llama)
    state = llama_model.state_dict()
    assert {n: t.shape for n, t in checkpoint.tensors.items()} == {
        n: tuple(t.shape) for n, t in state.items()
    }
    assert checkpoint.total_parameters == sum(t.numel() for t in state.values())
    assert checkpoint.total_bytes == 2 * checkpoint.total_parameters
    assert checkpoint.architecture == "LlamaForCausalLM"
    assert checkpoint.model_type == "llama"
    assert checkpoint.tie_word_embeddings is False
    assert checkpoint.dtype == "bfloat16"
    assert checkpoint.warnings == ()


def test_sharded_folder_equals_single(llama, sharded):
    single, shards = open_checkpoint(llama), open_checkpoint(sharded)
    assert len(shards.files) > 2 and shards.index is not None
    assert {n: t.shape for n, t in single.tensors.items()} == {
        n: t.shape for n, t in shards.tensors.items()
    }
    assert shards.warnings == ()


def test_one_file(llama):
    checkpoint = open_checkpoint(llama / "model.safetensors")
    assert checkpoint.tensors.keys() == open_checkpoint(llama).tensors.keys()
    assert checkpoint.folder == llama and checkpoint.architecture == "LlamaForCausalLM"


def test_only_safetensors_of_any_name(llama, tmp_path):
    shutil.copy(llama / "model.safetensors", tmp_path / "weights.safetensors")
    assert open_checkpoint(tmp_path).config is None


def test_single_file_wins_over_index(llama, sharded, tmp_path):
    shutil.copytree(sharded, tmp_path / "m")
    shutil.copy(llama / "model.safetensors", tmp_path / "m")
    checkpoint = open_checkpoint(tmp_path / "m")
    assert [f.name for f in checkpoint.files] == ["model.safetensors"]
    assert "ignored" in checkpoint.warnings[0]


def test_consolidated_beside_index_is_ignored(sharded, tmp_path):
    shutil.copytree(sharded, tmp_path / "m")
    save_file({"x": torch.zeros(1)}, tmp_path / "m/consolidated.safetensors")
    checkpoint = open_checkpoint(tmp_path / "m")
    assert "x" not in checkpoint.tensors
    assert "consolidated.safetensors" in checkpoint.warnings[0]


def test_several_files_without_index(tmp_path):
    for name in "ab":
        save_file({name: torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=r"2 \.safetensors files and no model"):
        open_checkpoint(tmp_path)


def test_hub_cache_links(llama, tmp_path):
    snapshot = tmp_path / "models--a--b/snapshots/abc"
    blobs = tmp_path / "models--a--b/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(llama.iterdir()):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert open_checkpoint(snapshot).architecture == "LlamaForCausalLM"


@pytest.fixture
def edited(sharded, tmp_path):
    """A copy of the sharded model with an edited index."""

    def edit(change):
        folder = tmp_path / "edited"
        shutil.copytree(sharded, folder)
        index = json.loads((folder / INDEX).read_text())
        change(index)
        (folder / INDEX).write_text(json.dumps(index))
        return folder

    return edit


def test_wrong_total_is_a_warning(edited):
    folder = edited(lambda index: index["metadata"].update(total_size=5))
    assert "total_size is 5" in open_checkpoint(folder).warnings[0]


def test_missing_shard(edited):
    folder = edited(lambda index: None)
    (folder / sorted(p.name for p in folder.glob("*.safetensors"))[1]).unlink()
    with pytest.raises(CheckpointError, match=r"named in .*index\.json but missing"):
        open_checkpoint(folder)


def test_tensor_listed_but_absent(edited):
    def add(index):
        index["weight_map"]["ghost"] = next(iter(index["weight_map"].values()))

    with pytest.raises(CheckpointError, match="'ghost' should be in"):
        open_checkpoint(edited(add))


def test_tensor_present_but_not_listed(edited):
    with pytest.raises(CheckpointError, match=r"'lm_head\.weight' is not listed"):
        open_checkpoint(edited(lambda index: index["weight_map"].pop("lm_head.weight")))


def test_tensor_in_two_shards(tmp_path):
    for name in "ab":
        save_file({name: torch.zeros(1), "c": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    index = {"weight_map": {"a": "a.safetensors", "b": "b.safetensors", "c": "b.safetensors"}}
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"'c' is also in a\.safetensors"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt", "weights.pth"])
def test_pickles_are_refused_with_a_hint(tmp_path, name):
    (tmp_path / name).write_bytes(b"never opened")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(CheckpointError, match="pickles can run code; --allow-pickle"):
            open_checkpoint(path)


def test_an_adapter_alone_is_no_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"an adapter .* BASE\+ADAPTER"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [],
)
def test_known_formats_not_built_yet(tmp_path, name, message):
    (tmp_path / name).write_text("{}")
    with pytest.raises(NotBuiltYetError, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("part", ["top", "text_config"])
def test_quantised_is_refused_by_the_methods_name(llama, tmp_path, part):
    shutil.copytree(llama, tmp_path / "m")
    settings = {"quantization_config": {"quant_method": "hqq"}}
    config = settings if part == "top" else {"text_config": settings}
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    with pytest.raises(NotBuiltYetError, match="quantization_config: 'hqq'"):
        open_checkpoint(tmp_path / "m")


def test_hub_name():
    with pytest.raises(HubError, match=r"HF_HUB_OFFLINE is set.*hf download some-org/some-model"):
        open_checkpoint("some-org/some-model")


@pytest.mark.parametrize("path", ["absent", "/absent/a/b", "./absent/x", "a\0b", "x" * 5000])
def test_absent(path):
    with pytest.raises(CheckpointError):
        open_checkpoint(path)


def test_empty_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"no \.safetensors file in this folder"):
        open_checkpoint(tmp_path)


def test_text_config_speaks_for_the_model(llama, tmp_path):
    shutil.copy(llama / "model.safetensors", tmp_path)
    nested = {"tie_word_embeddings": True, "dtype": "float16"}
    (tmp_path / "config.json").write_text(json.dumps({"text_config": nested}))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.tie_word_embeddings is True and checkpoint.dtype == "float16"
