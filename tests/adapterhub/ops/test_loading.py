"""Adapters are loaded once after their upload, and what is found counts like any other check."""

import json

import pytest

from adapterhub.changes import committing, pulls
from adapterhub.changes.committing import Put
from adapterhub.checks import Check
from adapterhub.db import schema
from adapterhub.errors import Forbidden
from adapterhub.ops import loading
from tests.adapterhub.index.files import safetensors
from tests.adapterhub.ops.making import member, new_repo, rows, upload

CONFIG = json.dumps({"config": {"architecture": "lora", "r": 1}, "model_type": "bert", "hidden_size": 8}).encode()
WEIGHTS = safetensors({"encoder.layer.0.attention.self.query.loras.a.lora_A": (1, 8)})
ON = [{"load_checks": True}, {"load_checks": True, "db": "postgres"}]


async def push(hub, repo, files, **options):
    puts = [Put(path, await upload(hub, repo, data), lfs=False) for path, data in files.items()]
    return await committing.commit(hub, await member(hub), repo, "main", puts, title="Add files", **options)


async def reports(hub):
    found = {}
    for oid, checks in await rows(hub, schema.check_report, schema.check_report.c.oid, schema.check_report.c.checks):
        found[oid] = [(check["level"], check["message"]) for check in checks if check["id"] == "load.random"]
    return found


@pytest.fixture
def loaded(monkeypatch):
    """Folders that were loaded, with what was in them; a config that says so cannot be loaded."""
    seen = []

    async def load_check(folder):
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        seen.append(files)
        broken = b"broken" in files["adapter_config.json"]
        return Check("load.random", "error" if broken else "ok", "It was tried.")

    monkeypatch.setattr(loading, "load_check", load_check)
    return seen


@pytest.mark.parametrize("hub", ON, indirect=True)
def test_heads_are_loaded_once_and_a_failure_keeps_a_pull_request_out(hub, run, loaded):
    async def work():
        repo = await new_repo(hub)
        old = await push(hub, repo, {"adapter_config.json": b"{}", "adapter.safetensors": WEIGHTS})
        main = await push(hub, repo, {"adapter_config.json": CONFIG})
        pull = await push(hub, repo, {"adapter_config.json": CONFIG[:-1] + b', "broken": 1}'}, create_pull=True)
        bare = await new_repo(hub, "acme/bare")
        first, second = await loading.check_loading(hub), await loading.check_loading(hub)
        return repo, old, main, pull, bare, first, second, await reports(hub)

    repo, old, main, pull, _, first, second, found = run(work())
    assert (first, second) == (3, 0)
    assert found[old.oid] == []  # no longer a head
    assert found[main.oid] == [("ok", "It was tried.")]
    assert found[pull.oid] == [("error", "It was tried.")]
    assert sorted(map(sorted, loaded)) == [["adapter.safetensors", "adapter_config.json"]] * 2
    assert all(files["adapter.safetensors"] == WEIGHTS for files in loaded)
    assert list(hub.scratch.iterdir()) == []

    async def merge():
        await pulls.merge(hub, await member(hub), repo, pull.pull)

    with pytest.raises(Forbidden, match=r"load\.random"):
        run(merge())


@pytest.mark.parametrize("hub", ON[:1], indirect=True)
def test_a_few_at_a_time(hub, run, loaded):
    async def work():
        for number in range(3):
            await new_repo(hub, f"acme/number{number}")
        return [await loading.check_loading(hub, most=2) for _ in range(3)]

    assert run(work()) == [2, 1, 0]
    assert not loaded  # there is nothing to load in them, which is noted


def test_nothing_is_loaded_unless_the_hub_is_set_up_to(hub, run, loaded):
    async def work():
        await push(hub, await new_repo(hub), {"adapter_config.json": CONFIG, "adapter.safetensors": WEIGHTS})
        return await loading.check_loading(hub)

    assert run(work()) == 0
    assert not loaded
