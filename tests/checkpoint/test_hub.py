"""Models on a small Hub: named, looked at without downloading, downloaded, kept apart by commit."""

import json
import re

import pytest
import small_adapters
from fake_hub import TOKEN
from small_models import family, load

from mergewise.checkpoint import (
    FileReader,
    downloads,
    fetched,
    hub_name,
    inspect_checkpoint,
    open_checkpoint,
    open_reference,
    origin_of,
    to_fetch,
)
from mergewise.checkpoint._hub import forget
from mergewise.errors import CheckpointError, HubError, OutputError


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return family(tmp_path_factory.mktemp("models"))


@pytest.fixture
def base(hub, models):
    """The commit of ``org/base``."""
    hub.add("org/base", {"notes.xyz": b"?"}, ref="old")
    return hub.add("org/base", models / "base")


def cached(hub):
    return {p.name for p in hub.cache.rglob("snapshots/*/*")}


def test_names():
    assert hub_name("org/name") == hub_name("hf://org/name") == hub_name("hf:/org/name")
    assert str(hub_name("org/name@v1.0")) == str(hub_name("hf://org/name@v1.0")) == "org/name@v1.0"
    assert hub_name("org/name@refs/pr/3").revision == "refs/pr/3"
    found = hub_name("hf://org/name@refs/pr/3/vae/model.safetensors")
    assert (found.revision, found.file) == ("refs/pr/3", "vae/model.safetensors")
    for text in ("name", "./org/name", "/org/name", "org/name/x", "../name", "org/..", "a b/c",
                 "org/na--me", "org/name@../x", "hf://org/name/../x", "org/name@"):  # fmt: skip
        assert hub_name(text) is None, text


def test_a_model_is_looked_at_without_its_weights(hub, base, models):
    summary = inspect_checkpoint("org/base")
    local = inspect_checkpoint(models / "base")
    assert summary.path == f"org/base@{base}"
    assert summary.tensors == local.tensors
    assert summary.architecture == "LlamaForCausalLM"
    assert cached(hub) == {"config.json", "tokenizer.json"}


def test_a_long_header_is_read_in_two_parts(hub, base, models, monkeypatch):
    from mergewise.checkpoint._hub import _header

    monkeypatch.setattr(_header, "_FIRST", 100)
    assert inspect_checkpoint("org/base").tensors == inspect_checkpoint(models / "base").tensors
    assert 100 < hub.served["model.safetensors"] < 5000  # tensors are not read


def test_weights_come_when_they_are_read(hub, base, models):
    checkpoint = open_checkpoint("org/base")
    [away] = to_fetch([checkpoint])
    assert (away.file.name, away.path) == ("model.safetensors", checkpoint.files[0])
    told = []
    ref = checkpoint.tensors["model.norm.weight"]
    data = bytearray(ref.nbytes)
    with (
        downloads(lambda done, total: told.append((done, total))),
        FileReader(checkpoint.stamps) as reader,
    ):
        reader.read_into(ref, 0, memoryview(data))
    same = (models / "base/model.safetensors").read_bytes()[ref.start : ref.end]
    assert bytes(data) == same
    assert told[-1] == (away.file.size, away.file.size)
    assert not to_fetch([open_checkpoint("org/base")])
    assert not hub.tokens


def test_a_local_folder_wins(hub, base, models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    (tmp_path / "org/base").symlink_to(models / "base")
    assert open_checkpoint("org/base").origin is None
    assert not hub.requests
    assert open_checkpoint("hf://org/base").origin.commit == base


def test_revisions(hub, base, models):
    old = hub.add("org/base", models / "expert_a", ref="v1")
    for text, commit in [("org/base", base), ("org/base@v1", old), (f"org/base@{old}", old)]:
        assert open_checkpoint(text).origin.commit == commit
    state = fetched(open_checkpoint("org/base@v1"))
    assert load(state.folder)["lm_head.weight"].equal(load(models / "expert_a")["lm_head.weight"])


def test_a_path_into_the_cache_knows_where_it_is_from(hub, base):
    folder = fetched(open_checkpoint("org/base")).folder
    forget()
    hub.requests.clear()
    assert str(open_checkpoint(folder).origin) == f"org/base@{base[:12]}"
    assert origin_of(folder.parent.parent) is None
    assert not hub.requests


def test_sharded_models_and_single_files(hub, models, tmp_path):
    from safetensors.torch import save_file

    state = load(models / "base")
    names = sorted(state)
    shards = {
        "model-00001-of-00002.safetensors": names[:9],
        "model-00002-of-00002.safetensors": names[9:],
    }
    for shard, part in shards.items():
        save_file({n: state[n] for n in part}, tmp_path / shard)
    where = {n: shard for shard, part in shards.items() for n in part}
    files = {s: (tmp_path / s).read_bytes() for s in shards}
    files["model.safetensors.index.json"] = json.dumps({"weight_map": where}).encode()
    hub.add("org/sharded", files)
    whole = open_checkpoint("org/sharded")
    assert set(whole.tensors) == set(names)
    assert [f.file.name for f in to_fetch([whole])] == list(shards)
    one = open_checkpoint("hf://org/sharded/model-00001-of-00002.safetensors")
    assert set(one.tensors) == set(names[:9])
    with pytest.raises(CheckpointError, match="no such file"):
        open_checkpoint("hf://org/sharded/other.safetensors")
    del files["model-00002-of-00002.safetensors"]
    hub.add("org/half", files)
    with pytest.raises(CheckpointError, match=r"named in .* but missing"):
        open_checkpoint("org/half")


def test_a_model_with_nothing_but_weights(hub, models):
    hub.add("org/bare", {"model.safetensors": (models / "base/model.safetensors").read_bytes()})
    assert open_checkpoint("org/bare").config is None


def test_a_base_with_an_adapter(hub, base, models, tmp_path):
    folder = small_adapters.lora(
        tmp_path / "lora", load(models / "base"), ["model.layers.0.self_attn.q_proj"]
    )
    commit = hub.add("org/lora", folder, ref="v2")
    checkpoint = open_reference("org/base+org/lora@v2")
    assert checkpoint.adapter.name == commit
    assert {f.file.name for f in to_fetch([checkpoint])} == {
        "model.safetensors", "adapter_model.safetensors"}  # fmt: skip
    assert inspect_checkpoint("org/base+org/lora@v2").path == f"org/base@{base}+org/lora@{commit}"
    assert not to_fetch([fetched(checkpoint)])
    assert not to_fetch([open_reference(f"{models / 'base'}+org/lora@v2")])


def test_offline_uses_what_is_in_the_cache(hub, base, monkeypatch):
    from huggingface_hub import constants

    fetched(open_checkpoint("org/base"))
    forget()
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert open_checkpoint("org/base").origin.commit == base
    assert open_checkpoint(f"org/base@{base}").origin.commit == base
    for text in ("org/base@old", "org/other"):
        with pytest.raises(HubError, match=rf"{text}: .* HF_HUB_OFFLINE is set"):
            open_checkpoint(text)
    assert not hub.requests


def test_offline_names_what_is_missing(hub, base, monkeypatch):
    from huggingface_hub import constants

    open_checkpoint("org/base")
    forget()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        CheckpointError,
        match=r"no \.safetensors.*cache has of org/base, commit \w{12}.*HF_HUB_OFFLINE",
    ):
        open_checkpoint("org/base")


