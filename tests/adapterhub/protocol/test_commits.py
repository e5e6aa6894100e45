"""Do commits land once, all of them, and only those that are well formed and allowed?"""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from adapterhub import accounts, quotas
from adapterhub.db import schema
from adapterhub.hub import Hub
from tests.adapterhub.conftest import HubServer
from tests.adapterhub.protocol.wire import batch, commit, create, file, history, large, post_commit, remove, send, text


def head(client: httpx.Client, repo: str) -> str:
    return str(client.get(f"/api/models/{repo}").json()["sha"])


# ---- sent again -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_parent", [False, True])
def test_a_commit_that_is_sent_again_is_made_once(shared_hub_server: HubServer, with_parent: bool) -> None:
    with shared_hub_server.client() as client:
        repo = create(client, f"alice/again-{with_parent}")
        commit(client, repo, file("old.txt", b"old"))
        data = text(2_000_000, repo)
        send(client, repo, data)
        lines = [file("a.txt", b"a"), large("large.txt", data), remove("old.txt")]
        parent = head(client, repo) if with_parent else None
        first = commit(client, repo, *lines, parent=parent)
        assert commit(client, repo, *lines, parent=parent) == first
        assert len(history(client, repo)) == 3


def test_only_the_same_commit_counts_as_sent_again(shared_hub_server: HubServer) -> None:
    with shared_hub_server.client() as client:
        repo = create(client, "alice/not-again")
        start = head(client, repo)
        commit(client, repo, file("a.txt", b"a"), title="A", parent=start)
        assert post_commit(client, repo, file("a.txt", b"a"), title="B", parent=start).status_code == 412
        assert post_commit(client, repo, file("a.txt", b"b"), title="A", parent=start).status_code == 412
        commit(client, repo, file("b.txt", b"b"), title="B")
        stale = post_commit(client, repo, file("a.txt", b"a"), title="A", parent=start)
        assert stale.status_code == 412 and head(client, repo) in stale.json()["error"]
        assert post_commit(client, repo, remove("c.txt")).status_code == 404
        assert len(history(client, repo)) == 3


def test_a_commit_that_changes_nothing_is_not_made(shared_hub_server: HubServer) -> None:
    with shared_hub_server.client() as client:
        repo = create(client, "alice/nothing")
        first = commit(client, repo, file("a.txt", b"a"))
        assert commit(client, repo, file("a.txt", b"a"), title="Another title") == first


# ---- two at once ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [25, pytest.param(50, marks=pytest.mark.slow)])
def test_commits_of_two_clients_all_land(shared_hub_server: HubServer, number: int) -> None:
    repo, made = f"acme/two-{number}", []
    with shared_hub_server.client() as client:
        create(client, repo)

        def work(name: str) -> None:
            with shared_hub_server.client() as mine:
                for i in range(number):
                    made.append(
                        commit(mine, repo, file(f"{name}/{i}.txt", f"{name} {i}".encode()), title=f"{name} {i}")
                    )

        threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "two")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = history(client, repo)
        assert len(found) == 2 * number + 1 and set(made) == set(found[:-1])
        files = {item["rfilename"] for item in client.get(f"/api/models/{repo}").json()["siblings"]}
        assert files == {".gitattributes", *(f"{name}/{i}.txt" for name in ("one", "two") for i in range(number))}


# ---- what is refused ------------------------------------------------------------------------------------------------

BAD_LINES: list[tuple[str, Any]] = [
    ("no JSON", "nonsense"),
    ("no object", [1, 2]),
    ("no value", {"key": "file"}),
    ("no path", {"key": "file", "value": {"content": "aGk="}}),
    ("path is a number", {"key": "file", "value": {"path": 3, "content": "aGk="}}),
    ("content is no base64", {"key": "file", "value": {"path": "a", "content": "%%%"}}),
    ("content is missing", {"key": "file", "value": {"path": "a"}}),
    ("another encoding", {"key": "file", "value": {"path": "a", "content": "hi", "encoding": "utf-8"}}),
    ("unknown key", {"key": "symlink", "value": {"path": "a"}}),
    ("oid is short", {"key": "lfsFile", "value": {"path": "a", "algo": "sha256", "oid": "abc"}}),
    ("oid was not sent", large("a", b"never sent")),
    ("another algorithm", {"key": "lfsFile", "value": {"path": "a", "algo": "md5", "oid": "0" * 64}}),
    ("deeply nested", '{"key":"file","value":' + "[" * 100_000 + "]" * 100_000 + "}"),
    ("outside", file("../a", b"x")),
    ("absolute", file("/etc/passwd", b"x")),
    ("git", file(".git/config", b"x")),
    ("backslash", file("a\\b", b"x")),
    ("not normal", file("e\u0301.txt", b"x")),
    ("surrogate", '{"key":"file","value":{"path":"\\ud800","content":"aGk="}}'),
    ("case", file("readme.MD", b"x")),
    ("file is a folder", file("README.md/x", b"x")),
    ("removed outside", remove("../../x")),
]


