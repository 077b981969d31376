"""Models on the Hub: names, what they hold, headers by range, downloads; imports nothing large."""

from mergewise.checkpoint._hub._client import cache_folder
from mergewise.checkpoint._hub._download import (
    arrived,
    check_room,
    downloads,
    drop,
    fetch,
    here,
    missing,
    on_one_disk,
)
from mergewise.checkpoint._hub._header import AwayStamp, compared, header_of
from mergewise.checkpoint._hub._push import check_push, push
from mergewise.checkpoint._hub._repo import (
    AwayFile,
    away,
    forget,
    incomplete,
    listed,
    locate,
    repo_of,
)
from mergewise.checkpoint._hub_name import HubName, Origin, hub_name, origin_of

__all__ = [
    "AwayFile",
    "AwayStamp",
    "HubName",
    "Origin",
    "arrived",
    "away",
    "cache_folder",
    "check_push",
    "check_room",
    "compared",
    "downloads",
    "drop",
    "fetch",
    "forget",
    "header_of",
    "here",
    "hub_name",
    "incomplete",
    "listed",
    "locate",
    "missing",
    "on_one_disk",
    "origin_of",
    "push",
    "repo_of",
]
