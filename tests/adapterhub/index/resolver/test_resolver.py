"""Names and what they mean: forms, filters, defaults, withdrawals and privacy."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from adapterhub import accounts
from adapterhub.accounts import ANONYMOUS, Principal
from adapterhub.db import schema
from adapterhub.errors import BadRequest, Conflict, HubError, NotFound
from adapterhub.facts.configs import config_id, named
from adapterhub.index import resolver

from .conftest import Trial
from .rows import add, add_place, oid_of

BERT, SST = "bert-base-uncased", {"task": "sentiment", "subtask": "sst-2"}
MEMBER = Principal(id=1, name="m", role="read", namespaces={"m": "admin", "ukp": "read"})


def answers(trial: Trial, rows: list[tuple[str, dict[str, Any]]], *names: Any, caller: Principal = ANONYMOUS) -> Any:
    """What `names` mean among `rows`: hits or errors. A name may come with filters, as a pair."""

    async def work(conn: Any) -> list[Any]:
        for full_name, columns in rows:
            await add(conn, full_name, **columns)
        found: list[Any] = []
        for name in names:
            text, filters = name if isinstance(name, tuple) else (name, {})
            try:
                found.append(await resolver.resolve(conn, caller, text, **filters))
            except HubError as error:
                found.append(error)
        return found

    found = trial(work)
    return found if len(found) != 1 else found[0]


ONE = (
    "ukp/sst",
    {**SST, "base_model": BERT, "legacy_id": "@ukp/old-sst", "config_name": "seq_bn", "config_id": "ab" * 8},
)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ukp/sst", "id"),
        ("UKP/SST", "id"),
        ("ukp/sst@main", "id"),
        ("@ukp/old-sst", "only"),
        ("sentiment/sst-2", "only"),
        ("sentiment/sst-2@ukp", "only"),
        ("sentiment", "only"),
        ("sentiment@ukp", "only"),
        ("sst-2", "only"),
        (" sst-2@UKP ", "only"),
    ],
)
def test_each_form_of_a_name(trial: Trial, name: str, reason: str) -> None:
    hit = answers(trial, [ONE], name)
    assert (hit.id, hit.revision, hit.reason) == ("ukp/sst", oid_of("ukp/sst"), reason)
    assert hit.facts["config"] == "seq_bn" and hit.facts["org"] == "ukp"


@pytest.mark.parametrize("name", ["", "@", "/", "@ukp", "sst-2@", "sentiment/", "/sst-2", "a/b/c", "sst-2@other", "%"])
def test_names_that_mean_nothing(trial: Trial, name: str) -> None:
    assert isinstance(answers(trial, [ONE], name), NotFound)


def test_an_id_counts_before_a_place(trial: Trial) -> None:
    shadow = ("sentiment/sst-2", {"task": "other", "base_model": "x"})
    assert answers(trial, [ONE, shadow], "sentiment/sst-2").id == "sentiment/sst-2"
    # ... but only if it fits.
    assert answers(trial, [ONE, shadow], ("sentiment/sst-2", {"model": BERT})).id == "ukp/sst"


def test_a_task_and_a_subtask_of_one_name_are_ambiguous(trial: Trial) -> None:
    rows = [("a/task", {"task": "en", "subtask": "wiki"}), ("a/subtask", {"task": "wikiann", "subtask": "en"})]
    error = answers(trial, rows, "en")
    assert isinstance(error, Conflict)
    assert {candidate["id"] for candidate in error.details["candidates"]} == {"a/task", "a/subtask"}
    assert [hit.id for hit in answers(trial, rows, "en/wiki", "wikiann/en")] == ["a/task", "a/subtask"]


# ---- names that others want -----------------------------------------------------------------------------------------

INVENTED = ("a/one", {"task": "yytask", "subtask": "foo", "base_model": BERT})


def test_a_made_up_task_cannot_be_taken_over(trial: Trial) -> None:
    """Its name led to an adapter. No account may be called so afterwards, or look so."""

    async def work(conn: Any) -> Any:
        await add(conn, INVENTED[0], **INVENTED[1])
        found = await resolver.resolve(conn, ANONYMOUS, "yytask/foo")
        for name in ("yytask", "YYTask", "yyta5k", "yy-task"):
            with pytest.raises(Conflict, match=r"looks like, the task 'yytask'.*: a/one"):
                await accounts.create_org(conn, name, None)
            with pytest.raises(Conflict):
                await accounts.create_user(conn, name)
        await accounts.create_org(conn, "xxtask", None)
        return found.id

    assert trial(work) == "a/one"


def test_an_account_is_no_task(trial: Trial) -> None:
    """The other way round: a card that makes up a task of an account's name leads nowhere."""
    thief = ("thief/one", {"task": "acme", "subtask": "plan", "base_model": BERT})
    missing, plain = answers(trial, [("acme/other", {}), thief], "acme/plan", "plan")
    assert isinstance(missing, NotFound)
    assert plain.id == "thief/one"
    assert answers(trial, [("acme/other", {}), thief, ("acme/plan", {"day": 9})], "acme/plan").reason == "id"