@pytest.fixture(scope="module")
def plain_repo(shared_hub_server: HubServer) -> str:
    with shared_hub_server.client() as client:
        repo = create(client, "alice/plain")
        commit(client, repo, file("README.md", b"# Hi\n"))
    return repo


@pytest.mark.parametrize("line", [line for _, line in BAD_LINES], ids=[name for name, _ in BAD_LINES])
def test_lines_that_are_refused_change_nothing(shared_hub_server: HubServer, plain_repo: str, line: Any) -> None:
    with shared_hub_server.client() as client:
        before = head(client, plain_repo)
        header = json.dumps({"key": "header", "value": {"summary": "x"}})
        body = f"{header}\n{line if isinstance(line, str) else json.dumps(line)}\n"
        answer = client.post(f"/api/models/{plain_repo}/commit/main", content=body)
        assert answer.status_code in (400, 404, 422) and answer.json()["error"], answer.text
        assert head(client, plain_repo) == before
    assert not list(shared_hub_server.settings.scratch.iterdir())


async def everything(hub: Hub) -> tuple[set[str], set[str]]:
    """Names of all bytes, and of all rows that tell of some."""
    async with hub.db.read() as conn:
        rows = set((await conn.execute(sa.select(schema.blob.c.sha256))).scalars())
    return {name async for name in hub.blobs.names()}, rows


async def leave_room(hub: Hub, room: int | None) -> None:
    """Gives alice room for so many more bytes; None: as many as the hub allows."""
    async with hub.db.write() as conn:
        alice = await accounts.find_account(conn, "alice")
        quota = None if room is None else (await quotas.usage(hub, conn, alice["id"])).used + room
        await conn.execute(sa.update(schema.account).where(schema.account.c.id == alice["id"]).values(quota=quota))


