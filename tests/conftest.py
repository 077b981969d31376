"""Its presence lets every test import the helper modules beside it (`small_models`, …)."""

import os
import signal

import pytest

from mergewise.constants import yield_processors

yield_processors()
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that asks the real Hub is a mistake
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # a shell starts what runs in the background so, and the tests of Ctrl-C would wait for ever
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A small Hub on this machine, which `huggingface_hub` takes for the Hub; an empty cache."""
    constants = pytest.importorskip("huggingface_hub.constants")
    from fake_hub import Hub, serving

    from mergewise.checkpoint import _hub

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with serving(Hub(large=1000)) as hub:
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        hub.cache = tmp_path / "cache"
        _hub.forget()
        yield hub
    _hub.forget()
