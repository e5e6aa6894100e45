"""Finding adapters and looking into them, through the API."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from .files import adapter, weights

Get = Any


def ids(rows: list[dict[str, Any]]) -> set[str]:
    return {row["id"] for row in rows}


def test_tree(get: Get) -> None:
    _, (tasks, languages) = get("/tree")
    sentiment = next(task for task in tasks["tasks"] if task["id"] == "sentiment")
    sst = next(subtask for subtask in sentiment["subtasks"] if subtask["id"] == "sst-2")
    assert (tasks["type"], sentiment["count"], sst["count"], sst["metric"]) == ("text_task", 3, 3, "accuracy")
    assert (languages["type"], languages["count"]) == ("text_lang", 1)
    assert len(tasks["tasks"]) > 20 and len(languages["tasks"]) > 90


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({}, {"acme/sst", "acme/sst-lora", "bob/wiki", "bob/sst"}),
        ({"task": "sentiment", "base_model": "bert-base-uncased"}, {"acme/sst", "acme/sst-lora"}),
        ({"method": "lora"}, {"acme/sst-lora"}),
        ({"language": "en"}, {"bob/wiki"}),
        ({"q": "lora"}, {"acme/sst-lora"}),
        ({"q": "movie review"}, {"acme/sst", "acme/sst-lora", "bob/sst"}),
        ({"q": "English"}, {"bob/wiki"}),
        ({"q": "sentment roberta"}, {"bob/sst"}),
        ({"namespace": "bob", "type": "text_task"}, {"bob/sst"}),
        ({"reduction_factor_min": 20}, set()),
        ({"rank_max": 8}, {"acme/sst-lora"}),
        ({"head": "true"}, set()),
    ],
)
def test_lists(get: Get, query: dict[str, Any], found: set[str]) -> None:
    status, page = get("/adapters", **query)
    assert (status, ids(page["adapters"]), page["total"]) == (200, found, len(found))


def test_words_have_reasons_corrections_and_suggestions(get: Get) -> None:
    _, found = get("/adapters", q="movie reviews")
    assert {row["reason"] for row in found["adapters"]} == {"matches the data set SST-2"}
    assert (found["corrected"], found["near"]) == (None, [])
    assert get("/adapters", q="sentment")[1]["corrected"] == "sentiment"
    _, found = get("/adapters", q="question answring")
    assert (found["adapters"], found["near"][0]) == ([], "Question Answering")


@pytest.mark.parametrize("words", ["movie review", "sentment", "SST-2"])
def test_clients_find_the_same(shared_hub_server: Any, heads: dict[str, str], words: str) -> None:
    with shared_hub_server.client() as client:
        found = client.get("/api/models", params={"search": words, "filter": "adapters"}).json()
    assert {"acme/sst", "acme/sst-lora", "bob/sst"} == {model["id"] for model in found} - {"acme/secret"}


def test_pages_and_facets(get: Get) -> None:
    _, first = get("/adapters", limit=3)
    _, last = get("/adapters", limit=3, cursor=first["cursor"])
    assert len(first["adapters"]) == 3 and len(last["adapters"]) == 1 and last["cursor"] is None
    assert first["facets"]["base_model"] == {"bert-base-uncased": 3, "roberta-base": 1}


@pytest.mark.parametrize(
    "query", [{"limit": 0}, {"limit": "x"}, {"sort": "name"}, {"head": "perhaps"}, {"task": "a\0b"}, {"q": "x" * 300}]
)
def test_parameters_are_checked(get: Get, query: dict[str, Any]) -> None:
    status, body = get("/adapters", **query)
    assert status == 422 and next(iter(query)) in body["error"]


def test_one_adapter(get: Get, heads: dict[str, str]) -> None:
    status, found = get("/adapters/acme/sst")
    assert (status, found["id"], found["revision"]) == (200, "acme/sst", heads["acme/sst"])
    assert (found["method"], found["config_name"], found["license"]) == ("bottleneck", "seq_bn", "mit")
    assert found["evaluations"][0]["value"] == 0.93
    assert found["dependencies"] == [{"target": "bob/wiki", "note": "below"}]
    assert get("/adapters/bob/wiki")[1]["dependents"] == ["acme/sst"]
    assert get("/adapters/acme/nothing")[0] == 401  # a visitor may have to log in to see it
    assert get("/adapters/acme/sst", rev="nothing")[0] == 404


def test_an_older_revision(get: Get, shared_hub_server: Any) -> None:
    with shared_hub_server.client() as client:
        history = client.get("/api/models/acme/sst/commits/main").json()
    first = history[-1]["id"]
    status, found = get("/adapters/acme/sst", rev=first)
    assert (status, found["revision"], found["library"], found["evaluations"]) == (200, first, "other", [])


def test_names(get: Get, heads: dict[str, str]) -> None:
    status, found = get("/resolve", name="@acme/old", model="google-bert/bert-base-uncased", config="pfeiffer")
    assert (status, found["id"], found["revision"]) == (200, "acme/sst", heads["acme/sst"])
    status, found = get("/resolve", name="sst-2", model="bert-base-uncased")
    assert (found["id"], found["reason"], ids(found["others"])) == ("acme/sst-lora", "score", {"acme/sst"})
    status, found = get("/resolve", name="sentiment/sst-2")
    assert (status, ids(found["candidates"])) == (409, {"acme/sst", "acme/sst-lora", "bob/sst"})
    status, found = get("/resolve", name="sentiment/sst2")
    assert (status, found["near"][0]["name"]) == (404, "sentiment/sst-2")
    hidden, absent = (get("/resolve", name=f"acme/{name}") for name in ("secret", "sacret"))
    assert (hidden[0], hidden[1]["near"]) == (absent[0], absent[1]["near"]) == (404, [{"name": "acme/sst"}])
    assert get("/resolve", user="alice", name="acme/secret")[1]["id"] == "acme/secret"
    assert get("/resolve")[0] == 422


def test_leaderboard(get: Get) -> None:
    status, found = get("/leaderboard/sentiment/sst-2")
    assert [(line["rank"], line["id"], line["reported"]) for line in found["lines"]] == [
        (1, "acme/sst-lora", 95.5),
        (2, "acme/sst", 0.93),
    ]
    assert (found["metric"], found["higher_is_better"], found["missing"]) == ("accuracy", True, ["bob/sst"])
    status, found = get("/leaderboard/sentiment/sst2")
    assert status == 404 and "sentiment/sst-2" in found["near"]


def test_compatible(get: Get) -> None:
    _, found = get("/compatible", model="bert-base-uncased")
    assert ids(found["same"]) == {"acme/sst", "acme/sst-lora", "bob/wiki"}
    assert ids(found["fits"]) == {"bob/sst"}
    assert found["shape"]["hidden_size"] == 768
    assert get("/compatible")[0] == 400


def test_by_hash(get: Get, heads: dict[str, str]) -> None:
    public, private = (hashlib.sha256(weights(fill=fill)).hexdigest() for fill in (b"\0" * 4, b"\1" * 4))
    status, found = get(f"/by-hash/{public}")
    assert (status, ids(found)) == (200, {"acme/sst", "acme/sst-lora", "bob/wiki", "bob/sst"})
    assert {"id": "acme/sst", "revision": heads["acme/sst"], "path": "adapter.safetensors"}.items() <= found[0].items()
    assert get(f"/by-hash/{private}")[0] == get(f"/by-hash/{private}", user="bob")[0] == 404
    assert ids(get(f"/by-hash/{private}", user="alice")[1]) == {"acme/secret"}
    assert get("/by-hash/abc")[0] == 422


def test_snippets(get: Get) -> None:
    _, found = get("/snippet/acme/sst", rev="main")
    assert {"adapters", "curl"} <= ids(found)
    assert all("acme/sst" in item["code"] and "main" in item["code"] for item in found)
    assert ids(get("/snippet/acme/sst", library="curl")[1]) == {"curl"}
    assert get("/snippet/acme/sst", library="peft")[0] == 404


# ---- checks ---------------------------------------------------------------------------------------------------------


def test_checks_of_a_revision(get: Get, heads: dict[str, str]) -> None:
    status, found = get("/checks/acme/sst/main")
    assert (status, found["revision"]) == (200, heads["acme/sst"])
    assert found["errors"] == sum(check["level"] == "error" for check in found["checks"])
    assert get("/checks/acme/sst/refs%2Fheads%2Fmain")[1] == found
    assert get("/checks/acme/secret/main")[0] == 401
    assert get("/checks/acme/sst/none")[0] == 404


def described(files: dict[str, bytes]) -> list[dict[str, Any]]:
    def one(path: str, data: bytes) -> dict[str, Any]:
        if path.endswith(".safetensors"):
            return {
                "path": path,
                "size": len(data),
                "header": data[8 : 8 + int.from_bytes(data[:8], "little")].decode(),
            }
        return {"path": path, "size": len(data), "content": data.decode()}

    return [one(path, data) for path, data in files.items()]


def test_a_dry_run_says_what_the_commit_will_say(get: Get) -> None:
    files = described(adapter(front="results:\n- {dataset: glue/sst2, metric: accuracy, value: 95.5}\n", config="lora"))
    status, dry = get("/check", verb="POST", body={"repo": "acme/sst-lora", "files": files})
    _, real = get("/checks/acme/sst-lora/main")
    levels = [{check["id"]: check["level"] for check in report["checks"]} for report in (dry, real)]
    # What needs the tensors themselves is known of the commit only.
    assert status == 200 and {id: levels[1][id] for id in levels[0]} == levels[0]


def test_a_dry_run_finds_what_is_wrong(get: Get) -> None:
    files = [*described(adapter()), {"path": "old.bin", "size": 3}]
    files[2]["size"] += 1
    _, found = get("/check", verb="POST", body={"files": files})
    failed = {check["id"] for check in found["checks"] if check["level"] == "error"}
    assert {"files.format", "files.safetensors"} <= failed and found["errors"] >= 2


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"files": "x"},
        {"files": [{"path": "x"}]},
        {"files": [{"path": "x", "size": "3"}]},
        {"files": [], "more": 1},
        {"files": [{"path": "x", "size": True}]},
    ],
)
def test_bodies_are_checked(get: Get, body: Any) -> None:
    assert get("/check", verb="POST", body=body)[0] == 422


def test_paths_are_checked(get: Get) -> None:
    status, found = get("/check", verb="POST", body={"files": [{"path": "../x", "size": 1}]})
    assert status == 400 and "'../x'" in found["error"]
