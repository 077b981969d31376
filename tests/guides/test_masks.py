"""Guides that train masks: the files, the recipe that names them, what it merges to."""

import json

import pytest
import torch
import yaml
from _guided_models import nudge, save
from small_language import random_llama
from small_models import assert_same, contents, load
from transformers import BertConfig, BertForSequenceClassification

from mergewise.engine import merge
from mergewise.errors import DataError, GuideError
from mergewise.evidence import Data, load_evidence
from mergewise.guides import guide, write_recipe
from mergewise.recipe import load_recipe

torch.set_num_threads(1)

TEXTS = {
    "a": ["a rose is a rose", "by any other name", "would smell as sweet"],
    "b": ["1 + 1 = 2", "2 + 2 = 4 and 4 + 4 = 8"],
}
TEACH = {"lr": 1e6, "epochs": 4}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """``base``, ``a``, ``b`` with data beside them; not to be written to."""
    root = tmp_path_factory.mktemp("masks")
    for name, seed in (("base", None), ("a", 1), ("b", 2)):
        module = random_llama(0).module
        if seed:
            nudge(module, seed)
        save(module, root / name)
    for name, texts in TEXTS.items():
        (root / f"{name}.jsonl").write_text("".join(f"{json.dumps({'text': t})}\n" for t in texts))
    return root


def _recipe(root, experts="ab", **parts):
    return {
        "merge_method": "localize_and_stitch",
        "base_model": str(root / "base"),
        "models": [{"model": str(root / name)} for name in experts],
        **parts,
    }


def _each(root, experts="ab"):
    return {name: Data(root / f"{name}.jsonl", split="train") for name in experts}


def _write(root, out, name="localize_and_stitch", experts="ab", recipe=None, **settings):
    given = recipe or _recipe(root, experts)
    return write_recipe(
        given, name, out, each=_each(root, experts), settings=TEACH | settings, told=None
    )


def _masks(folder):
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        file = load_evidence(path)
        masks = {name: file.sums("mask", name)["mask"].bool() for name in file.tensors("mask")}
        found[path.name.split(".")[0]] = masks
    return found


class TestRecipe:
    def test_names_the_masks_and_nothing_else_is_needed(self, root, tmp_path):
        _write(root, tmp_path / "g.yml")
        document = yaml.safe_load((tmp_path / "g.yml").read_text())
        assert document["parameters"] == {"localize": "mask"}
        named = [tmp_path / model["evidence"] for model in document["models"]]
        assert sorted(named) == sorted((tmp_path / "g.evidence").glob("*.safetensors"))
        assert all("sha256" in line for line in _lines(tmp_path / "g.yml", "# Evidence of"))

    def test_its_result_is_the_stitched_experts(self, root, tmp_path):
        _write(root, tmp_path / "g.yml", tensors="*proj*, *norm*")
        merge(tmp_path / "g.yml", tmp_path / "out")
        masks = _masks(tmp_path / "g.evidence")
        base, *experts = (load(root / name) for name in ("base", "a", "b"))
        for name, got in load(tmp_path / "out").items():
            own = [masks[e].get(name, torch.tensor(False)) for e in "ab"]
            changes = [
                m * (expert[name] - base[name]) for m, expert in zip(own, experts, strict=True)
            ]
            owners = torch.clamp(own[0].float() + own[1].float(), min=1)
            wanted = base[name] + (changes[0] + changes[1]) / owners
            torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-7)

    def test_the_same_bytes_from_the_recipe_alone(self, root, tmp_path):
        guided = _write(root, tmp_path / "g.yml")
        merge(guided.recipe, tmp_path / "one")
        moved = tmp_path / "elsewhere"
        moved.mkdir()
        for file in ("g.yml", "g.evidence"):
            (tmp_path / file).rename(moved / file)
        merge(load_recipe(moved / "g.yml"), tmp_path / "two")
        assert_same(load(tmp_path / "one"), load(tmp_path / "two"))

    def test_the_same_masks_twice(self, root, tmp_path):
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            _write(root, tmp_path / name / "g.yml")
        one, two = (_masks(tmp_path / name / "g.evidence") for name in ("one", "two"))
        assert all(torch.equal(m, two[e][n]) for e, own in one.items() for n, m in own.items())

    def test_densities_of_the_recipe_are_taken_out(self, root, tmp_path):
        given = _recipe(root, parameters={"density": 0.3, "granularity": "tensor"})
        given["models"][0]["parameters"] = {"density": 0.1}
        _write(root, tmp_path / "g.yml", recipe=given)
        document = yaml.safe_load((tmp_path / "g.yml").read_text())
        assert document["parameters"] == {"localize": "mask"}
        assert "parameters" not in document["models"][0]


