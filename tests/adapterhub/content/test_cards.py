"""Is front matter read as its author meant it, and can nothing in it hurt?"""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import pytest
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.content import cards
from adapterhub.content.cards import Card, InvalidCard, Result


def front(yaml: str) -> dict[str, Any]:
    return cards.parse(f"---\n{yaml}\n---\nbody\n").data


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("NO", "NO"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("1", 1),
        ("-3", -3),
        ("0.93", 0.93),
        ("90.0", 90.0),
        ("1.10", "1.10"),
        ("007", "007"),
        ("+1", "+1"),
        ("1_000", "1_000"),
        ("1e3", "1e3"),
        ("0x10", "0x10"),
        ("0o17", "0o17"),
        ("12:30", "12:30"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("nan", "nan"),
        ("inf", "inf"),
        ("2026-11-21", "2026-11-21"),
        ("2026-11-21T10:00:00Z", "2026-11-21T10:00:00Z"),
        ("99999999999999999999", "99999999999999999999"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("!!str 1", "1"),
        ("[no, 1.10, 2]", ["no", "1.10", 2]),
        ("{a: {b: c}}", {"a": {"b": "c"}}),
        ("|\n  two\n  lines", "two\nlines\n"),
        ("<<", "<<"),
    ],
)
def test_values(text: str, value: Any):
    found = front(f"key: {text}")["key"]
    assert found == value
    assert type(found) is type(value)


def test_names_stay_texts():
    assert front("no: 1\n1.10: 2\ntrue: 3\nnull: 4") == {"no": 1, "1.10": 2, "true": 3, "null": 4}


@pytest.mark.parametrize("start", ["---\n", "\ufeff---\n", "\n\n---\n", "--- \n"])
@pytest.mark.parametrize("line", ["\n", "\r\n"])
def test_the_parts_of_a_card(start: str, line: str):
    card = cards.parse((start + "license: mit\n---\n# Title\n---\nrest\n").replace("\n", line))
    assert card.data == {"license": "mit"}
    assert card.body == "# Title\n---\nrest\n".replace("\n", line)


def test_cards_without_front_matter():
    assert cards.parse("# Title\n---\na: b\n---\n") == Card({}, "# Title\n---\na: b\n---\n")
    assert cards.parse("") == Card({}, "")
    assert cards.parse("---\n---\nbody") == Card({}, "body")
    assert cards.parse("---\n# only a comment\n---\nbody") == Card({}, "body")
    assert cards.parse("----\na: b\n") == Card({}, "----\na: b\n")


LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 11))


@pytest.mark.parametrize(
    ("yaml", "line", "text"),
    [
        ("a: [1, 2", 3, "expected"),
        ("license: mit\na: 'open", 4, "end of stream"),
        ("a: b: c", 2, "mapping values"),
        ("a: 1\nb: 2\na: 3", 4, "'a' stands here twice"),
        ("a: 1\n\tb: 2", 3, "cannot start any token"),
        ("- a\n- b", 2, "must map names to values"),
        ("just text", 2, "must map names to values"),
        ("? [a]\n: b", 2, "a name must be a text"),
        ("a: !!python/object/apply:os.system [id]", 2, "tag"),
        ("a: !custom x", 2, "tag"),
        ("a: !!int 3", 2, "tag"),
        ("a: *nothing", 2, "refers to nothing"),
        ("a: &a [*a]", 2, "refers to nothing"),
        ("a: &x 1\nb: [" + "*x, " * 101 + "]", 3, "more than 100 aliases"),
        (LAUGHS, 7, "more than 20000 values"),
        ("a: " + "[" * 30 + "]" * 30, 2, "nested more than 20 deep"),
        ("a: " + "{a: " * 30 + "}" * 30, 2, "nested more than 20 deep"),
        ("a: " + "[" * 60_000, 2, "nested more than 20 deep"),
        ("a: 1\n--- \nb: 2\n...\n", None, ""),
        ("a: " + "x" * 70_000, 1, "larger than 64 KiB"),
        ("a: \x00", None, "not YAML"),
        ("a: \ud800", None, "not YAML"),
    ],
)
def test_what_cannot_be_read(yaml: str, line: int | None, text: str):
    start = time.process_time()
    if not text:
        assert front(yaml) == {"a": 1}  # the first line '---' ends the front matter
        return
    with pytest.raises(InvalidCard) as caught:
        front(yaml)
    assert text in str(caught.value)
    assert caught.value.line == line
    assert time.process_time() - start < 1


def test_front_matter_must_end():
    with pytest.raises(InvalidCard, match=r"Line 1 .* does not end"):
        cards.parse("---\nlicense: mit\n# Title\n")


