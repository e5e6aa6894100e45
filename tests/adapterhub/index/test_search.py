"""Lists, facets, pages and full text against the same questions asked of plain Python."""

import asyncio
from collections import Counter
from dataclasses import replace

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapterhub.accounts import ANONYMOUS, Principal
from adapterhub.db import counts, schema
from adapterhub.db.engine import Database
from adapterhub.errors import BadRequest
from adapterhub.index import search
from adapterhub.index.search import FACETS, SORTS, Query
from benchmarks.hub.rows import fill

COUNT = 400


@pytest.fixture(scope="module")
def loop():
    made = asyncio.new_event_loop()
    yield made
    made.close()


@pytest.fixture(scope="module")
def rows(tmp_path_factory, loop):
    """A database of adapters, some private and some yanked, and its rows."""
    db = Database(f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('search') / 'hub.db'}")
    adapter, repo = schema.adapter.c, schema.repo.c

    async def make():
        async with db.write() as conn:
            await conn.run_sync(schema.metadata.create_all)
            await search.prepare(conn)
            await fill(conn, COUNT, seed=3)
            for table, column in ((schema.repo, repo.id), (schema.adapter, adapter.repo_id)):
                hidden = {"private": True} if table is schema.repo else {"visible": False}
                await conn.execute(sa.update(table).where(column % 10 == 0).values(**hidden))
            await conn.execute(sa.update(schema.repo).where(repo.id % 70 == 0).values(yanked="wrong"))
            await conn.execute(sa.update(schema.adapter).where(adapter.repo_id % 3 == 0).values(parameters=None))
            await conn.execute(sa.update(schema.adapter).where(adapter.repo_id % 7 == 0).values(errors=2))
            yanked = {"repo_id": 40, "oid": f"{39:040x}", "reason": "wrong", "actor": "somebody"}
            await conn.execute(sa.insert(schema.yank).values(**yanked))
            query = sa.select(schema.adapter, repo.namespace, repo.yanked, repo.private).join(
                schema.repo, repo.id == adapter.repo_id
            )
            return (await conn.execute(query)).mappings().all()

    found = loop.run_until_complete(make())
    yield db, found
    loop.run_until_complete(db.close())


@pytest.fixture
def ask(rows, loop):
    db, _ = rows

    def asked(query, principal=ANONYMOUS, **options):
        async def work():
            async with db.read() as conn:
                return await search.query(conn, query, principal, **options)

        return loop.run_until_complete(work())

    return asked


def member(*namespaces, **more):
    return Principal(id=1, name="m", role="read", namespaces=dict.fromkeys(namespaces, "read"), **more)


def may_see(row, namespaces=()):
    if row["yanked"] or row["repo_id"] == 40:
        return False
    return not row["private"] or row["namespace"] in namespaces


ASKED = [
    Query(),
    Query(type="text_task"),
    Query(model_type="bert", method="lora"),
    Query(task="nli", base_model="roberta-base"),
    Query(task="sentiment", base_model="bert-base-uncased"),
    Query(head=True, license="mit"),
    Query(head=False, ok=True),
    Query(reduction_factor_min=3, reduction_factor_max=20),
    Query(rank_min=8, parameters_max=2_000_000),
    Query(q="roberta nli"),
    Query(q="argument", library="adapters"),
    Query(q="qa"),
    Query(namespace="ORG1", sort="updated"),
]


def passes(row, query, without=None):
    def equal(name):
        wanted = getattr(query, name)
        return name == without or wanted is None or row[name] == wanted

    def within(name):
        low, high = getattr(query, f"{name}_min", None), getattr(query, f"{name}_max", None)
        value = row[name]
        return (low is None or (value is not None and value >= low)) and (
            high is None or (value is not None and value <= high)
        )

    return (
        all(equal(name) for name in FACETS)
        and all(within(name) for name in ("reduction_factor", "rank", "parameters"))
        and (query.head is None or (row["head_type"] is not None) == query.head)
        and (not query.ok or row["errors"] == 0)
        and (query.namespace is None or row["namespace"] == query.namespace.lower())
        and all(word in row["search"] for word in (query.q or "").split())
    )


