"""A card is judged before anything is uploaded."""

from __future__ import annotations

import pytest

from adapterhub.checks.card import validate_card
from tests.adapterhub.checks.fixtures import CARD, CONTEXT


@pytest.mark.parametrize(
    "content",
    [
        CARD,
        "",
        "# No front matter\n",
        "---\nlibrary_name: transformers\ntags: []\n---\n",
        "---\nlicense: mit\nmodel-index:\n- name: x\n  results: []\n---\n",
        "---\ntags:\n- generated_from_trainer\nmetrics:\n- accuracy\n---\n",
    ],
)
def test_cards_without_faults(content):
    assert validate_card(content, CONTEXT) == ([], [])


@pytest.mark.parametrize(
    ("content", "errors", "warnings"),
    [
        ("---\nlicense: mit\ntags: [\n---\n", ["Line 4"], []),
        ("---\ntags: [adapters]\n---\n", [], ["no 'license'"]),
        ("---\nlicense: mit\ntags: ['adapterhub:a b']\n---\n", ["adapterhub:<task>/<subtask>"], []),
        ("---\nlicense: mit\ntags: [adapterhub:sentimant]\n---\n", [], ["Did you mean 'sentiment'"]),
        ("---\nlicense: The MIT License\n---\n", ["not an id of a licence"], []),
        ("---\nlicense: mit\ntags: 3\nbase_model_relation: x\n---\n", ["'base_model_relation' is 'x'"], []),
        (CARD.replace("0.93", "-1"), ["not in its range 0 to 100"], []),
        (CARD.replace("accuracy", "goodness"), [], ["'goodness' is not known"]),
    ],
)
def test_faults(content, errors, warnings):
    found = validate_card(content, CONTEXT)
    for texts, words in zip(found, (errors, warnings), strict=True):
        assert len(texts) == len(words), texts
        assert all(word in text for word, text in zip(words, texts, strict=True))