def test_a_repository_does_not_take_over_a_place(trial: Trial) -> None:
    """An organisation that is called like a task, because somebody vouched for it."""
    rows = [ONE, ("sentiment/sst-2", {"day": 1, "base_model": BERT})]
    error, explicit, place = answers(trial, rows, "sentiment/sst-2", "sentiment/sst-2@main", "sentiment/sst-2@ukp")
    assert isinstance(error, Conflict) and "before there was a repository" in error.message
    assert [candidate["id"] for candidate in error.details["candidates"]] == ["sentiment/sst-2", "ukp/sst"]
    assert (explicit.id, place.id) == ("sentiment/sst-2", "ukp/sst")


def test_the_organisation_is_never_passed_over(trial: Trial) -> None:
    rows = [ONE, ("other/sst", {**SST, "base_model": BERT})]
    assert answers(trial, rows, "sst-2@other").id == "other/sst"
    missing = answers(trial, rows, "sst-2@third")
    assert isinstance(missing, NotFound)
    assert {near["id"] for near in missing.details["near"]} == {"ukp/sst", "other/sst"}


def test_an_old_name_counts_only_in_its_own_organisation(trial: Trial) -> None:
    thief = ("thief/sst", {**SST, "legacy_id": "@ukp/old-sst"})
    assert isinstance(answers(trial, [thief], "@ukp/old-sst"), NotFound)
    assert answers(trial, [thief, ONE], "@ukp/old-sst").id == "ukp/sst"


@pytest.mark.parametrize("stored", [BERT, f"google-bert/{BERT}"])
@pytest.mark.parametrize("asked", [BERT, f"google-bert/{BERT}"])
def test_both_names_of_a_base_model(trial: Trial, stored: str, asked: str) -> None:
    assert answers(trial, [("a/b", {**SST, "base_model": stored})], ("sst-2", {"model": asked})).id == "a/b"


def test_another_namespace_is_another_base_model(trial: Trial) -> None:
    row = ("a/b", {**SST, "base_model": f"evil/{BERT}"})
    assert isinstance(answers(trial, [row], ("sst-2", {"model": BERT})), NotFound)


def test_configs_by_name_old_name_and_id(trial: Trial) -> None:
    exact, wide = config_id(named()["seq_bn"]), config_id({**named()["seq_bn"], "reduction_factor": 2})
    lora = config_id(named()["lora"])
    rows = [
        ("a/exact", {**SST, "base_model": BERT, "config_name": "seq_bn", "config_id": exact}),
        ("a/wide", {**SST, "base_model": BERT, "config_name": "seq_bn", "config_id": wide, "day": 9}),
        ("a/lora", {**SST, "base_model": BERT, "config_name": "lora", "config_id": lora}),
    ]
    asked = ["seq_bn", "pfeiffer", exact, wide, "lora", "houlsby"]
    found = answers(trial, rows, *(("sst-2", {"config": config}) for config in asked))
    assert [hit.id for hit in found[:5]] == ["a/exact", "a/exact", "a/exact", "a/wide", "a/lora"]
    assert isinstance(found[5], NotFound)


