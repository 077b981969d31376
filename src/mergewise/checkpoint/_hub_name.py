"""Names of models on the Hub: ``org/name[@revision]`` and ``hf://org/name[@revision][/file]``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_PART = r"[A-Za-z0-9][\w.-]{0,95}"
_REVISION = r"refs/(?:pr|convert)/[\w.-]+|[\w.-]+"
_PLAIN = re.compile(rf"(?P<repo>{_PART}/{_PART})(?:@(?P<revision>[\w./-]+))?", re.ASCII)
# pathlib makes one slash of two
_URI = re.compile(
    rf"hf:/{{1,2}}(?P<repo>{_PART}/{_PART})(?:@(?P<revision>{_REVISION}))?(?:/(?P<file>[\w./-]+))?",
    re.ASCII,
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CACHED = re.compile(rf"models--({_PART})--({_PART})", re.ASCII)


@dataclass(frozen=True)
class HubName:
    """A model on the Hub, as written.

    Attributes:
        repo: ``org/name``.
        revision: branch, tag or commit; None for the repository's default branch.
        file: of ``hf://org/name/file``: one file in it; else empty.
    """

    repo: str
    revision: str | None = None
    file: str = ""

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


@dataclass(frozen=True)
class Origin:
    """Where a folder of the Hub's cache comes from."""

    repo: str
    commit: str

    def __str__(self) -> str:
        return f"{self.repo}@{self.commit[:12]}"


def hub_name(text: Path | str) -> HubName | None:
    """The name that `text` is; None if it can be none."""
    given = str(text)
    match = _URI.fullmatch(given) or _PLAIN.fullmatch(given)
    if match is None:
        return None
    found = match.groupdict()
    parts = [found["repo"], found["revision"] or "", found.get("file") or ""]
    if any(".." in part or "--" in parts[0] or part.endswith(("/", ".git")) for part in parts):
        return None
    return HubName(found["repo"], found["revision"], found.get("file") or "")


def is_commit(text: str) -> bool:
    """Whether it is a full commit id: 40 hexadecimal digits."""
    return _COMMIT.fullmatch(text) is not None


def origin_of(path: Path) -> Origin | None:
    """Which repository and commit a path in the Hub's cache belongs to; None for other paths.

    The cache keeps files at ``models--ORG--NAME/snapshots/COMMIT/FILE``.
    """
    found = _snapshot(path)
    return found[1] if found else None


def shown_name(path: Path | str) -> str | None:
    """``org/name@COMMIT/file`` for a path in the Hub's cache; None for other paths."""
    found = _snapshot(Path(path)) if "snapshots" in str(path) else None
    if found is None:
        return None
    folder, origin = found
    inside = Path(path).relative_to(folder).as_posix()
    return str(origin) if inside == "." else f"{origin}/{inside}"


def _snapshot(path: Path) -> tuple[Path, Origin] | None:
    for folder in (path, *path.parents):
        if folder.parent.name == "snapshots" and is_commit(folder.name):
            match = _CACHED.fullmatch(folder.parent.parent.name)
            return (folder, Origin(f"{match[1]}/{match[2]}", folder.name)) if match else None
    return None
