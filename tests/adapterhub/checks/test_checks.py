"""Every check finds what it is for, and nothing else."""

from __future__ import annotations

import asyncio
import json

import pytest

from adapterhub.checks import CHECKS, CheckContext, run
from tests.adapterhub.checks.fixtures import (
    CONTEXT,
    FAILING,
    METHODS,
    PASSING,
    MemoryFiles,
    config,
    files,
    safetensors,
    weights,
)

IDS = [rule.id for rule in CHECKS]
CARD_OF_TRANSFORMERS = "---\nlibrary_name: transformers\ntags: []\n---\n\n# Model Card for Model ID\n"


def answers(case, check=None):
    repository, context = case if isinstance(case, tuple) else (case, CONTEXT)
    found = asyncio.run(run(repository, context))
    return [answer for answer in found if check in (None, answer["id"])]


def bad(case):
    return [answer for answer in answers(case) if answer["level"] != "ok"]


def test_registry_is_that_of_the_fixtures():
    assert len(set(IDS)) == len(IDS)
    assert set(IDS) == set(FAILING) == set(PASSING)
    assert all(FAILING.values())


def test_a_good_adapter_passes_every_check():
    found = answers(files())
    assert [(answer["id"], answer["level"]) for answer in found] == [(check, "ok") for check in IDS]
    assert all(answer["message"].endswith(".") and answer["link"] for answer in found)


@pytest.mark.parametrize(
    ("check", "case"), [(check, case) for check, cases in PASSING.items() for case in [files(), *cases]]
)
def test_passing(check, case):
    assert [answer["level"] for answer in answers(case, check)] in (["ok"], [])


@pytest.mark.parametrize(
    ("check", "level", "words", "case"), [(check, *case) for check, cases in FAILING.items() for case in cases]
)
def test_failing(check, level, words, case):
    found = answers(case, check)
    assert level in {answer["level"] for answer in found}, found
    assert any(words in answer["message"] for answer in found), found
    for answer in found:
        assert answer["level"] in ("warning", "error")
        assert answer["message"].endswith((".", "?"))
        assert answer["fix"].endswith(".")
        assert answer["link"] == f"/docs/checks#{check}"
        json.dumps(answer)


@pytest.mark.parametrize(
    "contents",
    [
        {},
        {".gitattributes": b"*.safetensors filter=lfs\n"},
        {"README.md": CARD_OF_TRANSFORMERS.encode()},
        {
            "README.md": CARD_OF_TRANSFORMERS.encode(),
            "config.json": b'{"model_type": "bert"}',
            "model.safetensors": safetensors({"bert.pooler.weight": (8, 8)}, float("nan")),
        },
        {"README.md": b"---\nmodel-index:\n- name: x\n  results: []\nbase_model: ./out\n---\n"},
    ],
)
def test_what_is_no_adapter_gets_no_noise(contents):
    assert bad(MemoryFiles(contents)) == []


def test_adapters_in_folders_are_checked_too():
    whole = files()
    nested = {path if path == "README.md" else f"a/{path}": data for path, data in whole.contents.items()}
    assert bad(MemoryFiles(nested)) == []
    nested["a/adapter_config.json"] = json.dumps(config(hidden_size=16)).encode()
    assert {answer["id"] for answer in bad(MemoryFiles(nested))} == {"weights.shape", "head.pair"}


def test_files_that_are_not_here_yet_are_not_judged():
    class DryRun(MemoryFiles):
        async def read(self, path, limit=0):
            from adapterhub.errors import EntryNotFound

            if path.endswith(".safetensors"):
                raise EntryNotFound(path)
            return await super().read(path, limit)

    found = answers(DryRun(files().contents))
    assert "weights.finite" not in {answer["id"] for answer in found}
    assert all(answer["level"] == "ok" for answer in found)


def test_weights_too_large_to_look_at_are_left_alone(monkeypatch):
    monkeypatch.setattr("adapterhub.checks.subject.FINITE_LIMIT", 100)
    assert answers(files(), "weights.finite") == []


def test_old_task_adapters_may_lack_the_invertible_adapter_of_their_language():
    inner = {**config()["config"], "inv_adapter": "nice", "inv_adapter_reduction_factor": 2}
    assert answers(weights(inner, type="text_task"), "weights.missing")[0]["level"] == "ok"
    assert answers(weights(inner), "weights.missing")[0]["level"] == "error"


def test_hostile_sizes_end_quickly():
    shapes = {f"bert.encoder.layer.{'9' * 5000}.output.adapters.imdb.adapter_up.bias": (8,), "adapters.imdb.x": ()}
    assert answers(weights(None, shapes), "weights.missing")
    deep = {**config()["config"], "reduction_factor": 1e-300}
    assert answers(weights(deep), "weights.shape")[0]["level"] == "error"
    for size in (10**4000, 1e308, -1, 0, "x", [], {"a": 1}):
        for name in ("r", "prefix_length", "phm_dim", "vector_length"):
            for inner, made in METHODS.values():
                assert answers(weights({**inner, name: size}, made), "weights.shape") is not None


def test_unknown_quota_says_nothing():
    assert answers((files(), CheckContext()), "size.quota") == []
