"""Words and what they mean."""

import pytest

from adapterhub.data import load
from adapterhub.facts.lexicon import Concept, Lexicon, stem, words_of
from adapterhub.facts.spelling import Spelling, distance, most_typos
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


def definition(one, other):
    """The same by its definition."""
    if not one or not other:
        return len(one) + len(other)
    best = min(
        definition(one[1:], other) + 1,
        definition(one, other[1:]) + 1,
        definition(one[1:], other[1:]) + (one[0] != other[0]),
    )
    if one[:2] == other[1::-1] and len(one) > 1 and len(other) > 1:
        best = min(best, definition(one[2:], other[2:]) + 1)
    return best


@pytest.mark.parametrize("one", ["abc", "acb", "", "bca", "abcd", "xbcd", "aabb"])
@pytest.mark.parametrize("other", ["abc", "abcde", "b", "cabd", "abab"])
def test_distances(one, other):
    for most in (1, 2, 5):
        assert distance(one, other, most) == min(definition(one, other), most + 1)


def test_what_is_right_or_short_is_left():
    assert LEXICON.mistyped("sentiment qa nil sentiments Sentimant 12345") == ["sentimant"]
    assert LEXICON.near_words("sentimant")[0] == (1, "sentiment")
    assert LEXICON.near_words("anlysis")[0] == (1, "analysis")  # codespell:ignore


@pytest.mark.parametrize("word", ["sentiment", "sentimnet", "sntmnt", "xentiment", "nil", "mrcp", "z" * 40])
def test_what_is_near_is_what_a_comparison_with_all_words_finds(word):
    words = {part for concept in LEXICON.concepts for name in concept.names for part in name.split() if len(part) > 3}
    most = most_typos(word)
    expected = {(distance(word, known, most), known) for known in words} if most else set()
    found = Spelling(words).near(word)
    assert set(found) == {item for item in expected if item[0] <= most}
    assert [typos for typos, _ in found] == sorted(typos for typos, _ in found)


def means(concept, phrase):
    """What `meant` says of a phrase that nothing is called."""
    anywhere = concept.kind not in ("model", "method")
    return any(name.startswith(phrase) or (anywhere and f" {phrase}" in name) for name in concept.names)


@pytest.mark.parametrize("kind", ["task", "data set", "language", "model", "method"])
def test_the_beginning_of_a_name_means_it_from_four_letters_on(kind):
    concepts = [Concept(kind, "X", ("abcdef ghijkl",)), *LEXICON.concepts]
    lexicon = Lexicon(concepts)
    assert not lexicon.meant("abc")
    beginnings = {name[:length] for concept in concepts for name in concept.names for length in (4, 6, 9)}
    beginnings |= {name[name.find(" ") + 1 :][:5] for concept in concepts for name in concept.names}
    names = {name for concept in concepts for name in concept.names}
    for phrase in beginnings - names:
        if len(phrase) >= 4 and phrase == phrase.strip():
            assert set(lexicon.meant(phrase)) == {concept for concept in concepts if means(concept, phrase)} or (
                phrase != stem(phrase)
            ), phrase
