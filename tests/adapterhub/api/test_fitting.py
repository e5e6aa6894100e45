"""What loads into a base model, ranked by a data set's scores, and what may be stacked on it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from adapterhub.hub import Hub
from adapterhub.index.compat import Shape, shape_in
from tests.adapterhub.conftest import HubServer

from .files import adapter, push

Hubs = pytest.mark.parametrize(
    "shared_hub_server", [{}, {"db": "postgres"}], indirect=True, ids=["sqlite", "postgres"], scope="module"
)


def of(model: str, model_type: str, width: int = 768, score: float | None = None, **more: Any) -> dict[str, bytes]:
    """An adapter of a model of some type and size."""
    result = "results:\n- {dataset: glue/sst2, split: validation, metric: accuracy, value: %s}\n"
    files = adapter(model=model, front="" if score is None else result % score, **more)
    config = json.loads(files["adapter_config.json"])
    files["adapter_config.json"] = json.dumps({**config, "model_type": model_type, "hidden_size": width}).encode()
    return files


async def fill(hub: Hub) -> None:
    for name, files, hidden in (
        ("acme/best", of("bert-base-uncased", "bert", score=0.95), False),
        ("acme/percent", of("google-bert/bert-base-uncased", "bert", score=94.5, config="lora"), False),
        ("acme/twin", of("bert-base-cased", "bert", score=0.9), False),
        ("acme/silent", of("bert-base-cased", "bert"), False),
        ("acme/large", of("bert-large-uncased", "bert", 1024, score=0.99), False),
        ("acme/roberta", of("roberta-base", "roberta", score=0.99), False),
        ("acme/hidden", of("bert-base-uncased", "bert", score=0.97, fill=b"\1\1\1\1"), True),
        ("acme/nli", of("bert-base-cased", "bert", task="nli/rte"), False),
        ("acme/english", of("bert-base-uncased", "bert", task="en/wiki"), False),
        ("acme/swahili", of("bert-base-cased", "bert", task="sw/wiki"), False),
    ):
        await push(hub, name, files, private=hidden)


@pytest.fixture(scope="module")
def server(shared_hub_server: HubServer) -> HubServer:
    shared_hub_server.call(fill)
    return shared_hub_server


def ask(server: HubServer, path: str, user: str | None = None, **query: Any) -> Any:
    with server.client(user) as client:
        answer = client.get(f"/api/v1{path}", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def names(rows: list[dict[str, Any]]) -> list[str]:
    return [row["id"].removeprefix("acme/") for row in rows]


SST = {"fits": "bert-base-uncased", "task": "sentiment", "subtask": "sst-2"}


@Hubs
def test_only_what_loads_is_listed(server: HubServer) -> None:
    fitting = {"best", "percent", "twin", "silent", "nli", "english", "swahili"}
    for model in ("bert-base-uncased", "google-bert/bert-base-uncased", "bert-base-cased"):
        assert set(names(ask(server, "/adapters", fits=model)["adapters"])) == fitting
    assert names(ask(server, "/adapters", fits="bert-large-uncased")["adapters"]) == ["large"]
    assert ask(server, "/adapters", fits="nobody/knows")["total"] == 0
    assert set(names(ask(server, "/adapters", "alice", fits="bert-base-cased")["adapters"])) == {*fitting, "hidden"}
    assert set(names(ask(server, "/adapters", fits="bert-base-cased", q="nli")["adapters"])) == {"nli"}


@Hubs
def test_the_best_of_a_data_set_come_first(server: HubServer) -> None:
    found = ask(server, "/adapters", **SST)["adapters"]
    assert [(row["id"], row["score"]) for row in found] == [
        ("acme/best", 0.95),
        ("acme/percent", 0.945),
        ("acme/twin", 0.9),
        ("acme/silent", None),
    ]
    walked, cursor = [], None
    while cursor is not None or not walked:
        page = ask(server, "/adapters", limit=1, **SST, **({"cursor": cursor} if cursor else {}))
        walked += names(page["adapters"])
        cursor = page["cursor"]
        assert page["total"] == 4
    assert walked == names(found)
    everywhere = ask(server, "/adapters", task="sentiment", subtask="sst-2", sort="score")["adapters"]
    assert {row["score"] for row in everywhere[:2]} == {0.99}
    assert ask(server, "/adapters", **{**SST, "sort": "downloads"})["adapters"][0]["score"] is None


@Hubs
def test_scores_need_a_data_set(server: HubServer) -> None:
    with server.client(None) as client:
        answer = client.get("/api/v1/adapters", params={"sort": "score", "task": "sentiment"})
    assert answer.status_code == 400 and "subtask" in answer.json()["error"]


@Hubs
def test_what_to_stack(server: HubServer) -> None:
    found = ask(server, "/stack", model="bert-base-cased", task="sentiment", subtask="sst-2")
    assert set(names(found["below"])) == {"english", "swahili"}
    assert names(found["above"]) == ["best", "percent", "twin", "silent"]
    found = ask(server, "/stack", model="bert-base-cased", language="sw")
    assert names(found["below"]) == ["swahili"]
    assert set(names(found["above"])) == {"best", "percent", "twin", "silent", "nli"}


@Hubs
def test_the_pages(server: HubServer) -> None:
    with server.client(None) as client:
        assert client.get("/models?name=bert-base-cased").headers["location"] == "/models/bert-base-cased"
        assert "/models/bert-base-cased" in client.get("/models").text
        page = client.get("/models/bert-base-cased?place=sentiment/sst-2").text
        assert page.index("/acme/best") < page.index("/acme/percent") < page.index("/acme/twin")
        assert "acme/large" not in page and "acme/nli</option>" in client.get("/models/bert-base-cased").text
        only = client.get("/models/bert-base-cased?only=1").text
        assert "/acme/twin" in only and '<a href="/acme/best"' not in only
        code = client.get("/models/bert-base-cased?below=acme/swahili&above=acme/nli").text
        assert "&#39;acme/swahili&#39;, load_as=" in code and "&#39;acme/nli&#39;, load_as=" in code


@Hubs
@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        ({"model_type": "bert", "hidden_size": 1024, "num_hidden_layers": 1}, "hidden_size=1024&layers=1"),
        ({"model_type": "bert", "d_model": 1024}, "hidden_size=1024"),
        ({"model_type": "bert", "text_config": {"n_embd": 1024, "n_layer": 1}}, "hidden_size=1024&layers=1"),
    ],
)
def test_a_config_that_is_pasted(server: HubServer, config: dict[str, Any], sizes: str) -> None:
    with server.client(None) as client:
        answer = client.post("/models", data={"config": json.dumps(config)})
        assert (answer.status_code, answer.headers["location"]) == (303, f"/models?model_type=bert&{sizes}")
        page = client.get(answer.headers["location"]).text
    assert "/acme/large" in page and "/acme/best" not in page


@Hubs
@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model_type": 3}', "[" * 100_000, '{"model_type": "bert"}'])
def test_a_text_that_is_no_config_is_refused(server: HubServer, text: str) -> None:
    with server.client(None) as client:
        answer = client.post("/models", data={"config": text})
    assert answer.status_code == 400 and "config" in answer.text


@Hubs
@pytest.mark.parametrize("query", ["hidden_size=-1", "hidden_size=x", "hidden_size=99999999999", "layers=0"])
def test_sizes_that_are_none_are_refused(server: HubServer, query: str) -> None:
    with server.client(None) as client:
        assert client.get(f"/models?model_type=bert&{query}").status_code == 400


def test_shapes_of_configs() -> None:
    assert shape_in({"model_type": "gpt2", "n_embd": 768, "n_layer": 12}) == Shape("gpt2", 768, 12)
    assert shape_in({"model_type": "x", "hidden_size": True, "dim": 2**40}) == Shape("x", None, None)
    assert not shape_in({"model_type": "y" * 65, "hidden_size": 8}).is_known
