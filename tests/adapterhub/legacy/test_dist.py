"""The index in the old forms, as the old library reads it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapterhub import accounts
from adapterhub.changes import committing, manage
from adapterhub.changes.committing import Put
from adapterhub.hub import Hub
from adapterhub.ingest import ingest
from adapterhub.legacy import import_cards
from adapterhub.repos import repos

from . import old_cards

HEADER = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
WEIGHTS = struct.pack("<Q", len(HEADER)) + HEADER + b"\0\0\0\0"


async def fill(hub: Hub, folder: Path) -> None:
    """The old cards, of which one gets weights on its branch `2`, and another becomes private."""
    await import_cards(hub, old_cards.write(folder))
    async with hub.db.read() as conn:
        alice = await accounts.principal(hub.db, (await accounts.find_account(conn, "alice"))["id"])
        repo = await repos.find(conn, alice, "ukp/sst_pfeiffer")

    async def weights() -> Any:
        yield WEIGHTS

    blob = await ingest(hub, weights(), repo_id=repo.id, name="adapter.safetensors")
    put = Put("adapter.safetensors", blob.sha256, lfs=True)
    await committing.commit(hub, alice, repo, "2", [put], title="Add weights")
    await manage.set_private(hub, alice, "ukp/no-wiki", True)


@pytest.fixture(scope="module")
def client(shared_hub_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    shared_hub_server.call(lambda hub: fill(hub, tmp_path_factory.mktemp("old")))
    with shared_hub_server.client(None) as opened:
        yield opened


def test_index_of_a_model(client: httpx.Client) -> None:
    found = client.get("/dist/v2/index/bert-base-uncased.json").json()
    assert found["sentiment"]["sst-2"] == {
        "default": "adapters/ukp/sst_pfeiffer.json",
        "9076f36a74755ac4": {"versions": {"ukp": "adapters/ukp/sst_pfeiffer.json"}},
        **{
            key: {"versions": {"ukp": "adapters/ukp/sst_houlsby.json"}}
            for key in found["sentiment"]["sst-2"]
            if key not in ("default", "9076f36a74755ac4")
        },
    }
    assert len(found["sentiment"]["sst-2"]) == 3
    assert client.get("/dist/v2/index/google-bert/bert-base-uncased.json").json() == found
    missing = client.get("/dist/v2/index/bert-base-multilingual-cased.json")
    assert missing.status_code == 404  # its only adapter is private


def test_an_adapter(client: httpx.Client) -> None:
    found = client.get("/dist/v2/adapters/ukp/sst_pfeiffer.json").json()
    assert (found["config_id"], found["default_version"]) == ("9076f36a74755ac4", "2")
    assert found["files"]["1"] == {"url": "https://example.org/1.zip", "sha1": "aa", "sha256": "bb"}
    assert found["files"]["2"]["score"] == 92.5
    fetched = client.get(found["files"]["2"]["url"])
    assert fetched.status_code == 200 and fetched.content == WEIGHTS
    assert found["info"]["adapter_id"] == "@ukp/sst_pfeiffer"
    assert client.get("/dist/v2/adapters/ukp/no-wiki.json").status_code == 404
    assert client.get("/dist/v2/adapters/jane/sst_pfeiffer.json").status_code == 404


def test_an_adapter_with_another_name_than_its_file(client: httpx.Client) -> None:
    old, new = (client.get(f"/dist/v2/adapters/jane/{name}.json") for name in ("my adapter--x", "my-adapter-x"))
    assert old.status_code == new.status_code == 200
    assert old.json() == new.json()
    assert old.json()["info"]["adapter_id"] == "@jane/my adapter--x"


def test_all_adapters(client: httpx.Client) -> None:
    rows = {row["adapter_id"]: row for row in client.get("/dist/v2/all.json").json()}
    assert rows.keys() == {"@jane/my adapter--x", "@ukp/sst_houlsby", "@ukp/sst_pfeiffer"}
    row = rows["@ukp/sst_houlsby"]
    assert (row["source"], row["username"], row["model_name"]) == ("ah", "ukp", "bert-base-uncased")
    assert (row["task"], row["subtask"], row["sha1_checksum"]) == ("sentiment", "sst-2", "aa")
    assert row["adapter_config"]["reduction_factor"] == 2


def test_architectures(client: httpx.Client) -> None:
    answer = client.get("/dist/v2/architectures.json")
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert set(found) == {"houlsby", "houlsby+inv", "lohfink-rossi-leaveout", "pfeiffer", "pfeiffer+inv"}
    assert found["pfeiffer"]["reduction_factor"] == 16
