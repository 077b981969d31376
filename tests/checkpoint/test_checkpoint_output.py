"""Config, tokenizer files, card and provenance of an output folder."""

import json
import shutil
import subprocess
import sys

import pytest
import yaml

from mergewise.checkpoint import (
    CardInput,
    copy_tokenizer,
    edited_config,
    fingerprint,
    inspect_checkpoint,
    merged_licence,
    model_card,
    provenance,
    sha256_file,
    stated_licence,
    write_config,
)
from mergewise.errors import CheckpointError, OutputError


def test_config_is_edited_minimally(llama, tmp_path):
    donor = json.loads((llama / "config.json").read_text())
    new = edited_config(donor, dtype="float16", kept_layers=[0, 2], tie_word_embeddings=True)
    assert list(new) == list(donor)
    changed = {key for key in donor if donor[key] != new[key]}
    assert changed == {"dtype", "num_hidden_layers", "tie_word_embeddings"} | (
        {"layer_types"} & set(donor)
    )
    write_config(tmp_path, new)
    assert json.loads((tmp_path / "config.json").read_text()) == new


@pytest.mark.parametrize(
    ("donor", "key"),
    [
        ({"torch_dtype": "float32"}, "torch_dtype"),
        ({"dtype": "float32"}, "dtype"),
        ({"transformers_version": "4.40.0"}, "torch_dtype"),
        ({"transformers_version": "5.1.0"}, "dtype"),
    ],
)
def test_dtype_key_of_the_donor(donor, key):
    new = edited_config(donor, dtype="bfloat16")
    assert new[key] == "bfloat16" and len({"dtype", "torch_dtype"} & set(new)) == 1


def test_nested_flags_follow_the_text_config():
    donor = {"text_config": {"tie_word_embeddings": True, "vocab_size": 5, "dtype": "float32"}}
    new = edited_config(donor, dtype="float16", tie_word_embeddings=False, vocab_size=7)
    nested = {"tie_word_embeddings": False, "vocab_size": 7, "dtype": "float16"}
    assert new == {"text_config": nested}


def test_quantisation_and_local_paths_are_dropped():
    assert edited_config({"quantization_config": {}, "_name_or_path": "/home/me/x"}) == {}


def test_tokenizer_files(tmp_path):
    donor, out = tmp_path / "donor", tmp_path / "out"
    (donor / "additional_chat_templates").mkdir(parents=True)
    out.mkdir()
    wanted = ["tokenizer.json", "tokenizer.model", "merges.txt", "vocab.json", "LICENSE.txt"]
    wanted += ["generation_config.json", "preprocessor_config.json", "chat_template.jinja"]
    for name in [*wanted, "config.json", "README.md", "run.py", "optimizer.bin"]:
        (donor / name).write_text(name)
    (donor / "additional_chat_templates/tool.jinja").write_text("x")
    copied = copy_tokenizer(donor, out)
    assert set(copied.names) == {*wanted, "additional_chat_templates/tool.jinja"}
    assert (out / "merges.txt").read_text() == "merges.txt"
    assert not copied.warnings


def test_links_that_leave_the_folder_are_not_published(tmp_path):
    donor, out = tmp_path / "donor", tmp_path / "out"
    donor.mkdir()
    out.mkdir()
    (tmp_path / "secret").write_text("secret")
    (donor / "tokenizer.json").symlink_to("../secret")
    (donor / "LICENSE").symlink_to("/etc/passwd")
    (donor / "vocab.txt").write_text("here")
    (donor / "vocab.json").symlink_to("vocab.txt")
    copied = copy_tokenizer(donor, out)
    assert copied.names == ("vocab.json", "vocab.txt") and len(copied.warnings) == 2
    assert not (out / "vocab.json").is_symlink() and not (out / "tokenizer.json").exists()


def test_hub_cache_links_are_copied(tmp_path):
    snapshot, blobs, out = tmp_path / "m/snapshots/abc", tmp_path / "m/blobs", tmp_path / "out"
    for folder in (snapshot, blobs, out):
        folder.mkdir(parents=True)
    (blobs / "1").write_text("{}")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/1")
    assert copy_tokenizer(snapshot, out).names == ("tokenizer.json",)


def test_nothing_is_written_through_a_link_in_the_output(tmp_path):
    donor, out, elsewhere = tmp_path / "donor", tmp_path / "out", tmp_path / "elsewhere"
    (donor / "additional_chat_templates").mkdir(parents=True)
    (donor / "additional_chat_templates/tool.jinja").write_text("x")
    out.mkdir()
    elsewhere.mkdir()
    (out / "additional_chat_templates").symlink_to(elsewhere)
    with pytest.raises(OutputError, match="a link, where a folder was expected"):
        copy_tokenizer(donor, out)
    assert not list(elsewhere.iterdir())


