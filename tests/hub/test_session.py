"""Which hub is asked, with whose token, and which settings of huggingface_hub change?"""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

import adapters
from adapters.errors import ConfigError
from adapters.hub import endpoint, session, use


def test_use_from_now_on_and_for_a_block() -> None:
    assert endpoint() == constants.ENDPOINT == session.PUBLIC
    use("http://one.example/")
    assert endpoint() == "http://one.example"
    with use("https://two.example:8090/hub"):
        assert endpoint() == "https://two.example:8090/hub"
        with use(None):
            assert adapters.hub.endpoint() == constants.ENDPOINT
    assert endpoint() == "http://one.example"
    assert constants.ENDPOINT == session.PUBLIC


def test_a_block_that_fails_goes_back_too() -> None:
    with pytest.raises(KeyError), use("http://one.example"):
        raise KeyError
    assert endpoint() == constants.ENDPOINT


def test_the_default_is_the_one_of_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://mirror.example")
    assert endpoint() == "http://mirror.example"
    assert session.cache_folder() is None
    assert session.credentials() is None


@pytest.mark.parametrize("url", ["hub.example", "ftp://hub.example", "http://", "http://a b", "", "http://x/?q=1"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ConfigError, match=r"http://hub\.example\.org:8090"):
        use(url)
    assert endpoint() == constants.ENDPOINT


def test_a_stored_token_goes_to_its_own_hub_only(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.mkdir()
    (home / "token").write_text("hf_stored")
    assert session.credentials() is None  # huggingface_hub finds it
    with use("http://other.example"):
        assert session.credentials() is False
        assert session.credentials("given") == "given"
        monkeypatch.setenv("HF_TOKEN", "from the environment")
        assert session.credentials() == "from the environment"
        with use("http://third.example", token="chosen"):
            assert session.credentials() == "chosen"


def test_hubs_do_not_share_a_cache(home: Path) -> None:
    folders = set()
    for url in ("http://a.example", "http://a.example:81", "http://a.example/b"):
        with use(url):
            folders.add(session.cache_folder())
    assert len(folders) == 3
    assert all(folder and Path(folder).parent == home / "hubs" for folder in folders)


def test_xet_is_off_only_while_uploading_elsewhere() -> None:
    assert constants.HF_HUB_DISABLE_XET is False
    with session.plain_uploads():
        assert constants.HF_HUB_DISABLE_XET is False
    with use("http://other.example"), session.plain_uploads():
        assert constants.HF_HUB_DISABLE_XET is True
    assert constants.HF_HUB_DISABLE_XET is False