class TestTraining:
    def test_all_changes_give_the_expert_and_the_base_elsewhere(self, root, tmp_path):
        _write(root, tmp_path / "g.yml", "grafting", "a", density=1.0, epochs=0)
        merge(tmp_path / "g.yml", tmp_path / "out")
        base, expert, got = (load(p) for p in (root / "base", root / "a", tmp_path / "out"))
        for name, tensor in got.items():
            wanted = (expert if ".layers." in name else base)[name]
            torch.testing.assert_close(tensor, wanted, rtol=1e-6, atol=1e-7)

    def test_notes_tell_sizes_losses_and_overlap(self, root, tmp_path):
        notes = "\n".join(_write(root, tmp_path / "g.yml").notes)
        masks = _masks(tmp_path / "g.evidence")
        both = sum(int((masks["a"][n] & masks["b"][n]).sum()) for n in masks["a"])
        either = sum(int((masks["a"][n] | masks["b"][n]).sum()) for n in masks["a"])
        assert f"have {both / either:.2%} of their elements in common" in notes
        size = sum(int(m.sum()) for m in masks["a"].values())
        whole = sum(m.numel() for m in masks["a"].values())
        assert f"its mask holds {size / whole:.4%} of the changes" in notes
        assert "3 tensors have no mask and keep the base's values" in notes

    def test_maps_show_each_layers_share(self, root, tmp_path):
        guided = _write(root, tmp_path / "g.yml")
        masks = _masks(tmp_path / "g.evidence")
        [share] = {one.values["model.layers.1"]["mlp.up_proj"] for one in guided.maps[:1]}
        assert share == pytest.approx(
            masks["a"]["model.layers.1.mlp.up_proj.weight"].float().mean()
        )

    def test_a_mask_that_is_there_is_taken(self, root, tmp_path):
        _write(root, tmp_path / "g.yml")
        before = contents(tmp_path / "g.evidence")
        told = []
        for settings in (TEACH, TEACH | {"epochs": 3}):
            write_recipe(
                _recipe(root), "localize_and_stitch", tmp_path / "g.yml", each=_each(root),
                settings=settings, told=told.append, overwrite=True,
            )  # fmt: skip
        assert sum("taken from" in line for line in told) == 2
        assert sum("3 epochs" in line for line in told) == 2
        after = contents(tmp_path / "g.evidence")
        assert len(after) == 4
        assert before.items() <= after.items()

    def test_an_empty_mask_is_warned_of(self, root, tmp_path):
        guided = _write(root, tmp_path / "g.yml", density=0.0, epochs=0)
        assert [w for w in guided.warnings if "no element is in its mask" in w]

    def test_interrupted_nothing_is_left(self, root, tmp_path, monkeypatch):
        from mergewise.evidence import _mask_training

        def stop(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(_mask_training, "batch_loss", stop)
        with pytest.raises(KeyboardInterrupt):
            _write(root, tmp_path / "g.yml")
        assert contents(tmp_path) == {}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """``base`` and ``a``, classifiers of texts with heads of their own."""
    root = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        vocab_size=259, max_position_embeddings=64, num_labels=2, initializer_range=0.2,
    )  # fmt: skip
    module = BertForSequenceClassification(config)
    save(module, root / "base")
    nudge(module, 1)
    save(module, root / "a")
    return root


class TestClassifiers:
    def test_labels_of_the_records_are_learned(self, bert, tmp_path):
        records = [{"text": t, "label": i % 2} for i, t in enumerate(["abc", "xyz", "aab", "zzy"])]
        (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in records))
        guided = write_recipe(
            _recipe(bert, "a"), "grafting", tmp_path / "g.yml", data=Data(tmp_path / "a.jsonl"),
            settings={"lr": 1e8},
        )  # fmt: skip
        file = load_evidence(next((tmp_path / "g.evidence").iterdir()))
        assert file.record.parts[0]["loss"] < 0.8 * file.record.parts[0]["first_loss"]
        merge(guided.recipe, tmp_path / "out")
        head = "classifier.weight"
        assert torch.equal(load(tmp_path / "out")[head], load(bert / "base")[head])

    def test_records_without_a_label(self, bert, tmp_path):
        (tmp_path / "a.jsonl").write_text('{"text": "abc"}\n')
        with pytest.raises(DataError, match="no field `label` in its first record"):
            write_recipe(
                _recipe(bert, "a"), "grafting", tmp_path / "g.yml", data=Data(tmp_path / "a.jsonl")
            )


class TestRefusals:
    def test_another_method(self, root, tmp_path):
        with pytest.raises(
            GuideError, match="trains masks for localize_and_stitch, not for karcher"
        ):
            _write(root, tmp_path / "g.yml", recipe=_recipe(root, merge_method="karcher"))

    def test_grafting_takes_one_expert(self, root, tmp_path):
        with pytest.raises(GuideError, match="grafts one expert, and there are 2"):
            _write(root, tmp_path / "g.yml", "grafting")

    def test_no_data(self, root):
        with pytest.raises(GuideError, match="no data for"):
            guide(_recipe(root), "localize_and_stitch", folder=root / "never")

    def test_data_without_records(self, root, tmp_path):
        (tmp_path / "empty.jsonl").write_text("")
        each = _each(root) | {"b": Data(tmp_path / "empty.jsonl")}
        with pytest.raises(DataError, match="empty"):
            write_recipe(_recipe(root), "localize_and_stitch", tmp_path / "g.yml", each=each)
        assert not (tmp_path / "g.evidence").exists()

    def test_tensors_that_are_not_there(self, root, tmp_path):
        with pytest.raises(GuideError, match=r"`tensors: \*\.attn\*` matches none"):
            _write(root, tmp_path / "g.yml", tensors="*.attn*")

    def test_offloaded_models(self, root, tmp_path):
        with pytest.raises(GuideError, match="leave out `offload`"):
            write_recipe(
                _recipe(root), "localize_and_stitch", tmp_path / "g.yml", each=_each(root),
                options={"offload": True},
            )  # fmt: skip


def _lines(path, start):
    found = [line for line in path.read_text().splitlines() if line.startswith(start)]
    assert found
    return found
