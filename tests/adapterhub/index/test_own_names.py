"""Names that users gave are found although they are mistyped, by those who may see them."""

import pytest
import sqlalchemy as sa

from adapterhub import accounts
from adapterhub.accounts import ANONYMOUS
from adapterhub.changes import manage
from adapterhub.db import schema
from adapterhub.facts.spelling import distance, most_typos
from adapterhub.index import own_names, search
from adapterhub.index.search import Query
from adapterhub.ops.setup import prepare
from tests.adapterhub.api.files import adapter, push

pytestmark = pytest.mark.parametrize("hub", [{}, {"db": "postgres"}], indirect=True, ids=["sqlite", "postgres"])


async def looked_up(hub, words, user=None):
    async with hub.db.read() as conn:
        me = ANONYMOUS
        if user:
            me = await accounts.principal(hub.db, (await accounts.find_account(conn, user))["id"])
        found = await search.query(conn, Query(q=words), me)
    return found.corrected, {row["full_name"] for row in found.rows}


def test_names_of_adapters_and_of_those_who_made_them(hub, run):
    run(push(hub, "acme/proverbs-of-zanzibar", adapter()))
    run(push(hub, "bob/hidden-quicksilver7", adapter(), user="bob", private=True))
    proverbs = {"acme/proverbs-of-zanzibar"}
    for typo, right in (
        ("provrebs", "proverbs"),
        ("zanzbr", None),  # of six letters, so with one typo at most
        ("zannzibr", "zanzibar"),
        ("acne", "acme"),
        ("acne sentment", "acme sentiment"),
    ):
        assert run(looked_up(hub, typo)) == (right, proverbs if right else set()), typo
    assert run(looked_up(hub, "quicksliver7")) == (None, set())
    assert run(looked_up(hub, "quicksliver7", "alice")) == (None, set())
    assert run(looked_up(hub, "quicksliver7", "bob")) == ("quicksilver7", {"bob/hidden-quicksilver7"})
    assert run(looked_up(hub, "quicksilver8", "bob")) == (None, set())


def test_a_word_of_a_name_is_right_even_if_a_known_one_is_near(hub, run):
    """`sentinel` is two typos from `sentiment`; another word of the text is wrong."""
    run(push(hub, "acme/sentinel", adapter(task="nli/rte")))
    assert run(looked_up(hub, "sentinel entialment")) == ("sentinel entailment", {"acme/sentinel"})  # codespell:ignore


def test_names_follow_when_they_change_and_those_that_are_gone_are_not_proposed(hub, run):
    run(push(hub, "acme/proverbs", adapter()))

    async def alice():
        async with hub.db.read() as conn:
            return await accounts.principal(hub.db, (await accounts.find_account(conn, "alice"))["id"])

    me = run(alice())
    run(manage.move(hub, me, "acme/proverbs", "acme/sayings-and-jokes"))
    assert run(looked_up(hub, "provrebs")) == (None, set())
    assert run(looked_up(hub, "syaings")) == ("sayings", {"acme/sayings-and-jokes"})
    run(manage.delete(hub, me, "acme/sayings-and-jokes"))
    assert run(looked_up(hub, "syaings")) == (None, set())


def test_a_hub_of_before_learns_its_names_when_it_starts(hub, run):
    run(push(hub, "acme/proverbs", adapter()))

    async def forget():
        async with hub.db.write() as conn:
            await conn.execute(sa.delete(schema.name_part))

    run(forget())
    assert run(looked_up(hub, "provrebs")) == (None, set())
    run(prepare(hub))
    assert run(looked_up(hub, "provrebs")) == ("proverbs", {"acme/proverbs"})


def test_what_is_near_is_what_a_comparison_with_all_words_finds(hub, run):
    known = ["wordings", "swords", "wardings", "lording", "sword", "swordfishing", "words", "worthings"]
    asked = ["wordngs", "wodrings", "sowrds", "swordfihsin", "word", "abcdef", "wo"]

    async def work():
        async with hub.db.write() as conn:
            await own_names.learn(conn, known)
            return await own_names.near(conn, asked)

    found = run(work())
    for word in asked:
        most = most_typos(word)
        expected = sorted((distance(word, other, most), other) for other in known) if most else []
        assert found.get(word, []) == [item for item in expected if item[0] <= most]


def test_the_whole_card_is_searched(hub, run):
    files = adapter()
    files["README.md"] += (
        b"\nIt was trained on *proverbs* of [Zanzibar](https://x.org).\n\n```\nprint('secretcode')\n```\n"
    )
    run(push(hub, "acme/a", files))

    async def reasons(words):
        async with hub.db.read() as conn:
            return [row["reason"] for row in (await search.query(conn, Query(q=words), ANONYMOUS)).rows]

    assert run(reasons("zanzibar proverb")) == ["matches its card"]
    assert run(reasons("mit")) == ["matches its tags"]
    assert run(reasons("secretcode")) == []
