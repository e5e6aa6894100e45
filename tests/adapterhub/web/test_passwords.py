"""Do wrong passwords run out, for the account and not for an address, without locking out its owner?"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest

from adapterhub import attempts
from adapterhub.http import BROWSER_COOKIE, SESSION_COOKIE
from tests.adapterhub.conftest import PASSWORD, HubServer

from .conftest import browser
from .test_forms import csrf

pytestmark = pytest.mark.slow  # each wrong password costs a hash, as it must

LONG = 10**9  # seconds: windows begin at multiples of their length, so this one ends in 2033


@pytest.fixture(params=["sqlite", "postgres"])
def hub(request: pytest.FixtureRequest, start_hub: Callable[..., HubServer]) -> HubServer:
    """A hub that takes three wrong passwords in a very long time, and any number of attempts from one address."""
    return start_hub(limits={"password": (3, LONG)}, db=request.param)


@pytest.fixture
def client(hub: HubServer) -> Iterator[httpx.Client]:
    with browser(hub) as made:
        yield made


def log_in(client: httpx.Client, name: str, password: str) -> httpx.Response:
    client.cookies.pop(SESSION_COOKIE, None)
    sent = {"name": name, "password": password, "next": "/docs"}
    return client.post("/login", data=sent, follow_redirects=False)


def tries(client: httpx.Client, name: str, number: int = 4, password: str = "guessed") -> list[int]:
    return [log_in(client, name, password).status_code for _ in range(number)]


def test_wrong_passwords_of_one_account_run_out(hub: HubServer, client: httpx.Client) -> None:
    assert tries(client, "alice") == [401, 401, 401, 429]
    refused = log_in(client, "ALICE", PASSWORD)
    assert refused.status_code == 429 and "wrong passwords" in refused.text and 'value="ALICE"' in refused.text
    assert 0 < int(refused.headers["retry-after"]) <= LONG
    assert log_in(client, "bob", PASSWORD).status_code == 303


def test_names_of_nobody_run_out_likewise(hub: HubServer, client: httpx.Client) -> None:
    assert tries(client, "nobody") == tries(client, "acme") == [401, 401, 401, 429]


def test_right_passwords_do_not_count(hub: HubServer, client: httpx.Client) -> None:
    for _ in range(5):
        client.cookies.clear()
        assert log_in(client, "alice", PASSWORD).status_code == 303
    client.cookies.clear()
    assert tries(client, "alice") == [401, 401, 401, 429]


def test_a_browser_that_was_here_before_is_not_locked_out_by_strangers(hub: HubServer, client: httpx.Client) -> None:
    with browser(hub) as stranger:
        assert log_in(client, "alice", PASSWORD).status_code == 303
        assert tries(stranger, "alice")[-1] == 429
        assert log_in(client, "alice", PASSWORD).status_code == 303
        assert log_in(stranger, "bob", PASSWORD).status_code == 303
        assert log_in(stranger, "alice", PASSWORD).status_code == 429  # it was here, but as bob


def test_a_known_browser_has_a_limit_too(hub: HubServer, client: httpx.Client) -> None:
    log_in(client, "alice", PASSWORD)
    assert tries(client, "alice") == [401, 401, 401, 429]
    with browser(hub) as stranger:
        assert log_in(stranger, "alice", PASSWORD).status_code == 303


def test_the_cookie_cannot_be_made_up_and_expires(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    cookie = attempts.remember(hub.hub, "Alice")
    known = attempts.known_browser(hub.hub, "alice", cookie)
    assert known and cookie.startswith(known)
    nonce, expires, signature = cookie.split(".")
    for other in (None, "", "a.b", f"0{nonce[1:]}x.{expires}.{signature}", f"{nonce}.{int(expires) + 1}.{signature}"):
        assert attempts.known_browser(hub.hub, "alice", other) == ""
    assert attempts.known_browser(hub.hub, "bob", cookie) == ""
    monkeypatch.setattr("adapterhub.signing.time.time", lambda: float(expires) + 1)
    assert attempts.known_browser(hub.hub, "alice", cookie) == ""


def test_a_new_window_begins_with_nothing(
    hub: HubServer, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tries(client, "alice")[-1] == 429
    later = attempts.time.time() + LONG
    monkeypatch.setattr(attempts.time, "time", lambda: later)
    assert tries(client, "alice") == [401, 401, 401, 429]


def test_the_cookie_is_kept_from_scripts(hub: HubServer, client: httpx.Client) -> None:
    (cookie,) = [
        text for text in log_in(client, "bob", PASSWORD).headers.get_list("set-cookie") if BROWSER_COOKIE in text
    ]
    assert "httponly" in cookie.lower() and "samesite=lax" in cookie.lower()


def test_the_current_password_cannot_be_guessed_with_a_session(hub: HubServer, client: httpx.Client) -> None:
    log_in(client, "bob", PASSWORD)
    form = {"csrf": csrf(client), "current": "guessed", "password": "something new"}
    assert [client.post("/settings/password", data=form).status_code for _ in range(4)] == [403, 403, 403, 429]
    with browser(hub) as elsewhere:
        assert log_in(elsewhere, "bob", PASSWORD).status_code == 303
