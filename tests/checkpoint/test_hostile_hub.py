"""A Hub that lies: an error each, no trace of it outside the cache, nothing of the token told."""

import time

import pytest
from fake_hub import TOKEN
from small_models import family

from mergewise.checkpoint import fetched, inspect_checkpoint, open_checkpoint
from mergewise.checkpoint._hub import _client
from mergewise.errors import CheckpointError, HubError

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return family(tmp_path_factory.mktemp("models"), experts=0)


@pytest.fixture
def base(hub, models, monkeypatch, tmp_path):
    """``org/base`` on a Hub that tests then corrupt; waiting between tries is left out."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)
    before = {p for p in tmp_path.rglob("*") if hub.cache not in (p, *p.parents)}
    yield hub.add("org/base", models / "base")
    after = {p for p in tmp_path.rglob("*") if hub.cache not in (p, *p.parents)}
    assert after == before


def refusal(action, *arguments):
    with pytest.raises(CheckpointError) as refused:
        action(*arguments)
    said = str(refused.value)
    assert said.replace("\n", " ").isprintable()
    assert TOKEN not in said
    return said


def changed(**keys):
    return lambda told: told | keys


@pytest.mark.parametrize("name", ["../up", "/abs", "a/../../b", "a\\..\\b", "C:\\x", "..", "x\0y"])
def test_names_that_leave_the_cache(hub, base, name):
    entry = {"rfilename": name, "size": 3, "blobId": "0" * 40}
    hub.listing = lambda told: told | {"siblings": [*told["siblings"], entry]}
    assert "would leave the cache" in refusal(open_checkpoint, "org/base")


@pytest.mark.parametrize("name", ["con\x1b[31m.json", "a b/c.json", "-rf.json ", "ü.json"])
def test_odd_names_are_left_out(hub, base, name):
    entry = {"rfilename": name, "size": 3, "blobId": "0" * 40}
    hub.listing = lambda told: told | {"siblings": [*told["siblings"], entry]}
    assert open_checkpoint("org/base").tensors


@pytest.mark.parametrize("size", [-1, "12", None, 1 << 60, 2.5])
def test_sizes_that_are_none(hub, base, size):
    hub.listing = lambda told: told | {"siblings": [{"rfilename": WEIGHTS, "size": size}]}
    assert "has" in refusal(open_checkpoint, "org/base")


@pytest.mark.parametrize("sha", ["../../../x", "main", "0" * 39, 7, None, "0" * 39 + "\n"])
def test_commits_that_are_none(hub, base, sha):
    hub.listing = changed(sha=sha)
    assert "which is none" in refusal(open_checkpoint, "org/base")


@pytest.mark.parametrize(
    "told",
    [[], "text", {"id": "org/base"}, {"id": 3, "sha": "0" * 40, "siblings": {"a": 1}},
     {"id": "org/base", "sha": "0" * 40, "siblings": [1, 2]},
     {"id": "org/base", "sha": "0" * 40, "siblings": [{"size": 3}]}],
)  # fmt: skip
def test_listings_that_make_no_sense(hub, base, told):
    hub.listing = lambda before: told
    assert "org/base" in refusal(open_checkpoint, "org/base")


def test_pages_that_are_no_listing(hub, base):
    hub.api = lambda handler: handler.send(200, b"<html>log in</html>", {}) or True
    assert "org/base" in refusal(open_checkpoint, "org/base")


@pytest.mark.parametrize(
    "stated", ["bytes 0-9/10", "bytes 0-99999/12488", "items", "", "bytes */12488"]
)
def test_ranges_that_lie(hub, base, stated):
    def answer(handler, model, commit, path):
        return path == WEIGHTS and not handler.body(
            model, commit, path, **{"Content-Range": stated}
        )

    hub.answer = answer
    if stated == "":
        hub.large = 1 << 30
    assert "asked for, the answer is status 206" in refusal(open_checkpoint, "org/base")


def test_another_size_than_listed(hub, base):
    for more in (-10, 10):
        hub.listing = lambda told, more=more: told | {
            "siblings": [s | {"size": s["size"] + more * (s["rfilename"] == WEIGHTS)}
                         for s in told["siblings"]]}  # fmt: skip
        assert "asked for, the answer" in refusal(open_checkpoint, "org/base")
        hub.listing = lambda told: told


def body(data, **head):
    """Answer requests for the weights with that body, whatever was asked for."""

    def answer(handler, model, commit, path):
        if path != WEIGHTS:
            return False
        size = len(model.commits[commit][path])
        asked = handler.headers.get("Range", f"bytes=0-{size - 1}").removeprefix("bytes=")
        told = {"X-Repo-Commit": commit, "ETag": '"abc"', "Content-Range": f"bytes {asked}/{size}"}
        told["Content-Length"] = str(size)
        handler.send(206 if "Range" in handler.headers else 200, data(size), told | head)
        handler.close_connection = True
        return True

    return answer


def test_truncated_and_overlong_answers(hub, base):
    hub.answer = body(lambda size: b"\0" * (size // 2))
    refusal(open_checkpoint, "org/base")
    hub.answer = body(lambda size: b"\0" * (size * 3), **{"Content-Length": "40000"})
    assert "got more" in refusal(open_checkpoint, "org/base")


def test_headers_of_nonsense(hub, base):
    hub.answer = body(lambda size: b"\xff" * size)
    assert "claims a header of" in refusal(open_checkpoint, "org/base")
    hub.answer = body(lambda size: (1 << 40).to_bytes(8, "little") * (size // 8))
    assert "claims a header of" in refusal(open_checkpoint, "org/base")


def test_failures_of_the_server(hub, base):
    checkpoint = open_checkpoint("org/base")
    hub.answer = lambda handler, model, commit, path: handler.error(500, "Oops") or True
    assert "status 500" in refusal(fetched, checkpoint)
    hub.answer = lambda handler, model, commit, path: handler.error(403, "No", "no way") or True
    assert "does not allow this with your token (no way)" in refusal(fetched, checkpoint)
    hub.answer = lambda handler, model, commit, path: handler.error(429, "Slow") or True
    assert "asks for fewer requests" in refusal(fetched, checkpoint)


def test_downloads_that_are_cut_short(hub, base):
    checkpoint = open_checkpoint("org/base")
    hub.answer = body(lambda size: b"\0" * (size // 2))
    refusal(fetched, checkpoint)
    assert not checkpoint.files[0].exists()
    hub.answer = lambda *all: False
    assert fetched(checkpoint).files[0].exists()


def test_other_bytes_than_planned(hub, base):
    checkpoint = open_checkpoint("org/base")
    repo = hub.models["org/base"].commits[base]
    name = b'"dtype":"BF16"'
    repo[WEIGHTS] = repo[WEIGHTS].replace(name, b'"dtype":"F16" ', 1)
    assert "another header than it showed" in refusal(fetched, checkpoint)


@pytest.mark.parametrize(
    "place", ["file:///etc/passwd", "http://127.0.0.1:9/x", "//", "gopher://x"]
)
def test_redirects_elsewhere(hub, base, place):
    head = {"Location": place, "X-Repo-Commit": base, "ETag": '"abc"', "X-Linked-Size": "12488"}

    def answer(handler, model, commit, path):
        return path == WEIGHTS and not handler.send(302, b"", head)

    hub.answer = answer
    refusal(open_checkpoint, "org/base")


@pytest.mark.parametrize("mark", ["../../../../evil", "/tmp/evil", "a/b", "..", '"../../x"'])
def test_marks_that_would_be_paths(hub, base, mark):
    checkpoint = open_checkpoint("org/base")

    def answer(handler, model, commit, path):
        size = len(model.commits[commit][path])
        head = {"X-Repo-Commit": commit, "ETag": mark, "Content-Length": str(size)}
        return not handler.send(200, model.commits[commit][path], head)

    hub.answer = answer
    assert "a ETag of" in refusal(fetched, checkpoint).replace("an ETag", "a ETag")


def test_the_file_of_another_commit(hub, base):
    checkpoint = open_checkpoint("org/base")

    def answer(handler, model, commit, path):
        handler.body(model, commit, path, **{"X-Repo-Commit": "1" * 40})
        return True

    hub.answer = answer
    assert "file of another commit" in refusal(fetched, checkpoint)


@pytest.mark.parametrize("message", ["\x1b[31mred\x07", f"your token {TOKEN} is bad", "x" * 5000])
def test_what_the_server_says_is_shown_safely(hub, base, message):
    def api(handler):
        handler.json({"error": message}, 403)
        return True

    hub.api = api
    said = refusal(open_checkpoint, "org/base")
    assert "does not allow this with your token (" in said
    assert len(said) < 600


def test_a_token_of_another_form_is_not_told(hub, base, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "plain-secret")
    hub.api = lambda handler: handler.error(403, "No", "plain-secret is not allowed") or True
    assert "plain-secret" not in refusal(open_checkpoint, "org/base")


def test_too_many_files(hub, base, monkeypatch):
    monkeypatch.setattr(_client, "MAX_FILES", 2)
    assert "at most 2" in refusal(open_checkpoint, "org/base")


def test_configs_are_as_untrusted_as_any(hub, base):
    hub.models["org/base"].commits[base]["config.json"] = b"[" * 5000
    assert "config" in refusal(inspect_checkpoint, "org/base")


def test_errors_are_of_the_hub(hub, base):
    hub.api = lambda handler: handler.error(500, "Oops") or True
    with pytest.raises(HubError, match="org/base: the Hub answered with status 500"):
        open_checkpoint("org/base")
