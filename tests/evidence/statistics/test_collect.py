"""One pass or several, one worker or several, any batch size, memory or disk: the same sums."""

import os
import sys

import pytest
import torch
from _tiny import (
    alone,
    assert_close,
    batches,
    bert,
    counts,
    everything,
    live,
    llama,
    mixtral,
    sequences,
    vit,
)
from small_language import byte_tokenizer

from mergewise.errors import DataError, EvidenceError, OutputError
from mergewise.evidence import Data, LiveModel, collect, load_evidence, merge_evidence

ALL = "input_moments,output_moments,input_gram"
TEXTS = [
    "a rose is a rose",
    "by any other name",
    "x",
    "would smell as sweet",
    "",
    "and so on " * 20,
]


def speaking(seed=0):
    return LiveModel("tiny", llama(seed), byte_tokenizer())


def given(tmp_path, *statistics, name="x.evd", model=None, data=None, **more):
    names = ",".join(statistics) or ALL
    return collect(names, model or speaking(), TEXTS if data is None else data, tmp_path / name,
                   max_length=32, **more)  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_batch_size_does_not_matter(size, tmp_path):
    assert_close(
        given(tmp_path, batch_size=3), given(tmp_path, name="y.evd", batch_size=size), 2e-5
    )


@pytest.mark.parametrize("make", [llama, bert, mixtral])
def test_padding_does_not_matter(make, tmp_path):
    model, texts = live(make()), sequences(vocab=40)
    padded = collect(ALL, model, batches(texts, 3, extra=5), tmp_path / "a.evd")
    single = collect(ALL, model, alone(texts), tmp_path / "b.evd")
    # only modules that see no padding say how many tokens there are
    assert padded.record.parts[0]["tokens"] == sum(map(len, texts))
    positions = "bert.embeddings.position_embeddings.weight"
    if make is bert:
        assert padded.counts("output_moments", positions)
    assert_close(padded, single, 2e-5)


def test_several_statistics_in_one_pass_equal_separate_passes(tmp_path):
    together = everything(given(tmp_path))
    apart = {}
    for name in ALL.split(","):
        apart |= everything(given(tmp_path, name, name=f"{name}.evd"))
    assert together.keys() == apart.keys()
    assert all(torch.equal(value, apart[key]) for key, value in together.items())


def test_forward_and_gradient_statistics_in_one_run(tmp_path):
    together = everything(given(tmp_path, "input_moments", "fisher"))
    apart = everything(given(tmp_path, "input_moments", name="a.evd"))
    apart |= everything(given(tmp_path, "fisher", name="b.evd"))
    assert together.keys() == apart.keys()
    assert all(torch.equal(value, apart[key]) for key, value in together.items())


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_add_up_to_one(workers, tmp_path):
    whole = given(tmp_path, limit=5)
    paths = [
        given(tmp_path, name=f"{k}.evd", limit=5, share=(k, workers)).path for k in range(workers)
    ]
    merged = merge_evidence(paths, tmp_path / "merged.evd")
    assert_close(merged, whole, 2e-5)
    assert sum(part["tokens"] for part in merged.record.parts) == whole.record.parts[0]["tokens"]
    assert merged.record.model == whole.record.model


def test_an_expert_that_one_worker_never_saw(tmp_path):
    model, texts = live(mixtral()), sequences(6)
    whole = collect("input_moments", model, batches(texts, 1), tmp_path / "w.evd")
    shares = [
        collect("input_moments", model, batches(texts, 1), tmp_path / f"{k}.evd", share=(k, 6))
        for k in range(6)
    ]
    assert any(s.tensors("input_moments") != whole.tensors("input_moments") for s in shares)
    merged = merge_evidence([s.path for s in shares], tmp_path / "m.evd")
    assert_close(merged, whole, 2e-5)


