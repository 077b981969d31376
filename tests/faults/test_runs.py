"""Several runs and one folder: locks, replacing, restarting, and going on."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from small_models import contents, family, load, recipe

from mergewise import merge
from mergewise.errors import InterruptedMergeError, OutputError

SHARD = 3000


@pytest.fixture(scope="module")
def models(tmp_path_factory: Any) -> Path:
    return family(tmp_path_factory.mktemp("models"))


def run(document: dict[str, Any], out: Path, **options: Any) -> Any:
    return merge(document, out, **{"shard_size": SHARD, "workers": 1, **options})


def stop_at(share: float) -> Any:
    def stop(done: int, total: int) -> None:
        if done > share * total:
            raise KeyboardInterrupt

    return stop


@pytest.fixture
def unfinished(models: Path, tmp_path: Path) -> Path:
    """A folder in which a linear merge was stopped with some shards done."""
    out = tmp_path / "unfinished" / "out"
    with pytest.raises(InterruptedMergeError, match=r"finished shards? kept in .*same command"):
        run(recipe(models, "linear"), out, progress=stop_at(0.7))
    assert len(list((out / ".mergewise").glob("*.safetensors"))) > 1
    assert not (out / "config.json").exists()
    return out


def wanted(models: Path, tmp_path: Path, method: str = "linear") -> dict[str, bytes]:
    run(recipe(models, method), tmp_path / "wanted" / "out")
    return contents(tmp_path / "wanted" / "out")


def test_two_runs_at_the_same_time(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    errors: list[BaseException] = []

    def meanwhile(done: int, total: int) -> None:
        if not errors:
            try:
                run(recipe(models, "linear"), out, overwrite=True, restart=True)
            except BaseException as error:
                errors.append(error)

    run(recipe(models, "linear"), out, progress=meanwhile)
    assert isinstance(errors[0], OutputError)
    assert "another merge is writing there; wait for it" in str(errors[0])
    assert (out / "config.json").exists()


def test_many_runs_started_together(models: Path, tmp_path: Path) -> None:
    """One wins, whoever comes while it works is refused, and who comes later finds it done."""
    out = tmp_path / "out"
    results: list[object] = []

    def attempt() -> None:
        try:
            results.append(run(recipe(models, "linear"), out))
        except OutputError as error:
            results.append(str(error))

    threads = [threading.Thread(target=attempt) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [r for r in results if isinstance(r, str)]
    assert len(refused) == 5, results
    assert all("another merge is writing" in r or "is not empty" in r for r in refused)
    assert contents(out).keys() >= {"config.json", "README.md"}
    assert not (out / ".mergewise").exists()


def test_a_lock_that_was_removed_meanwhile(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other run ended, and took the folder away, between our opening and our locking."""
    real = fcntl.flock

    def late(descriptor: int, how: int) -> None:
        real(descriptor, how)
        (tmp_path / "out" / ".mergewise" / "lock").unlink()

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(OutputError, match="another merge"):
        run(recipe(models, "linear"), tmp_path / "out")


def test_a_lock_of_a_dead_run_does_not_hold(unfinished: Path, models: Path) -> None:
    assert (unfinished / ".mergewise" / "lock").exists()
    assert run(recipe(models, "linear"), unfinished).resumed >= 2


def test_going_on_reads_only_what_is_left(
    unfinished: Path, models: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    from mergewise.checkpoint import FileReader

    read: list[int] = []
    real = FileReader.read_into
    monkeypatch.setattr(
        FileReader, "read_into", lambda s, r, a, b: (read.append(b.nbytes), real(s, r, a, b))[1]
    )
    done = run(recipe(models, "linear"), unfinished)
    after, read[:] = sum(read), []
    assert 0 < done.resumed < len(done.files)
    assert contents(unfinished) == wanted(models, tmp_path)
    assert after < 0.6 * sum(read)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "header"])
def test_a_finished_shard_that_was_damaged_is_made_again(
    damage: str, unfinished: Path, models: Path, tmp_path: Path
) -> None:
    shard = sorted((unfinished / ".mergewise").glob("*.safetensors"))[0]
    data = bytearray(shard.read_bytes())
    if damage == "remove":
        shard.unlink()
    elif damage == "cut":
        shard.write_bytes(data[:-1])
    else:
        data[20 if damage == "header" else -1] ^= 1
        shard.write_bytes(data)
    run(recipe(models, "linear"), unfinished)
    assert contents(unfinished) == wanted(models, tmp_path)


def test_another_recipe_does_not_go_on(unfinished: Path, models: Path, tmp_path: Path) -> None:
    before = contents(unfinished)
    with pytest.raises(OutputError, match=r"another recipe.*pass --restart to discard it"):
        run(recipe(models, "ties"), unfinished)
    for options in ({"shard_size": 4000}, {"allow_nonfinite": True}):
        with pytest.raises(OutputError, match=r"other options"):
            run(recipe(models, "linear"), unfinished, **options)
    assert contents(unfinished) == before
    run(recipe(models, "ties"), unfinished, restart=True)
    assert contents(unfinished) == wanted(models, tmp_path, "ties")


def test_more_workers_do_go_on(unfinished: Path, models: Path) -> None:
    assert run(recipe(models, "linear"), unfinished, workers=3).resumed >= 2


