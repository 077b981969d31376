"""What went wrong with the Hub, in words; no address, no token."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from mergewise.checkpoint._files import shown
from mergewise.errors import HubError, MergewiseError

_TOKEN = re.compile(r"hf_[A-Za-z0-9_-]{8,}|(?i:bearer)\s+\S+")
_NETWORK = ("httpx", "httpcore", "h11", "requests", "urllib3", "ssl", "socket")


def explained(error: Exception, what: str) -> HubError | None:
    """An error of `huggingface_hub` or below in our words; None for what is no such thing.

    Args:
        what: what was asked for, such as ``org/name@main``.
    """
    from huggingface_hub import errors as hub

    if isinstance(error, hub.GatedRepoError):
        return HubError(
            f"{what}: gated on the Hub: accept its conditions on its page there, then log in "
            "(`hf auth login`, or HF_TOKEN)"
        )
    if isinstance(error, hub.RepositoryNotFoundError):
        return HubError(
            f"{what}: no such folder here, and the Hub has no such model, or not for you; check "
            "the name, or log in if it is private (`hf auth login`, or HF_TOKEN)"
        )
    if isinstance(error, hub.RevisionNotFoundError):
        return HubError(f"{what}: the model is on the Hub, this revision of it is not; check it")
    if isinstance(error, hub.OfflineModeIsEnabled):
        return HubError(f"{what}: not in the cache, and HF_HUB_OFFLINE is set; unset it, or fetch "
                        "it where there is a network")  # fmt: skip
    if isinstance(error, hub.RemoteEntryNotFoundError):
        return HubError(f"{what}: the Hub lists this file, but does not have it; try again")
    if isinstance(error, hub.HfHubHTTPError):
        return HubError(f"{what}: {_refusal(error)}")
    return _lower(error, what)


def _refusal(error: object) -> str:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    said = printable(getattr(error, "server_message", None) or "")
    told = f" ({said})" if said else ""
    if status == 401:
        return f"the Hub does not accept the token{told}; log in anew (`hf auth login`, HF_TOKEN)"
    if status == 403:
        return f"the Hub does not allow this with your token{told}; check the token's permissions"
    if status == 429:
        return f"the Hub asks for fewer requests{told}; wait a few minutes, or log in"
    return f"the Hub answered with status {status}{told}; try again later"


def _lower(error: Exception, what: str) -> HubError | None:
    """Errors below the Hub's own: connections, answers that make no sense, files."""
    from huggingface_hub import errors as hub

    kind = type(error)
    if of_network(error):
        return HubError(
            f"{what}: no such folder here, and the Hub cannot be reached ({kind.__name__}); check "
            "the network, or set HF_HUB_OFFLINE=1 to use what is in the cache"
        )
    cause = error.__cause__
    if isinstance(error, hub.LocalEntryNotFoundError) and isinstance(cause, Exception):
        return explained(cause, what)
    if isinstance(error, hub.LocalEntryNotFoundError):
        return HubError(f"{what}: neither in the cache, nor can the Hub be reached; try again")
    if isinstance(error, hub.FileMetadataError | hub.HFValidationError):
        return HubError(f"{what}: {printable(str(error)) or kind.__name__}")
    if isinstance(error, OSError) and error.errno:
        return HubError(f"{what}: cannot be kept in the cache: {error.strerror}; make room there, "
                        "or set HF_HOME to another folder")  # fmt: skip
    if isinstance(error, OSError | ValueError | KeyError | TypeError | AttributeError):
        return HubError(f"{what}: what the Hub sent cannot be used: {printable(str(error))}")
    return None


def of_network(error: BaseException) -> bool:
    """Whether a connection failed, or was cut."""
    below = type(error).__module__.startswith(_NETWORK)
    return below or isinstance(error, ConnectionError | TimeoutError)


@contextmanager
def explaining(what: str) -> Iterator[None]:
    """Turn errors of `huggingface_hub` into `HubError`; others pass.

    Raises:
        HubError: saying what was asked for, why it failed and what to do.
    """
    try:
        yield
    except MergewiseError:
        raise
    except Exception as error:
        found = explained(error, what)
        if found is None:
            raise
        raise found from None


def _token() -> str | None:
    from huggingface_hub import get_token

    found: str | None = get_token()
    return found


def printable(text: str, limit: int = 200) -> str:
    """Text of a server for a message: one line, control characters escaped, tokens removed."""
    plain = _TOKEN.sub("***", " ".join(text.split()))
    if token := _token():
        plain = plain.replace(token, "***")
    if not plain.isprintable():
        plain = shown(plain, limit)
    return plain if len(plain) <= limit else f"{plain[:limit]}…"
