"""Evidence files: what they hold, files of nobody, files that do not add up."""

import contextlib
import io
import json
import struct

import pytest
import torch
from _tiny import everything, live, llama
from rich.console import Console
from small_language import byte_tokenizer

from mergewise.errors import CheckpointError, EvidenceError, MergewiseError, NonFiniteError
from mergewise.evidence import LiveModel, collect, load_evidence, merge_evidence
from mergewise.report.evidence import evidence_dict, evidence_page

TEXTS = ["a rose is a rose", "by any other name", "would smell as sweet", "and so on"]


def made(tmp_path, name="x.evd", statistics="input_moments", seed=0, data=None, **more):
    model = LiveModel("tiny", llama(seed), byte_tokenizer())
    return collect(statistics, model, TEXTS if data is None else data, tmp_path / name, **more)


def test_it_is_a_safetensors_file(tmp_path):
    from safetensors import safe_open

    found = made(tmp_path)
    with safe_open(found.path, "pt") as file:
        key = "model.layers.0.mlp.up_proj.weight::input_moments.sum"
        sums = found.sums("input_moments", "model.layers.0.mlp.up_proj.weight")
        assert torch.equal(file.get_tensor(key), sums["sum"])
        assert file.metadata()["format"] == "mergewise-evidence"


def test_asking_for_what_is_not_there(tmp_path):
    found = made(tmp_path)
    with pytest.raises(EvidenceError, match="it has input_moments"):
        found.tensors("input_gram")
    with pytest.raises(EvidenceError, match="does not describe"):
        found.sums("input_moments", "model.embed_tokens.weight")


def test_a_statistic_of_a_plugin_that_is_not_installed(tmp_path):
    found = made(tmp_path)
    renamed = change(found.path, tmp_path / "y.evd", lambda h: json.loads(
        json.dumps(h).replace("input_moments", "plug_inmoments")))  # fmt: skip
    other = load_evidence(renamed)
    tensor = other.tensors("plug_inmoments")[0]
    assert other.sums("plug_inmoments", tensor)["sum"].dtype == torch.float64
    with pytest.raises(EvidenceError, match="unknown statistic"):
        other.values("plug_inmoments", tensor)


def change(source, target, edit):
    """Copy a safetensors file with its header edited, all offsets kept."""
    data = source.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.dumps(edit(json.loads(data[8 : 8 + length]))).encode()
    target.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])
    return target


def record(edit):
    """An edit of the JSON in the metadata."""

    def apply(header):
        value = json.loads(header["__metadata__"]["evidence"])
        header["__metadata__"]["evidence"] = json.dumps(edit(value) or value)
        return header

    return apply


def metadata(**values):
    def apply(header):
        header["__metadata__"].update(values)
        return header

    return apply


def key(edit):
    def apply(header):
        return {(n if n == "__metadata__" else edit(n)): v for n, v in header.items()}

    return apply


def tensor_count(value):
    def edit(v):
        v["statistics"]["input_moments"]["counts"]["model.norm.weight"] = value

    return record(edit)


@pytest.mark.parametrize(("edit", "words"), [
    (metadata(format="pt"), "not an evidence file"),
    (metadata(version="99"), "evidence format '99'"),
    (metadata(evidence="{"), "not JSON"),
    (metadata(evidence="[" * 100_000), "not JSON"),
    (metadata(evidence="[]"), "expected an object"),
    (metadata(evidence="{}"), "list expected"),
    (record(lambda v: v.update(parts=[1])), "parts must hold dict"),
    (record(lambda v: v.update(notes={})), "notes: list expected"),
    (record(lambda v: v.update(versions={"torch": 2})), "versions must be texts"),
    (record(lambda v: v.update(statistics={"input_moments": 3})), "must be an object"),
    (record(lambda v: v.update(statistics={"a/b": {}})), "no name of a statistic"),
    (record(lambda v: v.update(statistics={})), "names no statistic"),
    (record(lambda v: v["statistics"]["input_moments"].update(counts=[])), "counts"),
    (record(lambda v: v["statistics"]["input_moments"].update(other=1)), "other"),
    (tensor_count({"tokens": -1}), "whole numbers"),
    (tensor_count({"tokens": 1.5}), "whole numbers"),
    (tensor_count({"tokens": True}), "whole numbers"),
    (tensor_count({"tokens": 10**30}), "whole numbers"),
    (tensor_count([3]), "whole numbers"),
    (key(lambda n: n.replace("::", "..")), "names no statistic"),
    (key(lambda n: n.replace(".sum", "")), "names no statistic"),
])  # fmt: skip
def test_broken_metadata_is_refused(edit, words, tmp_path):
    path = change(made(tmp_path).path, tmp_path / "bad.evd", edit)
    with pytest.raises(EvidenceError, match=words):
        load_evidence(path)