@pytest.mark.parametrize(
    "journal",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"done": 3}', b'{"done": {"a": 1}}', b"{}", None],
)
def test_a_broken_journal(
    journal: bytes | None, unfinished: Path, models: Path, tmp_path: Path
) -> None:
    path = unfinished / ".mergewise" / "journal.json"
    path.unlink()
    if journal is None:
        path.mkdir()
    else:
        path.write_bytes(journal)
    with pytest.raises(OutputError):
        run(recipe(models, "linear"), unfinished)
    assert not (unfinished / "config.json").exists()
    run(recipe(models, "linear"), unfinished, restart=True)
    assert contents(unfinished) == wanted(models, tmp_path)


def test_a_journal_that_names_other_files(unfinished: Path, models: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious.safetensors"
    precious.write_bytes(b"keep me")
    path = unfinished / ".mergewise" / "journal.json"
    journal = json.loads(path.read_text())
    journal["done"][str(precious)] = journal["done"]["../../../precious.safetensors"] = "00"
    path.write_text(json.dumps(journal))
    run(recipe(models, "linear"), unfinished)
    assert precious.read_bytes() == b"keep me"
    assert load(unfinished).keys() == load(models / "base").keys()


def test_a_folder_that_is_not_empty(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"is not empty \(notes\.txt\).*pass --overwrite"):
        run(recipe(models, "linear"), out)
    assert contents(out) == {"notes.txt": b"mine"}


def test_an_empty_folder_is_used_and_left(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (models / "base" / "model.safetensors").stat()

    def fail(done: int, total: int) -> None:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        run(recipe(models, "linear"), out, shard_size="1MB", progress=fail)
    assert out.is_dir() and not list(out.iterdir())
    run(recipe(models, "linear"), out)


def test_replacing_a_model(models: Path, tmp_path: Path) -> None:
    """Fewer shards than before, and files that are nobody's business."""
    out = tmp_path / "wanted" / "out"
    run(recipe(models, "ties"), out, shard_size=1500)
    old = contents(out)
    foreign = {
        "notes.txt": b"mine", "model-card.safetensors": b"not a shard", "eval/results.json": b"{}",
        "modelling.py": b"pass", "pytorch_model.bin": b"old",
    }  # fmt: skip
    for name, data in foreign.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(data)

    def untouched(done: int, total: int) -> None:
        found = contents(out)
        assert old.items() <= found.items(), "the old model is there until the new one is complete"

    run(recipe(models, "linear"), out, overwrite=True, progress=untouched)
    found = contents(out)
    assert foreign.items() <= found.items()
    for name in foreign:
        (out / name).unlink()
    (out / "eval").rmdir()
    new = tmp_path / "new" / "out"
    run(recipe(models, "linear"), new)
    assert contents(out) == contents(new)


def test_replacing_shards_by_one_file(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(recipe(models, "ties"), out)
    assert (out / "model.safetensors.index.json").exists()
    run(recipe(models, "linear"), out, overwrite=True, shard_size="1GB")
    assert [p.name for p in out.glob("model*")] == ["model.safetensors"]
    run(recipe(models, "ties"), out, overwrite=True)
    assert not (out / "model.safetensors").exists()


def test_a_failed_replacement_keeps_the_old_model(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(recipe(models, "ties"), out)
    before = contents(out)

    def fail(done: int, total: int) -> None:
        if done > total / 2:
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError):
        run(recipe(models, "linear"), out, overwrite=True, progress=fail)
    assert before.items() <= contents(out).items()
    with pytest.raises(OutputError, match="pass --overwrite"):
        run(recipe(models, "linear"), out)
    assert run(recipe(models, "linear"), out, overwrite=True).resumed
    assert not (out / ".mergewise").exists()


def test_files_have_the_modes_of_the_umask(models: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        run(recipe(models, "linear"), tmp_path / "out")
    finally:
        os.umask(before)
    modes = {p.name: p.stat().st_mode & 0o777 for p in (tmp_path / "out").iterdir()}
    assert set(modes.values()) == {0o640}, modes


def test_the_progress_ends_at_the_total(models: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    done = run(
        recipe(models, "ties"), tmp_path / "out", progress=lambda *a: seen.append(a), workers=1
    )
    assert seen[-1] == (done.bytes_written, done.bytes_written)
    assert [s[0] for s in seen] == sorted(s[0] for s in seen)


def test_replacing_a_model_leaves_nothing_of_its_tokenizer(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(recipe(models, "linear"), out)
    old = ["added_tokens.json", "vocab.json", "additional_chat_templates/rag.jinja"]
    foreign = ["notes.txt", "additional_chat_templates/notes.txt"]
    (out / "additional_chat_templates").mkdir()
    for name in (*old, *foreign):
        (out / name).write_text("{}")
    run(recipe(models, "linear"), out, overwrite=True)
    assert not any((out / name).exists() for name in old)
    assert all((out / name).exists() for name in (*foreign, "tokenizer.json"))


def test_the_provenance_names_the_shards_of_this_output_only(
    models: Path, unfinished: Path
) -> None:
    path = unfinished / ".mergewise" / "journal.json"
    journal = json.loads(path.read_text())
    journal["done"]["of-another-layout.safetensors"] = "0"
    path.write_text(json.dumps(journal))
    run(recipe(models, "linear"), unfinished)
    record = json.loads((unfinished / "mergewise_provenance.json").read_text())
    assert sorted(record["outputs"]) == sorted(p.name for p in unfinished.glob("*.safetensors"))