def test_unlistable_donor(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be listed"):
        copy_tokenizer(tmp_path / "absent", tmp_path)


def card(**changes):
    settings = {
        "title": "merged",
        "method": "linear",
        "inputs": [
            CardInput("org/base", "base", "mit"),
            CardInput("/home/me/models/maths", licence="mit", fingerprint="abc"),
        ],
        "recipe": "merge_method: linear\n",
        "command": "mergewise merge recipe.yml out",
        "seed": 42,
        "versions": {"mergewise": "0.1.0", "torch": "2.13"},
        "architecture": "LlamaForCausalLM",
    }
    text = model_card(**{**settings, **changes})
    return yaml.safe_load(text.split("---\n")[1]), text


def test_card():
    front, text = card()
    assert front == {
        "base_model": ["org/base", "maths"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "mit",
        "tags": ["merge", "mergekit", "mergewise"],
    }
    assert "```yaml\nmerge_method: linear\n```" in text
    assert "| org/base | base | mit | - |\n| maths | expert | mit | abc |\n" in text
    assert "/home/me" not in text and "Seed 42, mergewise 0.1.0, torch 2.13." in text
    assert "mergewise merge recipe.yml out" in text


def test_card_links_the_paper():
    _, text = card(source="TIES-Merging (Yadav et al. 2023, arXiv 2306.01708)")
    assert "2023, [arXiv 2306.01708](https://arxiv.org/abs/2306.01708))" in text


def test_card_of_a_native_recipe_that_is_no_language_model():
    front, _ = card(dialect=False, architecture="BertModel")
    assert front["tags"] == ["merge", "mergewise"] and "pipeline_tag" not in front


def test_card_with_different_licences():
    front, text = card(inputs=[CardInput("a/b", licence="mit"), CardInput("c/d")])
    assert front["license"] == "other" and "a/b: mit, c/d: not stated" in text


def test_card_of_two_models_of_one_name():
    inputs = [CardInput("/a/model", licence="gpl-3.0"), CardInput("/b/model", licence="mit")]
    front, text = card(inputs=inputs)
    assert front["license"] == "other" and "model: gpl-3.0, model: mit" in text
    assert front["base_model"] == ["model"]


def test_card_cannot_be_broken_out_of():
    recipe = "# ```\n# {{ 7 * 7 }} {% raw %} <b>&"
    front, text = card(recipe=recipe, title="x\n---\nlicense: evil", inputs=[CardInput("a|b\n# h")])
    assert f"````yaml\n{recipe}\n````" in text
    assert front["license"] == "other" and r"| a\|b # h |" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("---\nlicense: MIT\n---\n# x", "mit"),
        ("---\r\nlicense: apache-2.0\r\n---\r\n", "apache-2.0"),
        ("---\nlicense: other\nlicense_name: llama3\n---\n", "llama3"),
        ("---\nlicense: [mit]\n---\n", None),
        ("---\nlicense: !!python/object/apply:os.system [x]\n---\n", None),
        ("---\na: &a [x]\nlicense: mit\n---\n", None),
        ("---\n" + "[" * 5000 + "\n---\n", None),
        ("---\n- a\n---\n", None),
        ("---\nlicense: mit\n", None),
        ("# no front matter", None),
        ("", None),
    ],
)
def test_stated_licence(tmp_path, text, expected):
    (tmp_path / "README.md").write_text(text, newline="")
    assert stated_licence(tmp_path) == expected


def test_no_readme_no_licence(tmp_path):
    assert stated_licence(tmp_path) is None


def test_merged_licence():
    assert merged_licence([("a", "mit"), ("b", "mit")]) == ("mit", None)
    assert merged_licence([("a", None), ("b", None)])[0] == "other"
    assert "b: gpl-3.0" in merged_licence([("a", "mit"), ("b", "gpl-3.0")])[1]


def test_fingerprint_notices_change(tmp_path):
    path, marks = tmp_path / "x", set()
    data = bytearray(5_000_000)
    for position in (None, 0, 2_500_000, 4_999_999):
        if position is not None:
            data[position] = 1
        path.write_bytes(data)
        marks.add((fingerprint(path), sha256_file(path)))
    path.write_bytes(data[:-1])
    marks.add((fingerprint(path), sha256_file(path)))
    # the byte in the middle may fall between two pages; the full hash always sees it
    assert len({full for _, full in marks}) == 5 and len({quick for quick, _ in marks}) >= 4


def test_fingerprint_is_quick_on_a_large_sparse_file(tmp_path):
    with (tmp_path / "x").open("wb") as file:
        file.truncate(10**11)
    assert fingerprint(tmp_path / "x").startswith("fp1:")


def test_small_files_have_fingerprints(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    (tmp_path / "y").write_bytes(b"abd")
    assert fingerprint(tmp_path / "x") != fingerprint(tmp_path / "y")
    assert sha256_file(tmp_path / "x").startswith("ba7816bf")


def test_provenance_is_json_and_repeatable(llama):
    def make():
        files = [llama / "model.safetensors"]
        return provenance(
            recipe="a: 1", seeds={"stage 1": 3}, inputs={"m": files}, outputs={"o": "c"}
        )

    found = make()
    assert json.loads(json.dumps(found)) == found == make()
    assert found["inputs"][0]["files"][0]["name"] == "model.safetensors"
    assert str(llama) not in json.dumps(found)
    assert set(found["versions"]) == {"mergewise", "torch", "python", "platform"}


def test_inspect(sharded, llama_model):
    summary = inspect_checkpoint(sharded)
    assert summary.parameters == llama_model.num_parameters()
    assert summary.dtypes == {"BF16": summary.parameters}
    (layers,) = summary.layers
    assert (layers.prefix, layers.count, layers.complete) == ("model.layers.", 3, True)
    assert json.loads(json.dumps(summary.to_dict()))["architecture"] == "LlamaForCausalLM"


def test_inspect_and_card_import_no_torch(llama, tmp_path):
    shutil.copytree(llama, tmp_path / "m")
    code = (
        "import sys, mergewise.checkpoint as c\n"
        "heavy = {'torch', 'numpy', 'transformers', 'safetensors'}\n"
        "c.inspect_checkpoint(sys.argv[1])\n"
        "c.provenance(recipe='', seeds={}, inputs={}, outputs={})\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert not {'jinja2', 'yaml'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "m")], check=True)