@pytest.mark.parametrize("query", ASKED, ids=str)
@pytest.mark.parametrize("namespaces", [(), ("org0", "org1")], ids=["visitor", "member"])
def test_a_list_and_its_facets(rows, ask, query, namespaces):
    principal = member(*namespaces) if namespaces else ANONYMOUS
    seen = [row for row in rows[1] if may_see(row, namespaces)]
    expected = [row for row in seen if passes(row, query)]
    page = ask(query, principal)
    assert page.total == len(expected) == ask(query, principal, facets=False).total
    for name in FACETS:
        counts = Counter(row[name] for row in seen if passes(row, query, without=name) and row[name] is not None)
        shown = dict(page.facets[name])
        assert shown.items() <= counts.items()
        assert len(shown) == min(len(counts), search._FACET_VALUES)


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("namespaces", [(), ("org0",)], ids=["visitor", "member"])
@pytest.mark.parametrize("filters", [{}, {"library": "adapters"}, {"q": "adapters"}, {"q": "a"}], ids=str)
def test_pages_show_everything_once_and_in_order(rows, ask, sort, namespaces, filters):
    principal = member(*namespaces) if namespaces else ANONYMOUS
    query, found = Query(sort=sort, limit=37, **filters), []
    while True:
        page = ask(query, principal, facets=False)
        found += page.rows
        if page.cursor is None:
            break
        query = replace(query, cursor=page.cursor)
    assert {row["repo_id"] for row in found} == {row["repo_id"] for row in rows[1] if may_see(row, namespaces)}
    assert len(found) == page.total
    if sort == "parameters":
        keys = [(row["parameters"] is None, row["parameters"] or 0, row["repo_id"]) for row in found]
        assert keys == sorted(keys)
    else:
        keys = [(row["repo_id"] if sort == "created" else row[sort], row["repo_id"]) for row in found]
        assert keys == sorted(keys, reverse=True)


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (Query(), "ix_adapter_downloads (visible=?)"),
        (Query(sort="updated"), "ix_adapter_updated (visible=?)"),
        (Query(task="nli", subtask="rte"), "ix_adapter_place (visible=? AND task=? AND subtask=?)"),
        (Query(task="nli", base_model="roberta-base"), "ix_adapter_base (visible=? AND base_model=? AND task=?)"),
        (Query(license="mit", head=True), "ix_adapter_facets (visible=?)"),
    ],
    ids=str,
)
def test_an_index_alone_is_read_for_a_page(rows, ask, loop, query, index):
    """Without filters in its order; with filters the one that finds what passes, which is then sorted."""
    step = how_found(rows, ask, loop, query)
    assert step.startswith("SEARCH adapter USING COVERING")
    assert step.endswith(f"INDEX {index}")


def test_what_fits_words_is_found_by_its_ids_unless_they_are_common(rows, ask, loop, monkeypatch):
    query = Query(q="zzzz", license="mit")
    assert how_found(rows, ask, loop, query) == "SEARCH adapter USING INTEGER PRIMARY KEY (rowid=?)"
    monkeypatch.setattr(search, "_COMMON", 0)
    assert how_found(rows, ask, loop, Query(q="bert")).endswith("INDEX ix_adapter_downloads (visible=?)")


def how_found(rows, ask, loop, query):
    """How SQLite finds the ids of a page."""
    asked = []

    def note(conn, cursor, statement, parameters, *_):
        asked.append((statement, parameters))

    engine = rows[0].engine.sync_engine
    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        ask(query, facets=False)
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)
    (statement, parameters) = next(item for item in asked if "AS sort_key" in item[0])

    async def plan():
        async with rows[0].read() as conn:
            return [row.detail for row in await conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]

    (step,) = (step for step in loop.run_until_complete(plan()) if step.startswith("SEARCH adapter USING"))
    return step


@pytest.fixture
def kept(rows, loop, monkeypatch):
    """Counts that are kept however quick they are, and for long."""
    for name, value in {"_QUICK": 0, "_FACTOR": 1e9}.items():
        monkeypatch.setattr(counts, name, value)
    made = counts.Counts(rows[0])
    yield made
    loop.run_until_complete(made.close())


def test_what_is_kept_of_a_list_is_what_the_caller_may_see(ask, kept):
    seen = {who: ask(Query(), member(*who), counts=kept) for who in [(), ("org0",), ("org0", "org1")]}
    totals = [page.total for page in seen.values()]
    assert totals == sorted(set(totals))
    for who, page in seen.items():
        assert page == ask(Query(), member(*who), counts=kept) == ask(Query(), member(*who))


def test_rows_are_of_now_where_counts_are_kept(rows, ask, loop, kept):
    query = Query(task="sentiment")
    long, whole = replace(query, limit=1), replace(query, limit=100)
    before = ask(long, counts=kept)
    assert before.total > 1

    async def show_first(visible):
        async with rows[0].write() as conn:
            own = schema.adapter.c.repo_id == before.rows[0]["repo_id"]
            await conn.execute(sa.update(schema.adapter).where(own).values(visible=visible))

    loop.run_until_complete(show_first(False))
    try:
        for facets in (True, False):
            shown = ask(whole, facets=facets, counts=kept)
            assert before.rows[0]["repo_id"] not in {row["repo_id"] for row in shown.rows}
            assert shown.total == len(shown.rows) == before.total - 1
        assert ask(long, counts=kept).total == before.total
    finally:
        loop.run_until_complete(show_first(True))


