"""Object ids against git itself."""

import os
import subprocess
from datetime import datetime, timezone

import pytest

from adapterhub.storage import git

FILES = {
    "README.md": b"# one\n",
    "a.txt": b"",
    "a/b.txt": b"deep",
    "a-b": b"sorts between a and a/",
    "sub/é ü.txt": "ünïcode".encode(),
    "sub/deeper/x.json": b"{}",
    "z": bytes(range(256)),
}


@pytest.fixture
def run(tmp_path):
    env = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}

    def run(*arguments, data=b"", **more):
        command = ["git", "-C", str(tmp_path), *arguments]
        return (
            subprocess.run(command, input=data, check=True, capture_output=True, env={**env, **more})
            .stdout.decode()
            .strip()
        )

    run("init", "-q")
    return run


def test_blob_oid_is_hash_object(run):
    for data in FILES.values():
        assert git.blob_oid(data) == run("hash-object", "--stdin", data=data)


def test_tree_and_commit_oids_are_gits_own(run, tmp_path):
    for path, data in FILES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        if not (tmp_path / path).exists():
            (tmp_path / path).write_bytes(data)
    run("add", ".")
    tree = run("write-tree")
    oids = [(path, git.blob_oid(data)) for path, data in FILES.items()]
    assert git.tree_oid(oids) == tree
    assert git.folder_oids(oids)["sub/deeper"] == run("rev-parse", f"{tree}:sub/deeper")
    assert set(git.folder_oids(oids)) == {"a", "sub", "sub/deeper"}

    date = datetime(2026, 11, 20, 17, 53, 57, tzinfo=timezone.utc)
    who = {
        f"GIT_{role}_{key}": value
        for role in ("AUTHOR", "COMMITTER")
        for key, value in (("NAME", "alice"), ("EMAIL", "alice@users.adapterhub"), ("DATE", "1795197237 +0000"))
    }
    first = run("commit-tree", tree, "-m", "first", **who)
    assert git.commit_oid(tree, None, "alice", "alice@users.adapterhub", date, "first", "") == first
    second = run("commit-tree", tree, "-p", first, "-m", "second\n\nwith a body", **who)
    assert git.commit_oid(tree, first, "alice", "alice@users.adapterhub", date, "second", "with a body") == second


def test_pointer_is_the_one_of_the_large_file_specification():
    assert git.lfs_pointer("ab" * 32, 12).decode().splitlines() == [
        "version https://git-lfs.github.com/spec/v1",
        "oid sha256:" + "ab" * 32,
        "size 12",
    ]


def test_hash_in_pieces_equals_hash_of_the_whole():
    data = bytes(range(256)) * 1000
    digest = git.BlobHash(len(data))
    for start in range(0, len(data), 999):
        digest.update(data[start : start + 999])
    assert digest.oid == git.blob_oid(data)
    assert git.BlobHash(None).oid is None
