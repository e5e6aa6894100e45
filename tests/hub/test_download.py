"""Is just what an adapter needs downloaded, is it what the hub has on record, and does it do without network?"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

import adapters
from adapters.checkpoint.layout import ADAPTER, FUSION, HEAD, SETUP_FILE
from adapters.errors import CheckpointError, CheckpointNotFound
from adapters.hub.locate import wanted_files
from tests.contract.cases import carrying
from tests.hub.fake import FakeHub, commit_of
from tests.tiny import build


def saved(folder: Path, **options: Any) -> dict[str, bytes]:
    carrying("bert", "lora").save_adapter(folder, "a", **options)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def repo(tmp_path: Path, fake: FakeHub) -> dict[str, bytes]:
    """Files of org/one, which also holds what no adapter needs."""
    pickles = saved(tmp_path / "pickle", use_safetensors=False)
    files = {**pickles, **saved(tmp_path / "safe"), "README.md": b"#", "evil.py": b"", "optimizer.pt": b"x"}
    fake.repos["org/one"] = {"main": files, "v1": {**files, "README.md": b"# 1"}}
    return files


def test_only_what_is_needed(repo: dict[str, bytes], fake: FakeHub) -> None:
    model = build("bert")
    model.load_adapter("org/one")
    assert fake.downloads() == [ADAPTER.safetensors, ADAPTER.config]
    reference = carrying("bert", "lora").state_dict()
    loaded = {key: value for key, value in model.state_dict().items() if ".loras." in key}
    assert loaded
    assert all(torch.equal(value, reference[key]) for key, value in loaded.items())


def test_pickles_only_where_they_are_asked_for_or_alone(repo: dict[str, bytes], fake: FakeHub) -> None:
    build("bert").load_adapter("org/one", use_safetensors=False)
    assert fake.downloads() == [ADAPTER.config, ADAPTER.pickle]
    fake.seen.clear()
    fake.repos["org/old"] = {"main": {name: repo[name] for name in (ADAPTER.config, ADAPTER.pickle)}}
    build("bert").load_adapter("org/old")
    assert fake.downloads() == [ADAPTER.config, ADAPTER.pickle]


@pytest.mark.parametrize("version", [None, "v1"])
def test_what_was_yanked_loads_with_a_warning(
    version: str | None, repo: dict[str, bytes], fake: FakeHub, caplog: pytest.LogCaptureFixture
) -> None:
    build("bert").load_adapter("org/one", version=version)
    assert not caplog.records
    fake.yanked["org/one"] = "Trained on the test set."
    assert build("bert").load_adapter("org/one", version=version) == "a"
    (record,) = caplog.records
    named = "Revision 'v1' of org/one" if version else "org/one"
    assert record.levelname == "WARNING" and f"{named} was yanked" in record.message
    assert "Trained on the test set." in record.message and f"{fake.url}/org/one" in record.message


@pytest.mark.parametrize("which", [ADAPTER.safetensors, ADAPTER.config])
def test_files_that_are_not_what_is_on_record(which: str, repo: dict[str, bytes], fake: FakeHub, home: Path) -> None:
    content = repo[which]
    fake.forged[which] = content[:-1] + bytes([content[-1] ^ 1])
    model = build("bert")
    with pytest.raises(CheckpointError, match=f"{which}.*its hash is"):
        model.load_adapter("org/one")
    assert list(model.adapters_config) == []
    left = [path for path in home.rglob("*") if path.is_file() and path.read_bytes() == fake.forged[which]]
    assert not left
    fake.forged.clear()
    assert model.load_adapter("org/one") == "a"


def test_without_network(repo: dict[str, bytes], fake: FakeHub, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    build("bert").load_adapter("org/one")
    fake.close()
    assert build("bert").load_adapter("org/one") == "a"
    assert "could not be reached, so the cache counts" in caplog.text
    caplog.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert build("bert").load_adapter("org/one") == "a"
    assert build("bert").load_adapter("org/one", version=commit_of(repo)) == "a"
    assert not caplog.text
    for name, options in (("org/two", {}), ("org/one", {"version": "v1"})):
        with pytest.raises(CheckpointNotFound, match=r"not in the local cache.*HF_HUB_OFFLINE"):
            build("bert").load_adapter(name, source="hf", **options)


def test_a_damaged_cache(repo: dict[str, bytes], fake: FakeHub, home: Path) -> None:
    build("bert").load_adapter("org/one")
    (weights,) = home.rglob(ADAPTER.safetensors)
    content = weights.read_bytes()
    weights.resolve().write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="its hash is"):
        build("bert").load_adapter("org/one", local_files_only=True)
    assert build("bert").load_adapter("org/one") == "a"


def test_equal_names_on_two_hubs(repo: dict[str, bytes], fake: FakeHub) -> None:
    build("bert").load_adapter("org/one")
    fake.close()
    with adapters.hub.use("http://127.0.0.1:9"), pytest.raises(CheckpointNotFound, match="not in the local cache"):
        build("bert").load_adapter("org/one", source="hf")


def test_what_is_missing(repo: dict[str, bytes], fake: FakeHub) -> None:
    fake.repos["org/nested"] = {"main": {f"first/{name}": content for name, content in repo.items()}}
    fake.repos["org/peft"] = {"main": {"adapter_config.json": b"{}", "adapter_model.safetensors": b""}}
    fake.repos["org/setup"] = {"main": {SETUP_FILE: b"{}"}}
    for name, options, said in (
        ("org/two", {}, "no repository 'org/two' on http://127.*HF_TOKEN.*list_adapters"),
        ("org/two", {"source": "hf"}, "no repository 'org/two' on http://127.*HF_TOKEN"),
        ("org/two", {"source": "local"}, "no folder or archive"),
        ("org/two", {"source": "web"}, "Allowed: local, hf, ah"),
        ("a/b/c", {"source": "hf"}, "cannot be the id"),
        ("./none", {}, "nothing on a hub can be called so"),
        ("org/one", {"version": "v2"}, "no revision 'v2'. Allowed: main, v1"),
        ("org/nested", {}, "There is one in first: pass subfolder='first'"),
        ("org/setup", {}, "use load_adapter_setup"),
    ):
        with pytest.raises(CheckpointNotFound, match=f"(?s){said}"):
            build("bert").load_adapter(name, **options)
    with pytest.raises(CheckpointNotFound, match=rf"no prediction head.*{HEAD.config}.*It holds: README"):
        build("bert").load_head("org/one")
    assert build("bert").load_adapter("org/nested", subfolder="first") == "a"


def test_token_and_version(repo: dict[str, bytes], fake: FakeHub) -> None:
    build("bert").load_adapter("org/one", version="v1", token="secret")
    assert {token for *_, token in fake.seen} == {"Bearer secret"}
    assert fake.seen[0][0] == "/api/models/org/one/revision/v1"


def test_files_of_set_ups() -> None:
    parts = {
        "a": (ADAPTER.config, ADAPTER.safetensors, ADAPTER.pickle),
        "b": (ADAPTER.config, ADAPTER.pickle),
        "a,b": (FUSION.config, FUSION.safetensors),
        "h": (HEAD.config, HEAD.safetensors),
        "deep/er": (ADAPTER.config, ADAPTER.safetensors),
    }
    files = [SETUP_FILE, "config.json", *(f"{folder}/{name}" for folder, names in parts.items() for name in names)]
    left_out = {"config.json", f"a/{ADAPTER.pickle}", f"deep/er/{ADAPTER.config}", f"deep/er/{ADAPTER.safetensors}"}
    assert set(wanted_files("x", files, SETUP_FILE)) == set(files) - left_out


def test_listing(repo: dict[str, bytes], fake: FakeHub) -> None:
    (info,) = adapters.list_adapters()
    assert (info.source, info.adapter_id, info.username) == ("hf", "org/one", "org")
    assert (info.task, info.subtask, info.sha1_checksum) == ("sentiment", "sst-2", commit_of(repo))
    assert adapters.list_adapters(task="sentiment") == adapters.list_adapters(task="sentiment/sst-2") == [info]
    assert adapters.list_adapters(task="nli") == adapters.list_adapters("roberta-base") == []
    full = adapters.get_adapter_info("org/one")
    assert full is not None and full.adapter_config is not None
    assert full.adapter_config["architecture"] == "lora"
    fake.index["sst-2"] = 200, {"id": "org/one", "revision": commit_of(repo)}
    assert adapters.get_adapter_info("sst-2") == full
    assert adapters.get_adapter_info("org/two") is None
    assert adapters.get_adapter_info("nothing") is None


def test_a_hub_that_is_not_there(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.close()
    monkeypatch.setattr(time, "sleep", lambda _: None)  # between the attempts of huggingface_hub
    with pytest.raises(adapters.errors.HubError, match=r"Listing adapters failed on http.*HF_HUB_OFFLINE"):
        adapters.list_adapters()
