"""Models on the Hub as folders: small files in the cache, the rest known by name and size.

A name is resolved once a process: to a commit, and to the folder of the cache where its files are
or will be. Everything else goes by that folder, as if it were any other.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mergewise.checkpoint._files import read_small, where
from mergewise.checkpoint._hub import _client
from mergewise.checkpoint._hub._client import HubFile
from mergewise.checkpoint._hub_name import HubName, hub_name, is_commit
from mergewise.errors import CheckpointError, HubError

MAX_SMALL = 200_000_000
MAX_SMALL_FILES = 500
_SMALL = re.compile(
    r"[\w.+-]+\.(json|txt|model|spm|tiktoken|bpe|jinja|md|py)|LICEN[CS]E[\w.-]*|NOTICE[\w.-]*",
    re.ASCII,
)
_DEFAULT = "main"
_log = logging.getLogger("mergewise.hub")


@dataclass(frozen=True)
class Repo:
    """A model on the Hub at one commit.

    Attributes:
        name: as asked for.
        folder: where its files are, or will be: ``<cache>/models--org--name/snapshots/<commit>``.
        files: what it holds, by path; empty if the Hub was not asked.
        listed: the Hub was asked; else what is in the cache is all there is.
    """

    name: HubName
    commit: str
    folder: Path
    files: Mapping[str, HubFile]
    listed: bool

    def inside(self, folder: Path) -> list[str]:
        """Names of the files right in a folder, this one or one below."""
        below = folder.relative_to(self.folder).parts
        parts = (tuple(name.split("/")) for name in self.files)
        return [p[-1] for p in parts if p[:-1] == below]


@dataclass(frozen=True)
class AwayFile:
    """A file that is on the Hub, and not here yet."""

    repo: Repo
    file: HubFile

    @property
    def path(self) -> Path:
        """Where the cache will have it."""
        return self.repo.folder / self.file.name


_known: dict[HubName, Repo] = {}
_folders: dict[Path, Repo] = {}
_lock = threading.RLock()


def locate(text: Path | str) -> Path | None:
    """The folder (or file) in the cache for a name on the Hub; None if it is no such name.

    Small files are downloaded; weights are not.

    Raises:
        HubError: if there is no such model, or it cannot be reached.
        MissingExtraError: if `huggingface_hub` is not installed.
    """
    name = hub_name(text)
    if name is None:
        return None
    whole = HubName(name.repo, name.revision)
    with _lock:
        repo = _known.get(whole)
        if repo is None:
            _client.library(f"{text}: no such folder here, and to look on the Hub")
            repo = _resolve(whole)
            _known[whole] = repo
            _folders[repo.folder] = repo
    return repo.folder / name.file if name.file else repo.folder


def forget() -> None:
    """Resolve every name anew; for long-lived processes, and tests."""
    with _lock:
        _known.clear()
        _folders.clear()


def repo_of(path: Path) -> Repo | None:
    """The model on the Hub that a path belongs to, if this process resolved it."""
    if not _folders:
        return None
    return next((_folders[p] for p in (path, *path.parents) if p in _folders), None)


def away(path: Path) -> AwayFile | None:
    """The file on the Hub that will be at `path`; None if it is here, or nowhere."""
    repo = repo_of(path)
    if repo is None or path == repo.folder or path.exists():
        return None
    file = repo.files.get(path.relative_to(repo.folder).as_posix())
    return None if file is None else AwayFile(repo, file)


def listed(folder: Path) -> list[str]:
    """Names in a folder, here or on the Hub, sorted.

    Raises:
        OSError: if it cannot be listed.
    """
    repo = repo_of(folder)
    theirs = repo.inside(folder) if repo else []
    try:
        ours = [entry.name for entry in folder.iterdir()]
    except FileNotFoundError:
        if not theirs:
            raise
        ours = []
    return sorted({*ours, *theirs})


def incomplete(path: Path, error: CheckpointError) -> CheckpointError:
    """The error, with a word on the cache, if a model there was opened without asking the Hub."""
    repo = repo_of(path)
    if repo is None or repo.listed:
        return error
    return HubError(
        f"{error}. This is what the cache has of {repo.name}, commit {repo.commit[:12]}; with "
        "HF_HUB_OFFLINE set, or without a network, what is missing is not fetched"
    )


def _resolve(name: HubName) -> Repo:
    if _client.offline():
        return _from_cache(name)
    try:
        commit, files = _client.listing(name)
    except HubError as error:
        return _kept(name, error)
    plain = {n: f for n, f in files.items() if _client.is_plain(n)}
    repo = Repo(name, commit, _snapshots(name) / commit, plain, True)
    _fetch_small(repo)
    return repo


def _kept(name: HubName, error: HubError) -> Repo:
    """What the cache has of a model, when the Hub is out of reach."""
    if "cannot be reached" not in str(error):
        raise error
    try:
        repo = _from_cache(name)
    except HubError:
        raise error from None
    _log.warning("%s: the Hub cannot be reached; commit %s is in the cache and is used", name,
                 repo.commit[:12])  # fmt: skip
    return repo


def _from_cache(name: HubName) -> Repo:
    commit = name.revision or ""
    if not is_commit(commit):
        commit = _ref(name) or ""
    folder = _snapshots(name) / commit
    if not commit or not folder.is_dir():
        raise HubError(
            f"{name}: no such folder here, and HF_HUB_OFFLINE is set, so only the cache is looked "
            f"at, which does not have it; unset it, or fetch the model where there is a network "
            f"(`hf download {name.repo}`)"
        )
    return Repo(name, commit, folder, {}, False)


def _snapshots(name: HubName) -> Path:
    return _client.cache_folder() / f"models--{name.repo.replace('/', '--')}" / "snapshots"


def _ref(name: HubName) -> str | None:
    """The commit that the cache has noted for a branch or tag."""
    path = _snapshots(name).parent / "refs" / (name.revision or _DEFAULT)
    try:
        text = read_small(path, 100).decode("ascii", "replace").strip()
    except CheckpointError:
        return None
    return text if is_commit(text) else None


def _fetch_small(repo: Repo) -> None:
    """Have configs, tokenizers, code and texts in the cache, and the commit noted there."""
    wanted = [file for file in repo.files.values() if _is_small(repo, file)]
    if len(wanted) > MAX_SMALL_FILES:
        raise HubError(f"{repo.name}: {len(wanted):,} small files; {MAX_SMALL_FILES} are plausible")
    wanted.sort(key=lambda file: (file.name != "config.json", file.name))
    missing = [file for file in wanted if not (repo.folder / file.name).exists()]
    if _ref(repo.name) != repo.commit and repo.name.revision != repo.commit:
        _note(repo, wanted[0]) if wanted else _write_note(repo)
    with ThreadPoolExecutor(4, "mergewise-hub") as pool:
        for _ in pool.map(lambda file: _client.fetch(repo.name.repo, repo.commit, file), missing):
            pass


def _note(repo: Repo, file: HubFile) -> None:
    """Fetch a file by the branch's name, from which the cache learns the branch's commit."""
    asked = repo.name.revision or _DEFAULT
    try:
        _client.fetch(repo.name.repo, repo.commit, file, revision=asked)
    except HubError as error:
        _log.debug("%s: not noted in the cache: %s", where(repo.folder), error)


def _write_note(repo: Repo) -> None:
    """Note the branch's commit as `huggingface_hub` does, where there is no small file to fetch."""
    path = _snapshots(repo.name).parent / "refs" / (repo.name.revision or _DEFAULT)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(repo.commit)
    except OSError as error:
        _log.debug("%s: not noted in the cache: %s", where(repo.folder), error)


def _is_small(repo: Repo, file: HubFile) -> bool:
    folder, _, name = file.name.rpartition("/")
    if "/" in folder or file.size > MAX_SMALL or not _SMALL.fullmatch(name):
        return False
    return not folder or folder == "additional_chat_templates" or "model_index.json" in repo.files