@pytest.mark.parametrize(
    "pattern", ["a\n", "? ", "- ", "[", "{", "a: &a", "'", '"\\', "#\n", "|\n", "!", "%", "a: \n", "*a ", "&a "]
)
def test_hostile_front_matter_is_read_quickly(pattern: str):
    text = pattern * (60_000 // len(pattern))
    start = time.process_time()
    with contextlib.suppress(InvalidCard):
        front(text)
    assert time.process_time() - start < 2


def test_aliases_work():
    assert front("a: &x [1, 2]\nb: *x\nc: {d: *x}") == {"a": [1, 2], "b": [1, 2], "c": {"d": [1, 2]}}


@given(st.text(max_size=200) | st.text("-:[]{}&*!?|>'\"#%@, \n\tab01", max_size=80))
def test_random_front_matter(text: str):
    with contextlib.suppress(InvalidCard):
        json.dumps(front(text))


@pytest.mark.parametrize(
    ("value", "items"),
    [(None, []), ("en", ["en"]), (["en", "de"], ["en", "de"]), ([1, None, {}, " "], ["1"]), ({}, []), ("", [])],
)
def test_as_list(value: Any, items: list[str]):
    assert cards.as_list(value) == items


def test_fields():
    card = cards.parse(
        "---\nlicense: other\nlicense_name: my-own\nlanguage: no\ndatasets: [glue]\nbase_model: bert-base-uncased\n"
        "base_model_relation: adapter\ntags: [x, 'adapterhub:sentiment/sst-2']\n---\n"
    )
    assert cards.license(card) == "my-own"
    assert cards.languages(card) == ["no"]
    assert cards.datasets(card) == ["glue"]
    assert cards.base_models(card) == ["bert-base-uncased"]
    assert cards.relation(card) == "adapter"
    assert cards.adapterhub_place(card) == ("sentiment", "sst-2")
    empty = Card()
    assert (cards.license(empty), cards.languages(empty), cards.adapterhub_place(empty)) == (None, [], (None, None))


@pytest.mark.parametrize(
    ("tags", "place"),
    [
        ("adapterhub:nli/multinli", ("nli", "multinli")),
        (["adapterhub:nli"], ("nli", None)),
        (["adapterhub:am/wikipedia-amharic/20240320"], ("am", "wikipedia-amharic/20240320")),
        (["adapterhub:", "adapterhub:a/b"], ("a", "b")),
        (["adapterhub"], (None, None)),
        ({"adapterhub:a/b": 1}, (None, None)),
    ],
)
def test_places(tags: Any, place: Any):
    assert cards.adapterhub_place(Card({"tags": tags})) == place


def test_results_that_the_client_writes():
    """`huggingface_hub` writes the card: what it calls an `EvalResult` comes back."""
    data = ModelCardData(
        model_name="x",
        license="mit",
        eval_results=[
            EvalResult(
                task_type="text-classification",
                dataset_type="glue",
                dataset_name="GLUE",
                dataset_config="sst2",
                dataset_split="validation",
                metric_type="accuracy",
                metric_value=0.931,
            ),
            EvalResult("text-classification", "imdb", "IMDb", "f1", 90.10),
        ],
    )
    card = cards.parse(ModelCard(f"---\n{data.to_yaml()}\n---\n# x\n").content)
    problems: list[str] = []
    assert cards.results(card, problems) == [
        Result("text-classification", "glue/sst2", "validation", "accuracy", 0.931),
        Result("text-classification", "imdb", None, "f1", 90.1),
    ]
    assert problems == []


def test_our_own_results():
    card = cards.parse(
        "---\nresults:\n- {dataset: glue/sst2, split: test, metric: accuracy, value: 0.90}\n"
        "- {metric: f1, value: 3}\n---\n"
    )
    assert cards.results(card) == [
        Result(None, "glue/sst2", "test", "accuracy", 0.9),
        Result(None, None, None, "f1", 3.0),
    ]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"results": "x"}, "'results' must be a list."),
        ({"results": ["x"]}, "results[0] must map names to values, but is 'x'."),
        ({"results": [{"metric": "f1"}]}, "results[0] must have a 'metric' and a number as 'value'"),
        ({"results": [{"metric": "f1", "value": "high"}]}, "value: high"),
        ({"results": [{"metric": "f1", "value": "nan"}]}, "value: nan"),
        ({"results": [{"metric": "f1", "value": True}]}, "value: True"),
        ({"model-index": [{"results": [{"metrics": [{"value": 1}]}]}]}, "model-index[0].results[0].metrics[0]"),
        ({"model-index": {}}, "'model-index' must be a list."),
    ],
)
def test_results_that_cannot_be_understood(data: dict[str, Any], problem: str):
    problems: list[str] = []
    assert cards.results(Card(data), problems) == []
    assert len(problems) == 1
    assert problem in problems[0]


BODY = """
<!-- This card was made by hand. -->
[![build](https://example.org/badge.svg)](https://example.org)

# Adapter `sst-2` for *BERT*

```python
# Not a title. Not a sentence.
```

> A quotation.

An [adapter](https://adapterhub.ml), e.g. for `bert-base-uncased`
trained on SST-2. It has a head.
"""


def test_title_and_summary():
    assert cards.title(BODY) == "Adapter sst-2 for BERT"
    assert cards.summary(BODY) == "An adapter, e.g. for bert-base-uncased trained on SST-2."
    assert cards.title("no heading") == cards.summary("# Only a heading") == cards.summary("") == ""
    assert cards.summary("Version 1.10 is out! Go.") == "Version 1.10 is out!"
    long = cards.summary("word " * 1000)
    assert len(long) <= 302
    assert long.endswith("word …")