@pytest.mark.parametrize("float64", [False, True])
def test_sums_on_disk_equal_sums_in_memory(float64, tmp_path):
    kept = given(tmp_path, float64=float64)
    spilled = given(tmp_path, name="y.evd", float64=float64, memory=1)
    first, second = everything(kept), everything(spilled)
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    gram = kept.sums("input_gram", "lm_head.weight")["gram"]
    assert gram.dtype == (torch.float64 if float64 else torch.float32)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.evd", "y.evd"]


@pytest.mark.parametrize("make", [llama, mixtral])
def test_the_room_for_sums_is_known_before(make, tmp_path, monkeypatch):
    from mergewise.evidence.statistics import _collect

    told, make_sums = [], _collect.make_sums
    monkeypatch.setattr(
        _collect, "make_sums", lambda sizes, *more: told.extend(sizes) or make_sums(sizes, *more)
    )
    names = f"{ALL},router_usage" if make is mixtral else ALL
    calls = batches(sequences(20), 20)
    found = collect(names, live(make()), calls, tmp_path / "x.evd")
    held = [
        sum(r.nbytes for (s, _), refs in found.entries.items() if s == name for r in refs.values())
        for name in names.split(",")
    ]
    assert told == held


def test_a_disk_without_room_is_found_before(tmp_path, monkeypatch):
    import shutil

    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OutputError, match="are needed on this disk"):
        given(tmp_path)


def test_long_texts_are_cut_into_pieces_and_none_is_lost(tmp_path):
    found = given(tmp_path, "input_moments", data=["a" * 70], batch_size=2)
    part = found.record.parts[0]
    assert (part["records"], part["sequences"], part["tokens"]) == (1, 3, 71)
    assert any("cut into several" in note for note in found.record.notes)


