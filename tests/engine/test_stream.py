"""Merges whose inputs are on the Hub: downloaded first, or fetched as they are needed."""

import json
import re
import shutil

import pytest
import small_adapters
import torch
from safetensors.torch import save_file
from small_models import contents, family, load

from mergewise.engine import merge
from mergewise.engine._stream import StreamedReader
from mergewise.errors import CheckpointError, InterruptedMergeError, OutputError, RecipeError
from mergewise.plan import build_plan

LAYERS = 6


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Three models of the same tensors, in 3, 3 and 4 shards by layers."""
    root = family(tmp_path_factory.mktemp("models"), layers=LAYERS, hidden=32, inner=48)
    for name, shards in {"base": 3, "expert_a": 3, "expert_b": 4}.items():
        shard(root / name, shards)
    return root


def shard(folder, count):
    state = load(folder)

    def place(name):
        layer = re.search(r"layers\.(\d+)\.", name)
        at = 0 if "embed" in name else LAYERS - 1 if layer is None else int(layer[1])
        return f"model-{at * count // LAYERS + 1:05}-of-{count:05}.safetensors"

    where = {name: place(name) for name in state}
    for file in set(where.values()):
        save_file({n: state[n] for n in state if where[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (folder / "model.safetensors").unlink()


@pytest.fixture
def three(hub, models):
    for name in ("base", "expert_a", "expert_b"):
        hub.add(f"org/{name}", models / name)
    hub.sizes = {(f.parent.name, f.name): f.stat().st_size for f in models.glob("*/*.safetensors")}
    return {
        "merge_method": "ties",
        "base_model": "org/base",
        "models": [
            {"model": "org/expert_a@main", "parameters": {"density": 0.5, "weight": 0.7}},
            {"model": "hf://org/expert_b", "parameters": {"density": 0.4, "weight": 0.6}},
        ],
    }


def local(recipe, models):
    text = re.sub(r"(hf://)?org/(\w+)(@main)?", rf"{models}/\2", json.dumps(recipe))
    return json.loads(text)


def weights(folder):
    return {n: d for n, d in contents(folder).items() if n.endswith(".safetensors")}


def in_cache(hub):
    return {p.name for p in hub.cache.rglob("*.safetensors")}


def test_the_same_bytes_as_from_folders(three, hub, models, tmp_path):
    merge(local(three, models), tmp_path / "local")
    digest = build_plan(three).digest()
    merge(three, tmp_path / "hub")
    assert weights(tmp_path / "hub") == weights(tmp_path / "local")
    assert len(in_cache(hub)) == 7  # two of the names are in two of the models
    assert build_plan(three).digest() == digest


def test_card_and_provenance_name_what_the_hub_knows(three, hub, models, tmp_path):
    (models / "base").joinpath("README.md").write_text("---\nlicense: mit\n---\n")
    hub.add("org/base", models / "base")
    result = merge(three, tmp_path / "out").out
    card = (result / "README.md").read_text()
    names = "base_model:\n- org/base\n- org/expert_a\n- org/expert_b\nbase_model_relation: merge\n"
    assert names in card
    assert f"| org/base | base | mit | commit {hub.models['org/base'].refs['main'][:12]} |" in card
    record = json.loads((result / "mergewise_provenance.json").read_text())
    assert [model["hub"] for model in record["inputs"]] == [
        {"repository": name, "commit": hub.models[name].refs["main"]}
        for name in ("org/base", "org/expert_a", "org/expert_b")
    ]


@pytest.mark.parametrize("workers", [1, 3])
def test_streamed_inputs_come_and_go(three, hub, models, tmp_path, workers):
    merge(local(three, models), tmp_path / "local")
    hub.served.clear()
    result = merge(three, tmp_path / "out", stream_inputs=True, workers=workers)
    assert weights(tmp_path / "out") == weights(tmp_path / "local")
    assert not in_cache(hub)
    assert not (tmp_path / "out/.mergewise").exists()
    total = sum(hub.sizes.values())
    fetched, most = result.streamed
    assert fetched == total  # each shard once
    # of three and four shards a model, one or two are here at a time
    assert most <= 0.65 * total
    record = json.loads((tmp_path / "out/mergewise_provenance.json").read_text())
    files = [file for model in record["inputs"] for file in model["files"]]
    assert all(re.fullmatch("[0-9a-f]{64}", file["sha256"]) for file in files)


def test_models_cut_alike_need_one_shard_each(three, hub, tmp_path):
    three["models"].pop()
    result = merge(three, tmp_path / "out", stream_inputs=True, workers=1)
    largest = max(size for (model, _), size in hub.sizes.items() if model == "base")
    assert result.streamed[1] <= 2 * largest


def test_small_output_files_change_nothing(three, hub, models, tmp_path):
    merge(local(three, models), tmp_path / "local", shard_size="20kB")
    result = merge(three, tmp_path / "out", stream_inputs=True, shard_size="20kB", workers=2)
    assert len(result.files) > 3
    assert weights(tmp_path / "out") == weights(tmp_path / "local")


def test_whole_model_thresholds_and_stages(three, hub, models, tmp_path):
    three["parameters"] = {"granularity": "model"}
    merge(local(three, models), tmp_path / "local")
    merge(three, tmp_path / "out", stream_inputs=True)
    assert weights(tmp_path / "out") == weights(tmp_path / "local")


def test_what_is_in_the_cache_is_used_and_stays(three, hub, tmp_path):
    from mergewise.checkpoint import fetched, open_checkpoint

    fetched(open_checkpoint("org/base"))
    before = in_cache(hub)
    result = merge(three, tmp_path / "out", stream_inputs=True)
    assert in_cache(hub) == before
    assert result.streamed[0] == sum(s for (m, _), s in hub.sizes.items() if m != "base")


def test_interrupted_and_continued(three, hub, models, tmp_path):
    merge(local(three, models), tmp_path / "local", shard_size="20kB")

    def stop(done, total):
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(InterruptedMergeError, match="finished shard"):
        merge(
            three, tmp_path / "out", stream_inputs=True, workers=1, shard_size="20kB", progress=stop
        )
    assert not (tmp_path / "out/.mergewise/inputs").exists()
    hub.served.clear()
    result = merge(three, tmp_path / "out", stream_inputs=True, workers=1, shard_size="20kB")
    assert result.resumed
    assert result.streamed[0] < sum(hub.sizes.values())  # what is done needs no inputs
    assert weights(tmp_path / "out") == weights(tmp_path / "local")


def test_continued_without_streaming(three, hub, models, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(InterruptedMergeError):
        merge(three, tmp_path / "out", stream_inputs=True, workers=1, progress=stop)
    merge(three, tmp_path / "out")
    merge(local(three, models), tmp_path / "local")
    assert weights(tmp_path / "out") == weights(tmp_path / "local")


def test_a_download_ends_when_the_merge_is_given_up(three, hub, tmp_path, monkeypatch):
    from mergewise.checkpoint import AwayFile

    plan = build_plan(three)
    stamps = {p: s for c in plan.checkpoints.values() for p, s in c.stamps.items()}
    reader = StreamedReader(stamps, tmp_path / "inputs", {}, lambda: True)
    ref = plan.checkpoints["org/base"].tensors["lm_head.weight"]
    with reader, pytest.raises(InterruptedMergeError):
        reader.read_into(ref, 0, memoryview(bytearray(8)))
    assert isinstance(stamps[ref.file].file, AwayFile)
    assert not (tmp_path / "inputs").exists()


def test_a_disk_that_fills_up_is_made_room_on(three, hub, models, tmp_path, monkeypatch):
    merge(local(three, models), tmp_path / "local")
    room = 2.2 * max(hub.sizes.values())
    real = shutil.disk_usage

    def usage(path):
        if not str(path).endswith("inputs"):
            return real(path)
        used = sum(p.stat().st_size for p in path.rglob("*") if p.is_file() and not p.is_symlink())
        return shutil._ntuple_diskusage(room, used, room - used)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    three["models"].pop()
    wide = merge(three, tmp_path / "out", stream_inputs=True, workers=1)
    assert wide.streamed[1] <= room
    room = 0.5 * max(hub.sizes.values())
    with pytest.raises(OutputError, match="make room, and run the same command again"):
        merge(three, tmp_path / "other", stream_inputs=True, workers=1)
    assert not (tmp_path / "other").exists()


def test_adapters_are_streamed_too(three, hub, models, tmp_path):
    base = {}
    for file in (models / "base").glob("*.safetensors"):
        from safetensors.torch import load_file

        base |= load_file(file)
    lora = small_adapters.lora(tmp_path / "lora", base, ["model.layers.3.mlp.up_proj"])
    hub.add("org/lora", lora)
    recipe = {
        "merge_method": "linear",
        "models": [
            {"model": "org/base+org/lora", "parameters": {"weight": 0.5}},
            {"model": "org/expert_a", "parameters": {"weight": 0.5}},
        ],
    }
    merge(recipe, tmp_path / "out", stream_inputs=True)
    same = local(recipe, models)
    same["models"][0]["model"] = f"{models / 'base'}+{lora}"
    merge(same, tmp_path / "local")
    assert weights(tmp_path / "out") == weights(tmp_path / "local")
    record = json.loads((tmp_path / "out/mergewise_provenance.json").read_text())
    assert record["inputs"][0]["adapter_hub"]["repository"] == "org/lora"


def test_a_file_that_changed_after_the_plan(three, hub, models, tmp_path):
    plan = build_plan(three)
    repo = hub.models["org/base"]
    files = repo.commits[repo.refs["main"]]
    name = "model-00001-of-00003.safetensors"
    state = {"x": torch.zeros(len(files[name]) // 4 - 30)}
    save_file(state, tmp_path / "x")
    data = (tmp_path / "x").read_bytes()
    files[name] = data + b"\0" * (len(files[name]) - len(data))
    with pytest.raises(CheckpointError):
        merge(plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_errors_of_the_recipe_come_before_any_download(three, hub, tmp_path):
    three["models"][0]["model"] = "org/none"
    three["models"][1]["model"] = "org/base@nope"
    with pytest.raises(RecipeError) as refused:
        merge(three, tmp_path / "out")
    assert len(refused.value.diagnostics) == 2
    assert not in_cache(hub)