# ---- one of several -------------------------------------------------------------------------------------------------


def test_several_places_are_ambiguous_and_all_listed(trial: Trial) -> None:
    rows = [
        ("a/one", {"task": "nli", "subtask": "qnli", "base_model": BERT}),
        ("a/two", {"task": "nli", "subtask": "rte", "base_model": BERT}),
        ("a/three", {"task": "nli", "subtask": "rte", "base_model": "roberta-base"}),
    ]
    error = answers(trial, rows, "nli")
    assert isinstance(error, Conflict)
    assert [candidate["id"] for candidate in error.details["candidates"]] == ["a/one", "a/three", "a/two"]
    assert {"id", "task", "subtask", "base_model", "config", "org", "revision"} <= error.details["candidates"][0].keys()
    assert "3 adapters" in error.message and "base model" in error.message and "@org" not in error.message


def in_one_place(*rows: tuple[str, dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, {**SST, "base_model": BERT, **columns}) for name, columns in rows]


def test_the_best_score_within_an_organisation(trial: Trial) -> None:
    rows = in_one_place(
        ("a/good", {"scores": {"accuracy": 0.93}, "day": 1}),
        ("a/best", {"scores": {"accuracy": 94.1, "f1": 0.1}, "day": 2}),  # a percentage
        ("a/silent", {"day": 3}),
        ("a/other-metric", {"scores": {"f1": 0.99}, "day": 4}),
    )
    hit = answers(trial, rows, "sst-2")
    assert (hit.id, hit.reason) == ("a/best", "score")
    assert [other["id"] for other in hit.others] == ["a/good", "a/other-metric", "a/silent"]


def test_the_lowest_score_where_less_is_better(trial: Trial) -> None:
    async def work(conn: Any) -> Any:
        await add_place(conn, "lm", "books", "perplexity", False)
        for name, value in (("a/low", 11.5), ("a/high", 40.0)):
            await add(conn, name, task="lm", subtask="books", base_model=BERT, scores={"perplexity": value})
        return await resolver.resolve(conn, ANONYMOUS, "books")

    assert trial(work).id == "a/low"


def test_without_scores_the_newest(trial: Trial) -> None:
    rows = in_one_place(("a/new", {"day": 5}), ("a/old", {"day": 1, "downloads": 99}))
    hit = answers(trial, rows, "sst-2")
    assert (hit.id, hit.reason) == ("a/new", "newest")


def test_scores_do_not_decide_between_organisations(trial: Trial) -> None:
    rows = in_one_place(("a/x", {"scores": {"accuracy": 0.9}}), ("boaster/x", {"scores": {"accuracy": 1.0}, "day": 9}))
    error = answers(trial, rows, "sst-2")
    assert isinstance(error, Conflict) and "@org" in error.message
    assert answers(trial, rows, "sst-2@a").id == "a/x"


def test_the_preferred_one(trial: Trial) -> None:
    async def work(conn: Any) -> list[Any]:
        rows = in_one_place(
            ("a/x", {"scores": {"accuracy": 1.0}}),
            ("b/x", {"base_model": f"google-bert/{BERT}", "config_id": "cd" * 8}),
            ("c/x", {}),
        )
        ids = [await add(conn, name, **columns) for name, columns in rows]
        await resolver.prefer(conn, ids[0])
        await resolver.prefer(conn, ids[1])
        found = [await resolver.resolve(conn, ANONYMOUS, name) for name in ("sst-2", "sst-2@a")]
        kept = (await conn.execute(sa.select(schema.preferred.c.repo_id))).scalars().all()
        assert kept == [ids[1]]  # the second took the place of the first
        await resolver.unprefer(conn, ids[1])
        with pytest.raises(Conflict):
            await resolver.resolve(conn, ANONYMOUS, "sst-2")
        return found

    everyone, of_a = trial(work)
    assert (everyone.id, everyone.reason) == ("b/x", "preferred")
    assert (of_a.id, of_a.reason) == ("a/x", "only")