def test_a_page_is_not_shifted_by_what_changes_meanwhile(rows, ask, loop):
    first = ask(Query(limit=5), facets=False)
    following = ask(Query(limit=5, cursor=first.cursor), facets=False).rows

    async def show_first(visible):
        async with rows[0].write() as conn:
            own = schema.adapter.c.repo_id == first.rows[0]["repo_id"]
            await conn.execute(sa.update(schema.adapter).where(own).values(visible=visible))

    loop.run_until_complete(show_first(False))
    try:
        again = ask(Query(limit=5, cursor=first.cursor), facets=False).rows
    finally:
        loop.run_until_complete(show_first(True))
    assert [row["repo_id"] for row in again] == [row["repo_id"] for row in following]


@pytest.mark.parametrize("cursor", ["!", "e30", "W10", "WyJ1cGRhdGVkIiwxLDFd", "WyJkb3dubG9hZHMiLCJhIiwxXQ", "\x00"])
def test_cursors_from_elsewhere_are_refused(ask, cursor):
    with pytest.raises(BadRequest, match="cursor="):
        ask(Query(cursor=cursor))


def test_a_sort_we_do_not_have_is_refused(ask):
    with pytest.raises(BadRequest, match="downloads, trending, updated, created, parameters"):
        ask(Query(sort="beauty"))


def test_tokens_see_only_what_their_scope_allows(rows, ask):
    everything = ask(Query(), member("org0", "org1"))
    some = ask(Query(), member("org0", "org1", scope=("org1",)))
    hidden = [row for row in rows[1] if row["private"] and may_see(row, ("org0",)) and row["namespace"] == "org0"]
    assert hidden
    assert everything.total - some.total == len(hidden)


TEXT = st.text(st.sampled_from("aAbBßİıé漢字 %_\\\"'*()-+:^.0"), max_size=12)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(TEXT, min_size=1, max_size=4), words=TEXT)
def test_full_text_finds_what_holds_every_word(full_text, loop, texts, words):
    texts = [text.lower() for text in texts]

    async def found():
        async with full_text.write() as conn:
            for number, text in enumerate(texts, 1):
                await search.remove(conn, number)
                await search.put(conn, number, text)
                own = schema.adapter.c.repo_id == number
                await conn.execute(sa.update(schema.adapter).where(own).values(search=text))
            query = sa.select(schema.adapter.c.repo_id).where(
                search.matches(conn, words), schema.adapter.c.repo_id <= len(texts)
            )
            return set((await conn.execute(query)).scalars())

    expected = {n for n, text in enumerate(texts, 1) if all(word in text for word in words.lower().split())}
    assert loop.run_until_complete(found()) == expected


@pytest.fixture(scope="module")
def full_text(tmp_path_factory, loop):
    db = Database(f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('text') / 'hub.db'}")

    async def make():
        async with db.write() as conn:
            await conn.run_sync(schema.metadata.create_all)
            await search.prepare(conn)
            await fill(conn, 4)

    loop.run_until_complete(make())
    yield db
    loop.run_until_complete(db.close())


@pytest.mark.parametrize("words", ["", "   ", "\0", "a" * 5000, " ".join(f"w{i}" for i in range(500)), '"', "a\0b"])
def test_strange_words_are_no_errors(ask, words):
    ask(Query(q=words), facets=False)


def test_common_words_give_the_same_list(ask, monkeypatch):
    query = Query(q="bert adapters", limit=20)
    usual = ask(query, facets=False)
    monkeypatch.setattr(search, "_COMMON", 5)
    common = ask(query, facets=False)
    assert [row["repo_id"] for row in common.rows] == [row["repo_id"] for row in usual.rows]
    assert common.total == usual.total > 20


def test_the_tree_counts_what_is_public(rows, loop):
    async def work():
        async with rows[0].read() as conn:
            return await search.tree(conn)

    counts = Counter((row["type"], row["task"], row["subtask"]) for row in rows[1] if row["visible"])
    found = loop.run_until_complete(work())
    flat = {(t, task, sub): n for t, tasks in found.items() for task, subs in tasks.items() for sub, n in subs.items()}
    assert flat == counts


# ---- words and what they mean ---------------------------------------------------------------------------------------

