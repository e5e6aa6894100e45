"""Is the adapter found that a name means, and is somebody with an unclear name told what there is?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

import adapters
from adapters.errors import CheckpointNotFound
from adapters.hub.names import Found, UnknownName, is_repo_id, resolve
from adapters.methods.config import get_adapter_config_hash
from tests.contract.cases import carrying
from tests.hub.fake import FakeHub, commit_of
from tests.tiny import build


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    carrying("bert", "lora").save_adapter(tmp_path / "saved", "a")
    return {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}


@pytest.mark.parametrize("name", ["org/name", "name", "o.r-g/n_a.me", "0/1"])
def test_ids(name: str) -> None:
    assert is_repo_id(name)


@pytest.mark.parametrize(
    "name", ["@org/name", "a/b@org", "a/b/c", "", "../a", "a/..b", "/a", "a/", "-a", "a b", "a--b"]
)
def test_other_names(name: str) -> None:
    assert not is_repo_id(name)


@pytest.mark.parametrize("name", ["sst-2", "sentiment/sst-2", "sentiment/sst-2@ukp", "@ukp/file"])
def test_names_of_the_index(name: str, files: dict[str, bytes], fake: FakeHub) -> None:
    fake.repos["ukp/one"] = {"main": {}, "old": files}
    fake.index[name] = 200, {"id": "ukp/one", "revision": commit_of(files)}
    assert build("bert").load_adapter(name) == "a"
    assert build("bert").load_adapter(name, source="ah") == "a"


def test_what_is_asked(files: dict[str, bytes], fake: FakeHub) -> None:
    fake.repos["ukp/one"] = {"main": files}
    fake.index["sst-2@ukp"] = 200, {"id": "ukp/one", "revision": None}
    model = build("bert")
    model.config.name_or_path = "org/bert"
    model.load_adapter("sst-2@ukp", config="pfeiffer", version="1")
    model.load_adapter("sst-2@ukp", model_name="org/other", token="t")
    model.load_adapter("sst-2@ukp", config="lora[r=4]")
    model.load_adapter("sst-2@ukp", config="9076f36a74755ac4")
    asked = [(query, token) for path, query, token in fake.seen if path == "/api/v1/resolve"]
    own = {"name": "sst-2@ukp", "model": "org/bert"}
    assert asked == [
        ({**own, "config": "pfeiffer", "version": "1"}, None),
        ({**own, "model": "org/other"}, "Bearer t"),
        ({**own, "config": get_adapter_config_hash(adapters.LoRAConfig(r=4).to_dict())}, None),
        ({**own, "config": "9076f36a74755ac4"}, None),
    ]


def test_paths_of_this_machine_are_not_sent(tmp_path: Path, fake: FakeHub) -> None:
    model = build("bert")
    model.config.name_or_path = str(tmp_path)
    with pytest.raises(UnknownName):
        model.load_adapter("sst-2@ukp")
    assert fake.seen == [("/api/v1/resolve", {"name": "sst-2@ukp"}, None)]


def test_a_repository_comes_first(files: dict[str, bytes], fake: FakeHub) -> None:
    fake.repos["sentiment/sst-2"] = {"main": files}
    assert build("bert").load_adapter("sentiment/sst-2") == "a"
    assert not [path for path, *_ in fake.seen if path == "/api/v1/resolve"]


CANDIDATES = [
    {"id": "one/a", "task": "sentiment", "subtask": "sst-2", "base_model": "bert"},
    {"id": "two/b", "method": "lora"},
    "three/c",
]


@pytest.mark.parametrize("wrap", [lambda body: body, lambda body: {"details": body}])
def test_several_adapters(wrap: Any, fake: FakeHub) -> None:
    fake.index["sst-2"] = 409, {"error": "Ambiguous.", **wrap({"candidates": CANDIDATES})}
    with pytest.raises(CheckpointNotFound) as caught:
        build("bert").load_adapter("sst-2", model_name="bert")
    said = str(caught.value)
    assert "'sst-2' (model 'bert') can mean 3 adapters" in said
    assert "\n  one/a (sentiment, sst-2, bert)\n  two/b (lora)\n  three/c\n" in said
    assert "model_name=..., config=..., '...@org'" in said
    assert not isinstance(caught.value, UnknownName)


def test_no_adapter_but_near_ones(fake: FakeHub) -> None:
    fake.index["sst-3"] = 404, {"error": "No.", "near": ["sentiment/sst-2", {"name": "nli/qnli"}]}
    with pytest.raises(UnknownName, match=r"(?s)'sst-3' on http://127.*\n  sentiment/sst-2\n  nli/qnli\n.*'@org/file'"):
        build("bert").load_adapter("sst-3")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((404, {"error": "Nothing here."}), "Nothing here.*list_adapters"),
        ((403, {"error": "Members only."}), "Members only.*HF_TOKEN"),
        ((200, {"id": "../evil"}), "no usable answer"),
        ((200, ["x"]), "no usable answer"),
        ((503, {}), "answered 503.*or pass the path"),
    ],
)
def test_other_answers(answer: tuple[int, Any], said: str, fake: FakeHub) -> None:
    fake.index["x"] = answer
    with pytest.raises(CheckpointNotFound, match=f"(?s){said}"):
        resolve("x")


def test_without_network_the_last_answer_counts(fake: FakeHub, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    fake.index["x"] = 200, {"id": "org/one", "revision": "v1"}
    assert resolve("x", "bert") == Found("org/one", "v1")
    fake.close()
    assert resolve("x", "bert") == Found("org/one", "v1")
    assert "answered last" in caplog.text
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve("x", "bert") == Found("org/one", "v1")
    with pytest.raises(CheckpointNotFound, match="could not be asked"):
        resolve("x", "roberta")


def test_the_public_hub_has_no_index() -> None:
    with pytest.raises(UnknownName, match=r"adapters\.hub\.use\('http://\.\.\.'\)"):
        build("bert").load_adapter("sentiment/sst-2@ukp")
