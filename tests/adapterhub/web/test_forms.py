"""What members do in the browser, by the same forms but without one: upload, discuss, merge, tokens, organisations."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest

from tests.adapterhub.conftest import PASSWORD, HubServer, Makers

from .conftest import browser, log_in
from .sample import SAMPLE, files, fill

CARD = "---\nlicense: mit\nbase_model: bert-base-uncased\ntags:\n- adapters\n---\n\n# New\n\nA **new** one.\n"


@pytest.fixture(scope="module")
def hub(hub_makers: Makers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A hub with sample data that these tests change."""
    with hub_makers.server(tmp_path_factory.mktemp("forms"), open_signup=True) as server:
        server.call(fill)
        yield server


@pytest.fixture(scope="module")
def alice(hub: HubServer) -> Iterator[httpx.Client]:
    with browser(hub) as client:
        log_in(client, "alice")
        yield client


@pytest.fixture(scope="module")
def bob(hub: HubServer) -> Iterator[httpx.Client]:
    with browser(hub) as client:
        log_in(client, "bob")
        yield client


def csrf(client: httpx.Client, path: str = "/settings/profile") -> str:
    match = re.search(r'name="csrf" value="([^"]+)"', client.get(path).text)
    assert match is not None
    return match[1]


def test_a_wrong_password_is_refused_and_the_name_kept(hub: HubServer) -> None:
    with browser(hub) as client:
        answer = client.post("/login", data={"name": "alice", "password": "guessed"})
    assert answer.status_code == 401
    assert 'value="alice"' in answer.text and "do not fit" in answer.text


@pytest.mark.parametrize("target", ["//evil.example", "https://evil.example", "/\\evil.example", "/\t/evil.example"])
def test_the_login_leads_to_no_other_site(bob: httpx.Client, target: str) -> None:
    answer = bob.get("/login", params={"next": target}, follow_redirects=False)
    assert answer.headers["location"] == "/"
    assert bob.get("/login?next=/docs", follow_redirects=False).headers["location"] == "/docs"


def test_the_cookie_is_kept_from_scripts_and_other_sites(hub: HubServer) -> None:
    with browser(hub) as client:
        answer = client.post("/login", data={"name": "bob", "password": PASSWORD}, follow_redirects=False)
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=lax" in cookie


@pytest.mark.parametrize("path", ["/settings/tokens", "/settings/profile", "/upload", "/logout", "/organizations/new"])
def test_a_form_without_its_token_or_from_elsewhere_is_refused(alice: httpx.Client, path: str) -> None:
    good = csrf(alice)
    assert alice.post(path, data={"name": "x"}).status_code == 403
    assert alice.post(path, data={"csrf": "0" * 32}).status_code == 403
    elsewhere = alice.post(path, data={"csrf": good}, headers={"Sec-Fetch-Site": "cross-site"})
    assert elsewhere.status_code == 403


def test_a_token_is_shown_once_and_works(hub: HubServer, alice: httpx.Client) -> None:
    made = alice.post("/settings/tokens", data={"csrf": csrf(alice), "name": "laptop", "role": "read", "expires": "30"})
    token = re.search(r"ahb_[A-Za-z0-9]{30,}", made.text)
    assert token is not None and made.headers["cache-control"] == "no-store"
    assert token[0] not in alice.get("/settings/tokens").text
    headers = {"Authorization": f"Bearer {token[0]}"}
    assert httpx.get(f"{hub.url}/api/whoami-v2", headers=headers, trust_env=False).json()["name"] == "alice"
    row = re.search(r'name="revoke" value="(\d+)"[^>]*>End', alice.get("/settings/tokens").text)
    assert row is not None
    alice.post("/settings/tokens/revoke", data={"csrf": csrf(alice), "revoke": row[1]})
    assert httpx.get(f"{hub.url}/api/whoami-v2", headers=headers, trust_env=False).status_code == 401


def test_files_become_a_repository(alice: httpx.Client) -> None:
    content = files(SAMPLE[0])
    answer = alice.post(
        "/upload",
        data={"csrf": csrf(alice), "namespace": "alice", "name": "fresh", "card": CARD, "action": "publish"},
        files=[("files", (path, content[path])) for path in ("adapter_config.json", "adapter.safetensors")],
    )
    assert answer.status_code == 200 and answer.url.path == "/alice/fresh"
    assert "A <strong>new</strong> one." in answer.text
    assert "adapter.safetensors" in alice.get("/alice/fresh/tree/main").text