@pytest.mark.parametrize("last", ["one too many", "malformed", "no room"])
def test_a_commit_that_is_refused_leaves_none_of_its_files(
    shared_hub_server: HubServer, plain_repo: str, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    """Not even those of a hundred good lines before the bad one."""
    before = shared_hub_server.call(everything)
    lines = [file(f"{i}.txt", f"{i} {last}".encode() * 1000) for i in range(100)]
    if last == "one too many":
        monkeypatch.setattr("adapterhub.protocol.ndjson.MAX_FILES", 99)
    elif last == "malformed":
        lines.append(file("../a", b"x"))
    else:
        monkeypatch.setattr("adapterhub.protocol.ndjson._CHECKED_EVERY", 100_000)
        shared_hub_server.call(lambda hub: leave_room(hub, 700_000))
    with shared_hub_server.client() as client:
        answer = post_commit(client, plain_repo, *lines)
    shared_hub_server.call(lambda hub: leave_room(hub, None))
    assert answer.status_code in (400, 403), answer.text
    assert shared_hub_server.call(everything) == before
    assert not list(shared_hub_server.settings.scratch.iterdir())


def test_a_path_that_is_named_twice_is_one_file(
    shared_hub_server: HubServer, plain_repo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapterhub.protocol.ndjson.MAX_FILES", 1)
    with shared_hub_server.client() as client:
        commit(client, plain_repo, file("twice.txt", b"one"), remove("twice.txt"), file("twice.txt", b"two"))
        assert client.get(f"/{plain_repo}/resolve/main/twice.txt").text == "two"


@pytest.mark.parametrize(
    ("body", "words"),
    [("", "no header"), ('{"key":"header","value":{"summary":""}}', "title"), ('{"key":"header","value":{}}', "title")],
)
def test_a_commit_needs_a_header_with_a_title(
    shared_hub_server: HubServer, plain_repo: str, body: str, words: str
) -> None:
    with shared_hub_server.client() as client:
        answer = client.post(f"/api/models/{plain_repo}/commit/main", content=body)
    assert answer.status_code == 400 and words in answer.json()["error"]


@pytest.mark.parametrize(
    ("revision", "status"),
    [("nope", 404), ("v1", 404), ("0" * 40, 400), ("refs/tags/v1", 400), ("refs/pr/99", 404), ("a..b", 400)],
)
def test_commits_go_to_branches_and_pull_requests_only(
    shared_hub_server: HubServer, plain_repo: str, revision: str, status: int
) -> None:
    with shared_hub_server.client() as client:
        client.post(f"/api/models/{plain_repo}/tag/main", json={"tag": "v1"})
        answer = post_commit(client, plain_repo, file("b.txt", b"b"), revision=revision)
        assert answer.status_code == status, answer.text


def test_a_pointer_of_git_lfs_is_refused(shared_hub_server: HubServer, plain_repo: str) -> None:
    """Its object id is that of the large file: the two trees would be one."""
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12\n"
    with shared_hub_server.client() as client:
        answer = post_commit(client, plain_repo, file("model.gguf", pointer))
    assert answer.status_code == 422 and "git lfs pull" in answer.json()["error"]


def test_bytes_of_others_are_not_taken_by_their_hash(shared_hub_server: HubServer) -> None:
    """To know the SHA-256 of a private file is not to have it."""
    secret = b"secret " * 300_000
    with shared_hub_server.client() as alice, shared_hub_server.client("bob") as bob:
        send(alice, create(alice, "alice/secret", private=True), secret)
        repo = create(bob, "bob/thief")
        answer = post_commit(bob, repo, large("x.txt", secret))
        assert answer.status_code == 400 and "were not uploaded" in answer.json()["error"]
        assert "actions" in batch(bob, repo, secret).json()["objects"][0]


# ---- agreement with git ---------------------------------------------------------------------------------------------


def test_object_ids_are_those_of_git(shared_hub_server: HubServer, tmp_path: Path) -> None:
    files = {"README.md": b"# Hi\n", "a/b/c.json": b"{}", "uni \u00e9.txt": b"\xc3\xa9"}
    with shared_hub_server.client() as client:
        repo = create(client, "alice/as-git")
        oid = commit(client, repo, *(file(path, data) for path, data in files.items()), title="T")
        shown = client.get(f"/api/models/{repo}/tree/main", params={"recursive": "true"}).json()
        first = client.get(f"/{repo}/resolve/main/.gitattributes").content

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q")
    git("config", "core.quotePath", "false")
    for path, data in {**files, ".gitattributes": first}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    git("-c", "core.autocrlf=false", "add", ".")
    listed = [line.split(maxsplit=3) for line in git("ls-tree", "-r", "-t", git("write-tree")).splitlines()]
    assert {(path, oid) for _, _, oid, path in listed} == {(item["path"], item["oid"]) for item in shown}
    assert len(oid) == 40


# ---- pull requests --------------------------------------------------------------------------------------------------


def open_pull(
    client: httpx.Client, repo: str, *lines: dict[str, Any], title: str = "A proposal", parent: str | None = None
) -> int:
    answer = post_commit(client, repo, *lines, title=title, parent=parent, create_pr="1")
    assert answer.status_code == 200, answer.text
    return int(answer.json()["pullRequestUrl"].rsplit("/", 1)[1])


def test_only_its_author_and_members_commit_to_a_pull_request(shared_hub_server: HubServer) -> None:
    with shared_hub_server.client() as alice, shared_hub_server.client("bob") as bob:
        repo = create(alice, "alice/pulls")
        theirs, mine = open_pull(bob, repo, file("b.txt", b"b")), open_pull(alice, repo, file("a.txt", b"a"))
        commit(bob, repo, file("b.txt", b"b2"), revision=f"refs/pr/{theirs}")
        commit(alice, repo, file("c.txt", b"c"), revision=f"refs/pr/{theirs}")
        for revision in (f"refs/pr/{mine}", "main", "refs/pr/99", f"refs/pr/0{theirs}"):
            answer = post_commit(bob, repo, file("evil.txt", b"x"), revision=revision)
            assert answer.status_code == 403, (revision, answer.text)


def test_merging(shared_hub_server: HubServer) -> None:
    with shared_hub_server.client() as client:
        repo = create(client, "alice/merging")
        commit(client, repo, file("a.txt", b"a"), file("b.txt", b"b"))
        fits = open_pull(client, repo, file("a.txt", b"a2"), remove("b.txt"))
        clashes = open_pull(client, repo, file("a.txt", b"a3"))
        address = f"/api/models/{repo}/discussions"
        assert client.post(f"{address}/{fits}/merge").status_code == 200
        assert client.post(f"{address}/{fits}/merge").status_code == 409
        assert client.get(f"/{repo}/resolve/main/a.txt").text == "a2"
        assert client.head(f"/{repo}/resolve/main/b.txt").status_code == 404
        assert client.get(f"{address}/{clashes}").json()["filesWithConflicts"] == ["a.txt"]
        refused = client.post(f"{address}/{clashes}/merge")
        assert refused.status_code == 409 and "a.txt" in refused.json()["error"]
        late = post_commit(client, repo, file("a.txt", b"a4"), revision=f"refs/pr/{fits}")
        assert late.status_code == 403 and "merged" in late.json()["error"]
        draft = client.post(address, json={"title": "Later", "pullRequest": True}).json()["num"]
        assert client.post(f"{address}/{draft}/merge").status_code == 409
        talk = client.post(address, json={"title": "Talk"}).json()["num"]
        assert client.post(f"{address}/{talk}/merge").status_code == 404


def test_a_pull_request_may_begin_at_an_older_commit(shared_hub_server: HubServer) -> None:
    with shared_hub_server.client() as alice, shared_hub_server.client("bob") as bob:
        repo = create(alice, "alice/older")
        start = commit(alice, repo, file("a.txt", b"a"), file("b.txt", b"b"))
        commit(alice, repo, file("a.txt", b"a2"), file("c.txt", b"c"))
        fits = open_pull(bob, repo, file("b.txt", b"b2"), parent=start)
        clashes = open_pull(bob, repo, file("a.txt", b"a3"), parent=start)
        assert history(bob, repo, f"refs%2Fpr%2F{fits}")[1:] == history(bob, repo, start)
        address = f"/api/models/{repo}/discussions"
        assert bob.get(f"{address}/{clashes}").json()["filesWithConflicts"] == ["a.txt"]
        assert alice.post(f"{address}/{clashes}/merge").status_code == 409
        assert alice.post(f"{address}/{fits}/merge").status_code == 200
        files = {name: alice.get(f"/{repo}/resolve/main/{name}.txt").text for name in "abc"}
        assert files == {"a": "a2", "b": "b2", "c": "c"}


def test_a_pull_request_begins_only_at_a_commit_of_its_branch(shared_hub_server: HubServer) -> None:
    with shared_hub_server.client() as client:
        repo, other = create(client, "alice/base"), create(client, "alice/elsewhere")
        foreign = commit(client, other, file("a.txt", b"a"))
        client.post(f"/api/models/{repo}/branch/dev").raise_for_status()
        aside = commit(client, repo, file("b.txt", b"b"), revision="dev")
        for parent in ("0" * 40, foreign, aside, aside[:8]):
            answer = post_commit(client, repo, file("c.txt", b"c"), parent=parent, create_pr="1")
            assert answer.status_code == 412 and "no pull request can begin" in answer.json()["error"], answer.text
        assert client.get(f"/api/models/{repo}/discussions").json()["count"] == 0


def test_a_pull_request_with_a_failing_check_is_not_merged(shared_hub_server: HubServer) -> None:
    config = {"config": {"reduction_factor": "many"}, "model_name": "bert-base-uncased"}
    with shared_hub_server.client() as client:
        repo = create(client, "alice/checked")
        number = open_pull(client, repo, file("adapter_config.json", json.dumps(config).encode()))
        refused = client.post(f"/api/models/{repo}/discussions/{number}/merge")
        assert refused.status_code == 403 and "checks fail" in refused.json()["error"], refused.text
        commit(client, repo, remove("adapter_config.json"), revision=f"refs/pr/{number}")
        commit(client, repo, file("notes.txt", b"n"), revision=f"refs/pr/{number}")
        assert client.post(f"/api/models/{repo}/discussions/{number}/merge").status_code == 200