def test_provenance_says_what_was_done(tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text('{"question": "a?", "answer": "b"}\n' * 4)
    found = given(tmp_path, "input_gram", data=file, template="{question} {answer}", batch_size=2,
                  rows=(1, 4), seed=7, options={"input_gram": {"max_channels": 16}})  # fmt: skip
    part = found.record.parts[0]
    assert part["data"] == str(file) and part["sha256"] == Data(file, split="train").fingerprint()
    assert (part["rows"], part["records"], part["seed"]) == ([1, 4], 3, 7)
    assert part["template"] == "{question} {answer}" and part["batch_size"] == 2
    assert found.provenance["statistics"]["input_gram"]["options"] == {"max_channels": 16}
    assert found.record.model["dtype"] == "float32" and len(found.record.model["fingerprint"]) == 64
    assert "torch" in found.record.versions
    # wider than 16 channels, and what has no inputs to speak of
    assert "model.layers.0.mlp.down_proj.weight" in found.record.uncovered
    assert "model.embed_tokens.weight" in found.record.uncovered


def test_the_fingerprint_follows_the_weights(tmp_path):
    marks = [
        given(tmp_path, "input_moments", name=f"{i}.evd", model=speaking(seed)).record.model
        for i, seed in enumerate((0, 0, 1))
    ]
    assert marks[0] == marks[1] != marks[2]


def test_images_of_a_file(tmp_path):
    import numpy as np

    pixels = np.random.default_rng(0).integers(0, 256, (4, 12, 12, 3), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", x_train=pixels, y_train=np.arange(4) % 3)
    model = live(vit())
    found = collect("input_moments", model, tmp_path / "set.npz", tmp_path / "x.evd", batch_size=3,
                    prepare={"mean": 0.5, "std": 0.5})  # fmt: skip
    tensors = torch.from_numpy(pixels).movedim(-1, 1).float() / 127.5 - 1
    direct = collect("input_moments", model, [{"pixel_values": tensors}], tmp_path / "y.evd")
    assert_close(found, direct)


def test_progress_counts_records_and_tokens(tmp_path):
    told = []
    given(tmp_path, "input_moments", batch_size=2, progress=told.append)
    assert told[-1].total == len(TEXTS)
    assert [p.tokens for p in told] == sorted({p.tokens for p in told})
    assert told[-1].tokens == load_evidence(tmp_path / "x.evd").record.parts[0]["tokens"]


def test_an_interrupted_run_leaves_nothing(tmp_path):
    def stop(at):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        given(tmp_path, progress=stop, memory=1)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    from mergewise.evidence.statistics import _file

    def full(descriptor, data, offset):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_file, "write_at", full)
    with pytest.raises(OutputError, match="no space"):
        given(tmp_path, "input_moments")
    assert not list(tmp_path.iterdir())


class Loaded(Exception):
    """The model was loaded before the mistake was found."""


@pytest.mark.parametrize(("changes", "error", "words"), [
    ({"statistics": "input_gran"}, EvidenceError, "did you mean input_gram"),
    ({"statistics": " , "}, EvidenceError, "no statistic named"),
    ({"options": {"input_gram": {"max_chanels": 3}}}, EvidenceError, "did you mean max_channels"),
    ({"options": {"input_gram": {"max_channels": 0}}}, EvidenceError, "1 <= x expected"),
    ({"options": {"fisher": {}}}, EvidenceError, "not collected"),
    ({"data": []}, DataError, "no records"),
    ({"data": 7}, DataError, "int"),
    ({"data": [{"label": 3}]}, DataError, "no text"),
    ({"data": ["x"], "share": (3, 4)}, DataError, "no records in share 4 of 4"),
    ({"data": "missing.jsonl"}, DataError, "missing.jsonl"),
    ({"statistics": "cross_covariance"}, EvidenceError, "--with"),
    ({"other": "somewhere"}, EvidenceError, "leave out --with"),
    ({"statistics": "fisher", "offload": True}, EvidenceError, "whole model in memory"),
    ({"statistics": "adam,fisher"}, EvidenceError, "collected alone"),
    ({"out": "."}, OutputError, "a folder"),
    ({"out": "no/such/x.evd"}, OutputError, "no such folder"),
])  # fmt: skip
def test_mistakes_are_found_before_the_model_is_loaded(
    changes, error, words, tmp_path, monkeypatch
):
    def load(*given, **more):
        raise Loaded

    monkeypatch.setattr("mergewise.evidence.statistics._collect.open_model", load)
    monkeypatch.chdir(tmp_path)
    llama().save_pretrained("model")
    byte_tokenizer().save_pretrained("model")
    asked = {"statistics": "input_gram", "model": "model", "data": ["text"], "out": "x.evd"}
    with pytest.raises(Loaded):
        collect(**asked)
    with pytest.raises(error, match=words):
        collect(**asked | changes)


def test_texts_for_a_model_without_tokenizer(tmp_path):
    with pytest.raises(EvidenceError, match="tokenizer"):
        collect("input_gram", live(llama()), ["text"], tmp_path / "x.evd")


def test_a_tokenizer_of_another_model(tmp_path):
    from _tiny import gpt2

    with pytest.raises(DataError, match="knows 40 tokens"):
        collect("input_gram", live(gpt2(), byte_tokenizer()), ["text"], tmp_path / "x.evd")


def test_a_statistic_that_nothing_in_the_model_fits(tmp_path):
    with pytest.raises(EvidenceError, match="no tensor that it describes"):
        given(tmp_path, "router_usage")


def test_an_existing_file_is_kept(tmp_path):
    given(tmp_path, "input_moments")
    before = (tmp_path / "x.evd").read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        given(tmp_path, "input_gram")
    assert (tmp_path / "x.evd").read_bytes() == before
    assert given(tmp_path, "input_gram", overwrite=True).statistics == ("input_gram",)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX modes")
def test_the_file_has_the_mode_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        given(tmp_path, "input_moments")
    finally:
        os.umask(before)
    assert (tmp_path / "x.evd").stat().st_mode & 0o777 == 0o640


def test_the_module_is_left_as_it_was(tmp_path):
    model = speaking()
    model.module.train()
    model.module.model.norm.eval()
    given(tmp_path, model=model)
    assert model.module.training and not model.module.model.norm.training
    assert not any(child._forward_hooks for child in model.module.modules())
    assert counts(load_evidence(tmp_path / "x.evd"))
