"""Words and what they mean."""

import pytest

from adapterhub.data import load
from adapterhub.facts.lexicon import Concept, Lexicon, _distance, stem, words_of
from adapterhub.facts.taxonomy import Taxonomy
from adapterhub.methods import library

LEXICON = Lexicon.packaged()


def titles(phrase):
    return {concept.title for concept in LEXICON.meant(words_of(phrase))}


@pytest.mark.parametrize("concept", LEXICON.concepts, ids=lambda concept: concept.title)
def test_each_concept_is_found_by_each_of_its_names(concept):
    assert concept.names and (concept.tags or concept.method)
    for name in concept.names:
        assert concept in LEXICON.meant(name)


def test_synonyms_are_of_what_there_is():
    more, taxonomy = load("synonyms.json"), Taxonomy.packaged()
    kinds = {row["id"]: row["type"] for row in taxonomy.tasks.values()}
    assert {kinds[task] for task in more["tasks"]} == {"text_task"}
    assert {kinds[task] for task in more["languages"]} == {"text_lang"}
    assert {tuple(place.split("/")) for place in more["subtasks"]} <= set(taxonomy.subtasks)
    assert set(more["methods"]) <= set(library().presets)


@pytest.mark.parametrize(
    ("phrase", "title"),
    [
        ("SST-2", "data set SST-2"),
        ("sst2", "data set SST-2"),
        ("Film reviews", "data set IMDb"),
        ("answering questions", "task Question Answering"),
        ("sentiments", "task Sentiment Analysis"),
        ("summaries", "task Summarization"),
        ("中文", "language Chinese"),
        ("हिन्दी", "language Hindi"),
        ("Français", "language French"),
        ("francais", "language French"),
        ("pfeiffer", "method Sequential bottleneck"),
        ("xlm-r", "model xlm-roberta-base"),
        ("senti", "task Sentiment Analysis"),
    ],
)
def test_phrases(phrase, title):
    assert title in titles(phrase)


@pytest.mark.parametrize("phrase", ["", "!", "s", "zzzz", "roberta", "iew"])
def test_phrases_that_mean_nothing(phrase):
    assert titles(phrase) == set()


def test_the_longest_phrases_are_taken():
    found = LEXICON.phrases("mbert natural language inference 2021")
    assert [phrase for phrase, _ in found] == ["mbert", "natural language inference", "2021"]
    assert [bool(meant) for _, meant in found] == [True, True, False]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("reviews", "review"),
        ("answering", "answer"),
        ("glass", "glass"),
        ("sing", "sing"),
        ("studies", "stud"),
        ("as", "as"),
    ],
)
def test_stems(word, expected):
    assert stem(word) == expected


def distance(one, other):
    """The same by its definition."""
    if not one or not other:
        return len(one) + len(other)
    best = min(
        distance(one[1:], other) + 1,
        distance(one, other[1:]) + 1,
        distance(one[1:], other[1:]) + (one[0] != other[0]),
    )
    if one[:2] == other[1::-1] and len(one) > 1 and len(other) > 1:
        best = min(best, distance(one[2:], other[2:]) + 1)
    return best


@pytest.mark.parametrize("one", ["abc", "acb", "", "bca", "abcd", "xbcd", "aabb"])
@pytest.mark.parametrize("other", ["abc", "abcde", "b", "cabd", "abab"])
def test_distances(one, other):
    for most in (1, 2, 5):
        assert _distance(one, other, most) == min(distance(one, other), most + 1)


def test_what_is_right_or_short_is_left():
    assert LEXICON.corrected("sentiment qa nil") == "sentiment qa nil"
    assert LEXICON.corrected("sentimant anlysis") == "sentiment analysis"  # codespell:ignore
    assert Concept("task", "X", ("abcdef",)).means("abcd") and not Concept("task", "X", ("abcdef",)).means("abc")
