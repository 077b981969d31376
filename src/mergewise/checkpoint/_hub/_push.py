"""Put a finished folder on the Hub, where the caller asked for that."""

from __future__ import annotations

from pathlib import Path

from mergewise.checkpoint._files import shown
from mergewise.checkpoint._hub import _client
from mergewise.checkpoint._hub_name import hub_name
from mergewise.errors import HubError

_OURS = (".mergewise", ".mergewise/**", ".mergewise-finished/**", ".cache/**", ".git/**")


def check_push(name: str) -> None:
    """See, before any work, whether a push to ``org/name`` could succeed.

    Raises:
        HubError: for a name that is none, without a token, or with ``HF_HUB_OFFLINE`` set.
        MissingExtraError: if `huggingface_hub` is not installed.
    """
    found = hub_name(name)
    if found is None or str(found) != name:
        raise HubError(f"push to {shown(name)}: a name such as org/name expected")
    hub = _client.library(f"push to {name}")
    if _client.offline():
        raise HubError(f"push to {name}: HF_HUB_OFFLINE is set; unset it, or leave out --push")
    if not hub.get_token():
        raise HubError(f"push to {name}: no token; log in first (`hf auth login`, or HF_TOKEN)")


def push(folder: Path, name: str, *, private: bool = False) -> str:
    """Upload a folder to the model ``org/name``, which is created if it is not there.

    Args:
        private: only of a model that is created now; one that is there stays as it is.

    Returns:
        The commit that was made.

    Raises:
        HubError: if the Hub refuses or cannot be reached; the folder is as it was.
    """
    check_push(name)
    with _client.session(f"push to {name}") as hub:
        api = hub.HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        made = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message="Merge, made with mergewise",
            ignore_patterns=list(_OURS),
        )
    return str(made.oid)