MEANT = {
    "question answering": lambda row: row["task"] == "qa",
    "natural language inference": lambda row: row["task"] == "nli",
    "mbert": lambda row: row["base_model"] == "bert-base-multilingual-cased",
    "movie review": lambda row: row["subtask"] in ("imdb", "rotten_tomatoes", "sst-2"),
    "Kiswahili": lambda row: row["task"] == "sw",
    "русский": lambda row: row["task"] == "ru",
    "low-rank adaptation": lambda row: row["method"] == "lora",
    "pfeiffer": lambda row: row["config_name"] == "seq_bn",
    "entailment": lambda row: row["task"] == "nli",
    "stanford sentiment treebank": lambda row: row["subtask"] == "sst-2",
    "mbert sentiment": lambda row: row["base_model"] == "bert-base-multilingual-cased" and row["task"] == "sentiment",
    "nli org1": lambda row: row["task"] == "nli" and "org1" in row["search"],
}


@pytest.fixture(params=[1, search._COMMON], ids=["common", "rare"])
def commonness(request, monkeypatch):
    """Each kind of words is searched in both ways."""
    monkeypatch.setattr(search, "_COMMON", request.param)


def everything(ask, query):
    rows, page = [], None
    while page is None or page.cursor:
        page = ask(replace(query, cursor=page and page.cursor))
        rows += page.rows
    assert len(rows) == page.total == len({row["repo_id"] for row in rows})
    return rows


@pytest.mark.parametrize("words", MEANT)
def test_words_find_what_they_mean_first_and_by_downloads(rows, ask, words, commonness):
    expected = sorted(
        (row for row in rows[1] if may_see(row) and MEANT[words](row)),
        key=lambda row: (-row["downloads"], -row["repo_id"]),
    )
    assert expected
    found = everything(ask, Query(q=words, limit=7))
    assert [row["repo_id"] for row in found[: len(expected)]] == [row["repo_id"] for row in expected]
    others = found[len(expected) :]
    assert others == sorted(others, key=lambda row: (-row["downloads"], -row["repo_id"]))
    texts = {row["repo_id"]: row["search"] for row in rows[1]}
    for row in others:
        assert all(search.stem(word) in texts[row["repo_id"]] or MEANT.get(word) for word in words.lower().split())


@pytest.mark.parametrize("words", ["movie review", "mbert sentiment"])
def test_words_and_filters_go_together(rows, ask, words, commonness):
    for query in (Query(q=words, license="mit"), Query(q=words, sort="parameters", head=True)):
        with_filter = {row["repo_id"] for row in everything(ask, replace(query, limit=5))}
        without = everything(ask, Query(q=words))
        wanted = [row for row in without if query.license in (None, row["license"])]
        wanted = [row for row in wanted if query.head is None or (row["head_type"] is not None) == query.head]
        assert with_filter == {row["repo_id"] for row in wanted}


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("sentment", "sentiment"),
        ("sentimnet", "sentiment"),
        ("natural langage infrence", "natural language inference"),  # codespell:ignore
    ],
)
def test_typos_are_corrected(ask, typo, meant):
    page = ask(Query(q=typo))
    assert page.corrected == meant
    assert page.rows == ask(Query(q=meant)).rows and page.rows
    assert ask(Query(q=meant)).corrected is None


def test_a_reason_is_given(ask):
    for words, reason in (
        ("sst2", "matches the data set SST-2"),
        ("question answering", "matches the task Question Answering"),
        ("mbert", "matches the model bert-base-multilingual-cased"),
        ("movie review sst-2", "matches the data set SST-2"),
        ("german", "matches the language German"),
        ("org0/", "matches its name"),
    ):
        assert reason in {row["reason"] for row in ask(Query(q=words)).rows}, words
    assert {row["reason"] for row in ask(Query()).rows} == {""}


def test_something_else_is_suggested_where_nothing_fits(ask):
    page = ask(Query(q="questoin answring machine"))  # codespell:ignore
    assert not page.rows and "Question Answering" in page.near
    assert not ask(Query(q="xqzw jjkk")).rows


def test_words_that_join_others_are_not_looked_for(ask):
    found = ask(Query(q="the nli with org1"))
    assert found.rows and found == ask(Query(q="nli org1"))
    assert ask(Query(q="the")).total == ask(Query(q="THE")).total < ask(Query()).total


def test_a_cursor_of_another_tier_is_refused(ask):
    cursor = ask(Query(q="sentiment", limit=1)).cursor
    with pytest.raises(BadRequest, match="another order"):
        ask(Query(q="sentiment", sort="updated", cursor=cursor))