def test_the_cache_serves_while_the_hub_is_out_of_reach(hub, base, monkeypatch, caplog):
    from huggingface_hub import constants

    fetched(open_checkpoint("org/base"))
    forget()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert open_checkpoint("org/base").origin.commit == base
    assert "cannot be reached" in caplog.text
    with pytest.raises(HubError, match="cannot be reached"):
        open_checkpoint("org/other")


def test_refusals_say_what_to_do(hub, base, models, monkeypatch):
    hub.add("org/private", models / "base", private=True)
    hub.add("org/gated", models / "base", gated=True)
    said = {
        "org/none": "no such model, or not for you",
        "org/private": "log in if it is private",
        "org/gated": "gated on the Hub: accept its conditions",
        "org/base@nope": "this revision of it is not",
    }
    for text, expected in said.items():
        with pytest.raises(HubError, match=f"{text}: .*{expected}"):
            open_checkpoint(text)
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrong")
    with pytest.raises(HubError, match="does not accept the token") as refused:
        open_checkpoint("org/private")
    assert "wrongwrong" not in str(refused.value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert to_fetch([open_checkpoint("org/private")])


def test_the_token_goes_to_the_hub_alone(hub, models, monkeypatch):
    hub.add("org/private", models / "base", private=True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    fetched(open_checkpoint("org/private"))
    assert hub.tokens == {"127.0.0.1"}
    assert any(re.match(r"GET /cdn/", line) for line in hub.requests)


def test_a_full_disk_is_seen_first(hub, base, monkeypatch):
    import shutil

    checkpoint = open_checkpoint("org/base")
    hub.served.clear()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 9))
    with pytest.raises(OutputError, match="to be downloaded there and 9 B are free"):
        fetched(checkpoint)
    assert not hub.served


def test_without_the_library(hub, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    from mergewise.errors import MissingExtraError

    with pytest.raises(MissingExtraError, match=r"org/x: .*huggingface_hub.*mergewise\[hub\]"):
        open_checkpoint("org/x")


def test_links_into_the_cache_are_followed(tmp_path):
    from mergewise.checkpoint import stays_inside

    folder = tmp_path / "models--org--name/snapshots" / ("0" * 40) / "vae"
    blobs, shared = tmp_path / "models--org--name/blobs", tmp_path / "blobs/ab"
    for each in (folder, blobs, shared, tmp_path / "other"):
        each.mkdir(parents=True)
    for place, inside in [(blobs, True), (shared, True), (tmp_path / "other", False)]:
        (place / "x").write_text("")
        (folder / place.name).symlink_to(place / "x")
        assert stays_inside(folder / place.name, folder) is inside


def test_pipelines(hub, models, tmp_path):
    files = {"model_index.json": b'{"_class_name": "P", "unet": ["d", "U"], "tok": ["t", "T"]}'}
    files["unet/config.json"] = b"{}"
    weights = (models / "base/model.safetensors").read_bytes()
    files["unet/diffusion_pytorch_model.safetensors"] = weights
    files["tok/vocab.json"] = b"{}"
    hub.add("org/pipeline", files)
    checkpoint = open_checkpoint("org/pipeline")
    assert all(name.startswith("unet/") for name in checkpoint.tensors)
    assert [away.file.name for away in to_fetch([checkpoint])] == [
        "unet/diffusion_pytorch_model.safetensors"
    ]
    assert fetched(checkpoint).files[0].read_bytes() == weights
