"""Does every client that we promise to serve do all its work here, with no errors but the intended ones?"""

from __future__ import annotations

from typing import Any

import pytest

from tests.adapterhub.conftest import HubServer
from tests.adapterhub.protocol.conftest import VERSIONS, Program


class Refused:
    """An error with a status, of a kind, whose text has some words."""

    def __init__(self, status: int | None, words: str = "", kind: str = "HfHubHTTPError") -> None:
        self.status, self.words, self.kind = status, words, kind

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, dict)
            and other.get("status") == self.status
            # Older clients raise the error of `requests` where they do not know more.
            and (other.get("error") == self.kind or (self.kind, other.get("error")) == ("HfHubHTTPError", "HTTPError"))
            and self.words.lower() in other["message"].lower()
        )

    def __repr__(self) -> str:
        return f"Refused({self.status}, {self.words!r}, {self.kind!r})"


FILES = [
    ".gitattributes",
    "README.md",
    "adapter.safetensors",
    "adapter_config.json",
    "empty.txt",
    "notes/a.txt",
    "sub/notes.txt",
    "uni é 漢字.txt",
]
INFO = {
    "id": "alice/demo",
    "author": "alice",
    "private": False,
    "tags": [
        "adapter-transformers",
        "adapterhub:sentiment/sst-2",
        "adapters",
        "base_model:adapter:google-bert/bert-base-uncased",
        "base_model:google-bert/bert-base-uncased",
        "bert",
        "dataset:glue",
        "en",
        "license:apache-2.0",
        "safetensors",
    ],
    "library_name": "adapter-transformers",
    "files": FILES,
    "license": "apache-2.0",
    "has date": True,
    "config": ["adapter_transformers", "adapters"],
}
EXPECTED: dict[str, Any] = {
    "whoami": ["alice", ["acme"], "write"],
    "whoami_with_a_bad_token": Refused(401, "invalid user token"),
    "repo_exists_before": False,
    "create": ["/alice/demo", "alice/demo"],
    "create_with_exist_ok": "alice/demo",
    "create_again": Refused(409, "alice/demo exists already"),
    "create_in_a_foreign_namespace": Refused(403, "namespace 'alice'"),
    "create_private_in_an_organisation": True,
    "repo_exists_after": [True, True],
    "upload_folder": [True, ["The adapter", "initial commit"]],
    "upload_folder_again": [True, ["The adapter", "initial commit"]],
    "upload_file": ["A note", "The adapter", "initial commit"],
    "upload_a_pickle_by_name": Refused(400, "safetensors", "BadRequestError"),
    "upload_a_pickle_in_disguise": Refused(422, "'notes/b.txt' is a pickle"),
    "upload_a_broken_card": Refused(None, "Line 3 of the card", "ValueError"),
    "model_info": INFO,
    "model_info_of_files": [True, True, 0],
    "list_models_by_tag": [["alice/demo"], ["alice/demo"], []],
    "list_models_by_words": [["alice/demo"], []],
    "list_models_private": [["acme/hidden"], [], []],
    "list_files": FILES,
    "tree": [*FILES[:5], "notes", "sub", "uni é 漢字.txt"],
    "tree_of_a_folder": [["sub/notes.txt", "A note"]],
    "tree_of_a_missing_folder": Refused(404, 'nowhere does not exist on "main"', "EntryNotFoundError"),
    "paths_info": ["README.md", "sub", "uni é 漢字.txt"],
    "file_exists": [True, False, False],
    "safetensors_metadata": [48, 12 * (2 * 48 * 768 + 48 + 768)],
    "download_small": "sst-2",
    "download_large": [True, True],
    "download_unusual_names": ["é", "", "notes"],
    "download_at_a_commit": ["*", "*"],
    "download_a_missing_file": Refused(404, "nope.json", "EntryNotFoundError"),
    "a_missing_file_is_remembered": True,
    "download_at_a_missing_revision": Refused(404, "no branch, tag or commit 'nope'", "RevisionNotFoundError"),
    "download_from_a_missing_repo": Refused(404, "", "RepositoryNotFoundError"),
    "snapshot": [FILES, True, True],
    "snapshot_into_a_folder": ["adapter_config.json"],
    "card": ["adapter-transformers", "adapterhub:sentiment/sst-2", "bert"],
    "branches": ["main", "feat/x", "v1"],
    "create_branch_again": Refused(409, "Reference already exists: refs/heads/feat/x"),
    "commit_to_a_branch": ["v1", "V", "A note"],
    "look_at_a_branch": [True, ["v.txt"]],
    "tags": [["1.0"], True],
    "create_tag_again": Refused(409, "Reference already exists: refs/tags/1.0"),
    "delete_branch_and_tag": [["main", "feat/x"], []],
    "delete_the_default_branch": Refused(403, "default branch"),
    "pull_request_with_a_file": [1, "refs/pr/1", False, "pr"],
    "pull_request_with_a_folder": [2, True],
    "pull_request_made_first": [3, True, "2"],
    "discussions": [
        4,
        [
            [4, "A question", False],
            [3, "Step by step", True],
            [2, "Upload folder using huggingface_hub", True],
            [1, "A proposal", True],
        ],
    ],
    "comment": ["What do you think?", ["comment"]],
    "pull_request_details": ["A proposal", "open", "bob", True, "refs/heads/main", "A\tpr.txt"],
    "close_and_reopen": ["closed", "open", "open"],
    "merge_as_a_stranger": Refused(403, "write access"),
    "merge": ["merged", "pr", "A proposal (#1)"],
    "refs_of_pull_requests": ["refs/pr/1", "refs/pr/2", "refs/pr/3"],
    "commit_on_a_stale_parent": Refused(412, "Get its newest commit, then try again"),
    "commit_on_the_right_parent": [False, True, True],
    "delete_file": False,
    "delete_folder": [],
    "delete_a_missing_file": Refused(404, "n.txt", "EntryNotFoundError"),
    "a_write_with_a_token_that_reads": Refused(403, "role 'write'"),
    "a_write_by_a_stranger": Refused(403, "create_pr=True"),
    "a_write_by_nobody": Refused(401, "token"),
    "file_system": [["alice/demo/sub/notes.txt"], ["alice/demo/adapter_config.json"], True],
    "file_system_writes": "by fsspec",
    "make_private": [True, True],
    "private_for_nobody": Refused(401, "", "RepositoryNotFoundError"),
    "private_for_a_stranger": Refused(404, "", "RepositoryNotFoundError"),
    "private_download_by_nobody": Refused(401, "", "RepositoryNotFoundError"),
    "auth_check": None,
    "move": ["acme/moved", "pr"],
    "cached_without_a_network": "by fsspec",
    "delete": [False, False],
    "delete_again": Refused(404, "", "RepositoryNotFoundError"),
}
OLDEST, *OTHERS, _NEWEST = VERSIONS


def check(told: dict[str, Any]) -> None:
    """Compares a scenario's steps with what is expected of them."""
    steps = dict(told["steps"])
    poor = steps.pop("upload_a_poor_card")
    assert len(poor["value"]) == 1 and "license" in poor["value"][0]
    assert list(steps) == list(EXPECTED)
    expected = {name: value if isinstance(value, Refused) else {"value": value} for name, value in EXPECTED.items()}
    assert steps == expected


def test_the_newest_client(hub_server: HubServer, program: Program) -> None:
    check(program("scenario.py", hub_server))


@pytest.mark.parametrize("version", [OLDEST, *(pytest.param(v, marks=pytest.mark.slow) for v in OTHERS)])
def test_older_clients(hub_server: HubServer, program: Program, version: str) -> None:
    told = program("scenario.py", hub_server, version=version)
    assert told["version"] == version
    check(told)


@pytest.mark.slow
@pytest.mark.parametrize("hub_server", [{"db": "postgres", "blobs": "s3"}], indirect=True)
@pytest.mark.parametrize("version", [OLDEST, *OTHERS, None])
def test_with_postgresql_and_s3(hub_server: HubServer, program: Program, version: str | None) -> None:
    check(program("scenario.py", hub_server, version=version))