def test_what_has_no_place_cannot_be_preferred(trial: Trial) -> None:
    async def work(conn: Any) -> None:
        with pytest.raises(BadRequest, match="a/x names no task or no base model"):
            await resolver.prefer(conn, await add(conn, "a/x", task="nli"))

    trial(work)


# ---- revisions, withdrawals and privacy -----------------------------------------------------------------------------


def test_versions(trial: Trial) -> None:
    rows = in_one_place(("a/with", {"branches": {"old": 1}}), ("a/without", {"day": 9}))
    old = oid_of("a/with", 1)
    named_so = [("sst-2", {"version": "old"}), ("a/with", {"version": "old"}), "a/with@old", f"a/with@{old}"]
    found = answers(trial, rows, *named_so, ("sst-2", {"version": old[:8]}))
    assert [(hit.id, hit.revision) for hit in found] == [("a/with", old)] * 5
    missing, twice = answers(trial, rows, "a/with@never", ("a/with@old", {"version": "main"}))
    assert isinstance(missing, NotFound) and "never" in missing.message
    assert isinstance(twice, BadRequest)


@pytest.mark.parametrize("how", [{"yanked": "It is wrong."}, {"head_yanked": True}])
def test_what_is_yanked_is_found_by_its_commit_only(trial: Trial, how: dict[str, Any]) -> None:
    rows = in_one_place(("a/bad", {**how, "legacy_id": "@a/bad", "day": 9}), ("a/good", {}))
    oid = oid_of("a/bad")
    found = answers(trial, rows, "sst-2", "a/bad", f"a/bad@{oid[:10]}", f"a/bad@{oid}", ("a/bad", {"version": oid}))
    assert found[0].id == "a/good"
    assert all(isinstance(error, NotFound) and "It is wrong." in error.message for error in found[1:3])
    assert [hit.revision for hit in found[3:]] == [oid, oid]
    assert isinstance(answers(trial, rows, "@a/bad", caller=Principal(id=1, namespaces={"a": "read"})), NotFound)


def test_other_revisions_of_a_yanked_one_stay(trial: Trial) -> None:
    rows = in_one_place(("a/x", {"head_yanked": True, "branches": {"old": 1}}))
    assert answers(trial, rows, "a/x@old").revision == oid_of("a/x", 1)


def test_private_ones_are_for_members(trial: Trial) -> None:
    rows = in_one_place(("ukp/secret", {"private": True, "legacy_id": "@ukp/secret"}))
    for name in ("ukp/secret", "@ukp/secret", "sst-2", "sentiment@ukp", "ukp/secreet"):
        error = answers(trial, rows, name)
        assert isinstance(error, NotFound) and "secret" not in repr(error.details), name
    found = answers(trial, rows, "ukp/secret", "@ukp/secret", "sst-2", caller=MEMBER)
    assert {hit.id for hit in found} == {"ukp/secret"}


def test_what_is_no_adapter_is_found_by_its_id_only(trial: Trial) -> None:
    rows = [("a/model", {**SST, "library": "other", "visible": False})]
    found = answers(trial, rows, "a/model", "sst-2")
    assert found[0].id == "a/model" and isinstance(found[1], NotFound)


def test_near_names(trial: Trial) -> None:
    slip, org, model = answers(trial, [ONE], "sentimnt/sst-2", "ukp/sts", ("sst-2", {"model": "roberta-base"}))
    assert slip.details["near"][0] == {"name": "sentiment/sst-2"}
    assert {"name": "ukp/sst"} in org.details["near"]
    assert [(near["name"], near["base_model"]) for near in model.details["near"]] == [("ukp/sst", BERT)]
