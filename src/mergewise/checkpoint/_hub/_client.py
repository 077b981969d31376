"""The calls to the Hub, all of them; what a server answers is checked here.

Requests go through `huggingface_hub` (its session, endpoint, token and cache), so that proxies,
mirrors and ``HF_*`` variables work as users know them. Source: `huggingface_hub` 2.4.
"""

from __future__ import annotations

import importlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergewise.checkpoint._files import shown
from mergewise.checkpoint._hub._errors import explaining, of_network
from mergewise.checkpoint._hub_name import HubName, is_commit
from mergewise.errors import HubError, MissingExtraError

MAX_FILES = 100_000
MAX_SIZE = 1 << 50
_FILE = re.compile(r"[\w.+-][\w.+ -]*(/[\w.+-][\w.+ -]*){0,8}", re.ASCII)
_MARK = re.compile(r'(W/)?"?[\w.-]{1,200}"?', re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TIMEOUT = 30.0
_WAITS = (0.5, 1.0, 2.0)
"""Seconds before another try, when a connection fails."""
Counter = Callable[[int], None]


@dataclass(frozen=True)
class HubFile:
    """A file as the Hub lists it; `sha256` of those kept as large files, else None."""

    name: str
    size: int
    sha256: str | None = None


def library(wanted_for: str = "") -> Any:
    """`huggingface_hub`, imported; raises MissingExtraError."""
    try:
        import huggingface_hub
    except ImportError:
        raise MissingExtraError("hub", "huggingface_hub", wanted_for) from None
    return huggingface_hub


def _utils() -> Any:
    return importlib.import_module("huggingface_hub.utils")


def _constants() -> Any:
    library()
    return importlib.import_module("huggingface_hub.constants")


def offline() -> bool:
    """Whether ``HF_HUB_OFFLINE`` is set."""
    return bool(_constants().HF_HUB_OFFLINE)


def cache_folder() -> Path:
    """The folder of the Hub's cache (``HF_HUB_CACHE``)."""
    return Path(_constants().HF_HUB_CACHE)


@contextmanager
def session(what: str) -> Iterator[Any]:
    """`huggingface_hub`, with errors in our words, and answers refused that name odd files."""
    hub = library(what)
    utils = _utils()
    with _quiet(), explaining(what):
        client = utils.get_session()
        hooks = client.event_hooks
        if _refuse_odd_marks not in hooks.get("response", []):
            hooks.setdefault("response", []).append(_refuse_odd_marks)
            client.event_hooks = hooks
        yield hub


class _Quiet:
    """How many threads are at work, and how loud `huggingface_hub` was before the first."""

    lock = threading.Lock()
    inside = 0
    before = 0


@contextmanager
def _quiet() -> Iterator[None]:
    """None of its warnings, which show addresses."""
    logging = _utils().logging

    with _Quiet.lock:
        if not _Quiet.inside:
            _Quiet.before = logging.get_verbosity()
            logging.set_verbosity_error()
        _Quiet.inside += 1
    try:
        yield
    finally:
        with _Quiet.lock:
            _Quiet.inside -= 1
            if not _Quiet.inside:
                logging.set_verbosity(_Quiet.before)


def _refuse_odd_marks(response: Any) -> None:
    """Refuse marks of files that are no plain words: the cache makes file names of them."""
    for header in ("ETag", "X-Linked-Etag", "X-Repo-Commit"):
        value = response.headers.get(header)
        if value is not None and (not _MARK.fullmatch(value) or ".." in value):
            raise HubError(f"the Hub's answer has a {header} of {shown(value)}, which is refused")


def listing(name: HubName) -> tuple[str, dict[str, HubFile]]:
    """The commit that a name stands for now, and the files of it.

    Raises:
        HubError: if it cannot be had, or makes no sense.
    """
    with session(str(name)) as hub:
        info = hub.HfApi().model_info(
            name.repo, revision=name.revision, files_metadata=True, timeout=_TIMEOUT
        )
        commit = info.sha
        found = [(s.rfilename, s.size, getattr(s.lfs, "sha256", None)) for s in info.siblings or ()]
    if not isinstance(commit, str) or not is_commit(commit):
        raise HubError(f"{name}: the Hub names the commit {shown(commit)}, which is none")
    if len(found) > MAX_FILES:
        raise HubError(f"{name}: {len(found):,} files; at most {MAX_FILES:,} are looked through")
    return commit, dict(_checked(name, *each) for each in found)


def _checked(name: HubName, file: Any, size: Any, sha256: Any) -> tuple[str, HubFile]:
    if not isinstance(file, str) or len(file) > 500 or "\0" in file or _leaves(file):
        raise HubError(f"{name}: the Hub lists a file {shown(file)}, which would leave the cache")
    if not isinstance(size, int) or not 0 <= size <= MAX_SIZE:
        raise HubError(f"{name}: the Hub says that {shown(file)} has {shown(size)} bytes")
    known = sha256 if isinstance(sha256, str) and _SHA256.fullmatch(sha256) else None
    return file, HubFile(file, size, known)


def _leaves(file: str) -> bool:
    parts = re.split(r"[/\\]", file)
    return file.startswith(("/", "\\")) or ".." in parts or bool(re.match(r"[A-Za-z]:", file))


def is_plain(file: str) -> bool:
    """Whether a file's name is one that is fetched; others are left out."""
    return _FILE.fullmatch(file) is not None


def read_range(repo: str, commit: str, file: HubFile, start: int, count: int) -> bytes:
    """Bytes `start` to `start + count` of a file on the Hub.

    Raises:
        HubError: if they cannot be had, or the answer is not the range that was asked for.
    """
    what = f"{repo}@{commit[:12]}: {file.name}"
    if count <= 0:
        return b""
    with session(what) as hub:
        utils = _utils()
        headers = utils.build_hf_headers()
        headers |= {"Range": f"bytes={start}-{start + count - 1}", "Accept-Encoding": "identity"}
        url = hub.hf_hub_url(repo, file.name, revision=commit)
        for wait in _WAITS:
            try:
                return _ranged(what, url, headers, file, start, count)
            except Exception as error:
                if not of_network(error):
                    raise
            time.sleep(wait)
        return _ranged(what, url, headers, file, start, count)


def _ranged(
    what: str, url: str, headers: dict[str, str], file: HubFile, start: int, count: int
) -> bytes:
    utils = _utils()
    # the session follows redirects, and leaves the token behind when the host changes
    with utils.http_stream_backoff(
        "GET", url, headers=headers, timeout=_TIMEOUT,
        max_retries=len(_WAITS), base_wait_time=0.5, max_wait_time=4, retry_on_exceptions=(),
    ) as response:  # fmt: skip
        utils.hf_raise_for_status(response)
        _check_range(what, response, file, start, count)
        return _body(what, response, count)


def _check_range(what: str, response: Any, file: HubFile, start: int, count: int) -> None:
    stated = response.headers.get("Content-Range", "")
    whole = start == 0 and count == file.size and response.status_code == 200
    wanted = f"bytes {start}-{start + count - 1}/{file.size}"
    if not whole and (response.status_code != 206 or stated.strip() != wanted):
        raise HubError(
            f"{what}: {wanted} asked for, the answer is status {response.status_code}, "
            f"{shown(stated)}; does this endpoint serve ranges, and the commit that it lists?"
        )


def _body(what: str, response: Any, count: int) -> bytes:
    parts, got = [], 0
    for part in response.iter_raw():
        parts.append(part)
        got += len(part)
        if got > count:
            break
    if got != count:
        more = "more" if got > count else f"{got:,}"
        raise HubError(f"{what}: {count:,} bytes expected, got {more}; try again")
    return b"".join(parts)


def fetch(
    repo: str,
    commit: str,
    file: HubFile,
    *,
    revision: str | None = None,
    cache: Path | None = None,
    count: Counter | None = None,
) -> Path:
    """Have a file in the cache, or in another folder laid out like it; its path there.

    Args:
        revision: asked for in place of the commit, so that the cache learns what it stands for.
        cache: the folder; None for the Hub's own cache.
        count: called with the numbers of bytes that arrive; what it raises ends the download.

    Raises:
        HubError: if it cannot be had, or is not of the size or the commit that was listed.
    """
    what = f"{repo}@{commit[:12]}: {file.name}"
    with session(what) as hub:
        found = hub.hf_hub_download(
            repo, file.name, revision=revision or commit, cache_dir=cache, tqdm_class=_bar(count)
        )
    path = Path(found)
    home = (cache or cache_folder()).resolve()
    inside = path.is_file() and path.resolve().is_relative_to(home)
    if path.parts[-1 - file.name.count("/") - 1] != commit or not inside:
        raise HubError(f"{what}: the Hub sent the file of another commit; try again")
    if path.stat().st_size != file.size:
        got = path.stat().st_size
        raise HubError(
            f"{what}: {file.size:,} bytes are listed, {got:,} in the cache; remove {path} "
            "(and what it links to), and try again"
        )
    return path


def _bar(count: Counter | None) -> type:
    """Something like a progress bar of `tqdm`, for `huggingface_hub` to report to."""

    class Bar:
        def __init__(self, *args: Any, **options: Any) -> None:
            self.n = 0
            self.total = options.get("total")

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def update(self, size: float | None = 1) -> None:
            if count is not None and size:
                count(int(size))

        def update_transfer(self, size: float | None = 1) -> None:
            pass

        def set_postfix_str(self, text: str = "", refresh: bool = True) -> None:
            pass

        set_transfer_postfix_str = set_postfix_str

        def refresh(self, *args: object, **options: object) -> None:
            pass

        close = refresh

    return Bar
