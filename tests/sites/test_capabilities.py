"""Does what docs/capabilities.md says happen? For types of trained adapters; for others: `test_discovery.py`."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from tests.sites.test_described import FURTHER
from tests.sites.test_discovery import STYLES
from tests.tiny import TINY_MODELS
from tests.zoo import DESCRIBED, METHODS, assert_documented, inputs_of, probe, sample_of, small_model

KNOWN = sorted(
    {*(tiny.model_type for tiny in TINY_MODELS.values()), *FURTHER, *DESCRIBED, "bert-generation"} - set(STYLES)
)
"""Types that are described by hand, or have files of the AdapterHub libraries."""


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "zoo.py"))


@pytest.mark.slow
@pytest.mark.parametrize("model_type", KNOWN)
def test_a_type_of_trained_adapters(model_type: str) -> None:
    model = small_model(model_type)
    found = probe(model, inputs_of(model), model_type, sample_of(model_type))
    assert found.failures == {}
    assert_documented(model_type, found)


def test_the_samples_try_every_method() -> None:
    for types in (KNOWN, STYLES):
        assert {method for model_type in types for method in sample_of(model_type)} == set(METHODS)


def test_the_page_is_made_of_the_records(script: dict[str, Any]) -> None:
    records, made = script["read"]()
    if records:
        assert script["PAGE"].read_text(encoding="utf-8") == script["page"](records, made), "run scripts/zoo.py --page"


def test_failures_are_counted_and_shown(script: dict[str, Any]) -> None:
    good = {"verified": ["acts", "trains", "Parallel", "goes"]}
    bad = {"verified": ["acts", "goes"], "trains": "failed: no gradient: x", "Parallel": "refused: Why. Because."}
    record = {"roles": {"attn.q": 2}, "refused": {}, "unnamed": 0}
    records = {
        "one": {**record, "methods": dict.fromkeys(METHODS, good)},
        "two": {**record, "methods": {**dict.fromkeys(METHODS, good), "lora": bad}},
        "three": {"none": "no forward pass succeeds: no"},
    }
    counted = {words: (count, of) for words, count, of in script["counts"]({k: records[k] for k in ("one", "two")})}
    assert [value for words, value in counted.items() if "goal" in words] == [(1, 2), (1, 2)]
    assert counted["with a check that failed"] == (1, 2)
    page = script["page"](records, {})
    assert "lora, trains failed: no gradient: x (1)" in page and "lora, Parallel refused: Why (1)" in page
    assert "| `two` | ✗ | ✓ |" in page and "no forward pass succeeds: no (1)" in page and "`one` | ✓" in page