def test_truncated_and_absent_files(tmp_path):
    path = made(tmp_path).path
    data = path.read_bytes()
    for size in (0, 5, 100, len(data) // 2, len(data) - 1):
        (tmp_path / "cut.evd").write_bytes(data[:size])
        with pytest.raises(CheckpointError):
            load_evidence(tmp_path / "cut.evd")
    with pytest.raises(CheckpointError, match="no such file"):
        load_evidence(tmp_path / "absent.evd")


def test_sums_that_are_not_numbers_are_refused(tmp_path):
    found = made(tmp_path)
    ref = found.entries["input_moments", "model.norm.weight"]["sum"]
    data = bytearray(found.path.read_bytes())
    data[ref.start : ref.start + 8] = struct.pack("<d", float("nan"))
    found.path.write_bytes(data)
    with pytest.raises(MergewiseError, match="NaN"):
        load_evidence(found.path).sums("input_moments", "model.norm.weight")


def test_a_file_that_changes_after_it_was_opened(tmp_path):
    found = made(tmp_path)
    made(tmp_path, data=["other texts", "entirely"], overwrite=True)
    with pytest.raises(CheckpointError, match="changed"):
        found.sums("input_moments", "model.norm.weight")


def test_sums_too_large_for_numbers(tmp_path):
    module = llama()
    with torch.no_grad():
        # finite activations whose squares are not
        module.model.layers[0].mlp.up_proj.weight.mul_(1e25)
    model = LiveModel("huge", module, byte_tokenizer())
    with pytest.raises(NonFiniteError):
        collect("input_gram", model, TEXTS, tmp_path / "x.evd")
    assert not list(tmp_path.iterdir())


def test_files_of_different_models_do_not_add_up(tmp_path):
    paths = [made(tmp_path, f"{i}.evd", seed=i, share=(i, 2)).path for i in range(2)]
    with pytest.raises(EvidenceError, match="differ in fingerprint"):
        merge_evidence(paths, tmp_path / "out.evd")
    assert not (tmp_path / "out.evd").exists()


def test_other_options_or_statistics_do_not_add_up(tmp_path):
    one = made(tmp_path, "a.evd", "input_gram", share=(0, 2))
    options = {"input_gram": {"max_channels": 16}}
    two = made(tmp_path, "b.evd", "input_gram", share=(1, 2), options=options)
    with pytest.raises(EvidenceError, match=r"input_gram\.max_channels is None and 16"):
        merge_evidence([one.path, two.path], tmp_path / "out.evd")
    three = made(tmp_path, "c.evd", "input_moments", share=(1, 2))
    with pytest.raises(EvidenceError, match="statistics input_gram and input_moments"):
        merge_evidence([one.path, three.path], tmp_path / "out.evd")


@pytest.mark.parametrize(("one", "two", "overlap"), [
    ({"share": (0, 2)}, {"share": (1, 2)}, False),
    ({"share": (0, 4)}, {"share": (1, 2)}, False),
    ({"share": (1, 4)}, {"share": (3, 4)}, False),
    ({"rows": (0, 2)}, {"rows": (2, 4)}, False),
    ({"rows": (0, 2)}, {"rows": (2, None)}, False),
    ({"share": (0, 2)}, {"share": (0, 2)}, True),
    ({"share": (1, 4)}, {"share": (1, 2)}, True),
    ({"share": (0, 2)}, {"share": (1, 3)}, True),
    ({}, {"share": (1, 2)}, True),
    ({"rows": (0, 3)}, {"rows": (2, 4)}, True),
    ({"rows": (0, 3)}, {"limit": 1}, True),
])  # fmt: skip
def test_data_is_not_counted_twice(one, two, overlap, tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    paths = [
        made(tmp_path, f"{i}.evd", data=file, **more).path for i, more in enumerate((one, two))
    ]
    if overlap:
        with pytest.raises(EvidenceError, match="the same data"):
            merge_evidence(paths, tmp_path / "out.evd")
    else:
        total = merge_evidence(paths, tmp_path / "out.evd").record.parts
        assert len(total) == 2


def test_data_without_a_file_is_told_apart_by_its_content(tmp_path):
    one, two = (made(tmp_path, f"{i}.evd", data=TEXTS[i : i + 1]).path for i in range(2))
    same = made(tmp_path, "same.evd", data=list(TEXTS[:1])).path
    assert merge_evidence([one, two], tmp_path / "out.evd").record.parts[1]["records"] == 1
    with pytest.raises(EvidenceError, match="the same data"):
        merge_evidence([one, same], tmp_path / "bad.evd")
    # nor in a sum of sums
    with pytest.raises(EvidenceError, match="the same data"):
        merge_evidence([tmp_path / "out.evd", same], tmp_path / "bad.evd")


@pytest.mark.parametrize("part", [
    {"share": ["a", "b"]}, {"share": [0, "q"]}, {"share": [1.5, None]}, {"rows": [0, "x"]},
    {"rows": ["x", None]}, {"records": [1], "data": {"a": 1}, "batch_size": "many"},
])  # fmt: skip
def test_parts_that_make_no_sense_are_shown_and_compared(part, tmp_path):
    odd = record(lambda v: v["parts"][0].update({"sha256": "1", "content": None, **part}))
    whole = [made(tmp_path, f"{i}.evd", share=(i, 2)).path for i in range(2)]
    paths = [change(path, path.with_suffix(".odd"), odd) for path in whole]
    page = evidence_page(load_evidence(paths[0]), every=True)
    Console(file=io.StringIO()).print(*page)
    json.dumps(evidence_dict(load_evidence(paths[0])))
    with contextlib.suppress(EvidenceError):
        merge_evidence(paths, tmp_path / "sum.evd")


def test_homes_of_nobody(tmp_path):
    with pytest.raises(CheckpointError, match="nobody-of-that-name"):
        load_evidence("~nobody-of-that-name/x.evd")
    with pytest.raises(MergewiseError, match="no such folder"):
        made(tmp_path, "~nobody-of-that-name/x.evd")


def test_one_file_is_not_merged(tmp_path):
    with pytest.raises(EvidenceError, match="two or more"):
        merge_evidence([made(tmp_path).path], tmp_path / "out.evd")


def test_large_sums_are_added_piece_by_piece(tmp_path, monkeypatch):
    from mergewise.evidence.statistics import _evidence

    one, two = (made(tmp_path, f"{k}.evd", "input_gram", share=(k, 2)) for k in range(2))
    monkeypatch.setattr(_evidence, "_PIECE", 100)
    merged = everything(merge_evidence([one.path, two.path], tmp_path / "out.evd"))
    first, second = everything(one), everything(two)
    assert all(torch.equal(value, first[k] + second[k]) for k, value in merged.items())


def test_a_live_model_needs_no_fingerprint_of_its_own(tmp_path):
    found = collect("input_moments", live(llama()), [{"input_ids": torch.ones(1, 3).long()}],
                    tmp_path / "x.evd")  # fmt: skip
    assert len(found.record.model["fingerprint"]) == 64