def test_a_pickle_is_refused_and_leaves_nothing(alice: httpx.Client) -> None:
    answer = alice.post(
        "/upload",
        data={"csrf": csrf(alice), "namespace": "alice", "name": "danger", "card": CARD},
        files=[("files", ("model.safetensors", b"\x80\x04cos\nsystem\n."))],
    )
    assert answer.status_code == 422
    assert alice.get("/alice/danger").status_code == 404


def test_the_card_is_previewed_without_javascript_and_without_its_code(alice: httpx.Client) -> None:
    card = CARD + "<script>alert(1)</script>"
    fields = {"csrf": csrf(alice), "card": card, "action": "preview", "namespace": "alice", "name": "kept"}
    answer = alice.post("/upload", data=fields, files=[("files", ("", b""))])
    assert "A <strong>new</strong> one." in answer.text and 'value="kept"' in answer.text
    assert "<script>alert" not in answer.text
    part = alice.post("/upload/preview", data={"csrf": csrf(alice), "card": "---\nlicense: [\n---\n"})
    assert "note bad" in part.text


@pytest.mark.parametrize(
    "below",
    [
        "",
        "?revision=main",
        "/config",
        "/tree/feature%2Fone/a%20b?x=%2F&y=1",
        "/blob/main/README.md",
        "/commits/main?p=2",
        "/discussions",
        "/discussions/9",
    ],
)
def test_pages_under_a_former_name_lead_to_the_present_one(hub: HubServer, below: str) -> None:
    with hub.client() as owner, browser(hub) as visitor:
        if owner.get("/api/models/alice/present").status_code == 404:
            owner.post("/api/repos/create", json={"name": "former", "organization": "alice"}).raise_for_status()
            moved = {"fromRepo": "alice/former", "toRepo": "alice/present"}
            owner.post("/api/repos/move", json=moved).raise_for_status()
        answer = visitor.get(f"/alice/former{below}", follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (308, f"/alice/present{below}")
        assert answer.headers["cache-control"] == "private, no-cache" and not answer.content
        assert visitor.get(f"/Alice/Present{below}", follow_redirects=False).status_code != 308


def test_former_names_of_private_repositories_tell_nothing(hub: HubServer, alice: httpx.Client) -> None:
    with hub.client() as owner, browser(hub) as visitor:
        body = {"name": "hidden-one", "organization": "alice", "private": True}
        owner.post("/api/repos/create", json=body).raise_for_status()
        moved = {"fromRepo": "alice/hidden-one", "toRepo": "alice/hidden-two"}
        owner.post("/api/repos/move", json=moved).raise_for_status()
        assert alice.get("/alice/hidden-one/checks").url.path == "/alice/hidden-two/checks"
        found, missing = (visitor.get(f"/alice/{name}") for name in ("hidden-one", "hidden-nil"))
        assert found.status_code == missing.status_code == 404
        texts = [re.sub(r"hidden(-|%20| )(one|nil)", "", answer.text) for answer in (found, missing)]
        assert texts[0] == texts[1]


def test_a_suggestion_is_discussed_and_merged(alice: httpx.Client, bob: httpx.Client) -> None:
    card = files(SAMPLE[2])["README.md"].decode().replace("Low-rank updates", "Very low-rank updates")
    page = f"/acme/{SAMPLE[2].name}"
    fields = {"csrf": csrf(bob), "repo": page[1:], "card": card, "title": "Say how low", "action": "publish"}
    suggested = bob.post("/upload", data=fields, files=[("files", ("", b""))])
    assert suggested.url.path == f"{page}/discussions/1"
    assert "Very low-rank" not in alice.get(page).text
    url = suggested.url.path
    bob.post(url, data={"csrf": csrf(bob), "action": "comment", "body": "Is *this* clear?"})
    assert "Is <em>this</em> clear?" in alice.get(url).text
    assert bob.post(url, data={"csrf": csrf(bob), "action": "merge"}).status_code == 403
    assert alice.post(url, data={"csrf": csrf(alice), "action": "merge"}).status_code == 200
    assert "Very low-rank" in alice.get(page).text


def test_a_failing_check_keeps_a_pull_request_from_being_merged(alice: httpx.Client) -> None:
    url = "/alice/bert-sst2/discussions/3"
    assert "A check fails" in alice.get(url).text
    answer = alice.post(url, data={"csrf": csrf(alice), "action": "merge"})
    assert answer.status_code == 403 and "card.results" in answer.text


def test_discussions_are_closed_by_their_authors_and_opened_again(alice: httpx.Client, bob: httpx.Client) -> None:
    new = bob.post("/alice/roberta-sst2-ia3/discussions", data={"csrf": csrf(bob), "title": "Why?", "body": "So"})
    url = new.url.path
    for status in ("closed", "open"):
        page = bob.post(url, data={"csrf": csrf(bob), "action": status, "body": ""})
        assert f">{status}</span>" in page.text


def test_an_organisation_and_its_members(alice: httpx.Client, bob: httpx.Client) -> None:
    made = alice.post("/organizations/new", data={"csrf": csrf(alice), "name": "lab", "fullname": "The Lab"})
    assert made.url.path == "/lab" and "The Lab" in made.text
    members = "/organizations/lab/members"
    assert bob.post(members, data={"csrf": csrf(bob), "user": "bob", "role": "admin"}).status_code == 403
    alice.post(members, data={"csrf": csrf(alice), "user": "bob", "role": "write"})
    assert "<option>lab" in bob.get("/upload").text
    alice.post(members, data={"csrf": csrf(alice), "user": "bob", "role": "remove"})
    assert "<option>lab" not in bob.get("/upload").text


def test_settings_rename_hide_and_delete(alice: httpx.Client, bob: httpx.Client) -> None:
    fields = {"csrf": csrf(alice), "namespace": "alice", "name": "old", "card": CARD}
    alice.post("/upload", data=fields, files=[("files", ("", b""))])
    alice.post("/alice/old/settings", data={"csrf": csrf(alice), "action": "move", "new": "alice/new-name"})
    assert bob.get("/alice/old").status_code == bob.get("/alice/new-name").status_code == 200
    alice.post("/alice/new-name/settings", data={"csrf": csrf(alice), "action": "private"})
    assert bob.get("/alice/new-name").status_code == 404
    wrong = alice.post("/alice/new-name/settings", data={"csrf": csrf(alice), "action": "delete", "confirm": "new"})
    assert wrong.status_code == 400
    sure = {"csrf": csrf(alice), "action": "delete", "confirm": "alice/new-name"}
    alice.post("/alice/new-name/settings", data=sure)
    assert alice.get("/alice/new-name").status_code == 404


def test_a_yanked_adapter_leaves_the_lists_and_says_why(alice: httpx.Client, bob: httpx.Client) -> None:
    page = "/alice/roberta-squad-unipelt"
    fields = {"csrf": csrf(alice), "action": "yank", "reason": "Trained on the test set."}
    alice.post(f"{page}/settings", data=fields)
    assert "Trained on the test set." in bob.get(page).text
    assert page not in bob.get("/adapters?q=unipelt").text
    alice.post(f"{page}/settings", data={"csrf": csrf(alice), "action": "unyank"})
    assert "Trained on the test set." not in bob.get(page).text


def test_administration_is_for_administrators(alice: httpx.Client, bob: httpx.Client) -> None:
    assert bob.get("/admin").status_code == 403
    assert bob.post("/admin/accounts/bob", data={"csrf": csrf(bob), "quota": "9"}).status_code == 403
    changed = alice.post("/admin/accounts/bob", data={"csrf": csrf(alice), "quota": "1.5"})
    assert 'value="1.5"' in changed.text
    assert alice.post("/admin/accounts/bob", data={"csrf": csrf(alice), "quota": "much"}).status_code == 400
    assert "account.change" in alice.get("/admin?tab=audit").text


def test_the_password_changes_only_with_the_present_one(hub: HubServer) -> None:
    with browser(hub) as client:
        fields = {"name": "carol", "password": "first password"}
        assert client.post("/signup", data=fields).url.path == "/docs/start"
        wrong = {"csrf": csrf(client), "current": "guess", "password": "second password"}
        assert client.post("/settings/password", data=wrong).status_code == 403
        client.post("/settings/password", data={**wrong, "csrf": csrf(client), "current": "first password"})
        assert "carol" in client.get("/").text
        client.post("/logout", data={"csrf": csrf(client)})
        assert "Log in" in client.get("/").text
