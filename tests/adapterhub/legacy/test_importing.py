"""Old cards become repositories, once, with everything they said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from adapterhub import accounts
from adapterhub.accounts import ANONYMOUS
from adapterhub.changes import committing
from adapterhub.changes.committing import Put
from adapterhub.content import cards
from adapterhub.data import load
from adapterhub.db import schema
from adapterhub.errors import BadRequest, Conflict, Unauthorized
from adapterhub.facts.configs import config_id
from adapterhub.hub import Hub
from adapterhub.index import resolver
from adapterhub.ingest import ingest
from adapterhub.legacy import Imported, import_cards
from adapterhub.repos import commits, refs, repos
from adapterhub.repos.files import RepoFiles

from . import old_cards


async def admin(hub: Hub) -> accounts.Principal:
    async with hub.db.read() as conn:
        return await accounts.principal(hub.db, (await accounts.find_account(conn, "alice"))["id"])


async def imported(hub: Hub, folder: Path) -> Imported:
    return await import_cards(hub, old_cards.write(folder), await admin(hub))


async def files_of(hub: Hub, full_name: str) -> tuple[cards.Card, dict[str, Any]]:
    async with hub.db.read() as conn:
        repo = await repos.find(conn, ANONYMOUS, full_name)
        head = await commits.resolve(conn, repo, "main")
        files = RepoFiles(hub, await commits.manifest_of(conn, head.tree))
    card = cards.parse((await files.read("README.md")).decode())
    return card, json.loads(await files.read("adapter_config.json"))


async def columns(hub: Hub, legacy_id: str) -> sa.RowMapping:
    async with hub.db.read() as conn:
        query = sa.select(schema.adapter).where(schema.adapter.c.legacy_id == legacy_id)
        return (await conn.execute(query)).mappings().one()


def test_counts_and_problems(hub: Hub, run: Any, tmp_path: Path) -> None:
    done = run(imported(hub, tmp_path))
    assert (done.cards, done.organisations, done.repositories) == (6, 2, 4)
    assert (done.versions, done.unchanged) == (2 + 2 + 1 + 2, 0)
    problems = "\n".join(done.problems)
    assert "api/reserved.yaml: 'api' is reserved" in problems
    assert "jane/broken.yaml: Line" in problems
    assert "jane/short.yaml: it has no task, subtask" in problems
    assert "config.using='pfeifer' is not one of the architectures houlsby" in problems
    assert '@jane/my adapter--x: the taxonomy has no sentiment"/sst-2. Near to it: sentiment/sst-2' in problems
    assert "@ukp/no-wiki: the taxonomy has no no/wiki" in problems
    assert len(done.problems) == 6
    assert "4 repositories" in str(done) and "reserved" in str(done)


def test_all_that_a_card_says(hub: Hub, run: Any, tmp_path: Path) -> None:
    async def work() -> Any:
        await imported(hub, tmp_path)
        return await files_of(hub, "ukp/sst_pfeiffer"), await columns(hub, "@ukp/sst_pfeiffer")

    (card, config), row = run(work())
    assert card.data["tags"] == ["adapter-transformers", "adapterhub:sentiment/sst-2", "bert"]
    assert (card.data["base_model"], card.data["legacy_id"]) == ("bert-base-uncased", "@ukp/sst_pfeiffer")
    assert [version["sha256"] for version in card.data["versions"]] == ["bb", "dd"]
    assert "language" not in card.data and "license" not in card.data
    for text in ("Jane Doe", "jane", "10 epochs", "A `quoted` title", "https://example.org/1.zip", "a \\| b"):
        assert text in card.body
    assert config["config"]["output_adapter"] is True and config["config"]["mh_adapter"] is False
    assert (config["model_name"], config["hidden_size"]) == ("bert-base-uncased", 768)
    # The ids that the old hub gave to its two architectures.
    assert (row["config_name"], row["config_id"]) == ("seq_bn", "9076f36a74755ac4")
    assert (row["type"], row["task"], row["subtask"]) == ("text_task", "sentiment", "sst-2")
    assert (row["library"], row["model_type"], row["reduction_factor"]) == ("adapters", "bert", 16)
    assert (row["errors"], row["bytes"], row["head_type"]) == (0, 0, "unknown")
    assert [check["id"] for check in row["checks"] if check["level"] == "warning"] == [
        "card.license",
        "weights.missing",
    ]


def test_quirks_of_yaml(hub: Hub, run: Any, tmp_path: Path) -> None:
    async def work() -> Any:
        await imported(hub, tmp_path)
        async with hub.db.read() as conn:
            repo = await repos.find(conn, ANONYMOUS, "ukp/sst_houlsby")
            branches = [ref["name"] for ref in await refs.listing(conn, repo, refs.HEADS)]
        return await files_of(hub, "ukp/no-wiki"), await columns(hub, "@ukp/sst_houlsby"), branches

    (norwegian, config), houlsby, branches = run(work())
    assert norwegian.data["language"] == ["no"]
    assert config["config"]["inv_adapter"] == "nice"
    assert (houlsby["non_linearity"], houlsby["reduction_factor"]) == ("gelu", 2)
    assert branches == ["refs/heads/main", "refs/heads/1", "refs/heads/1.10"]


def test_scores_count_for_the_default_version(hub: Hub, run: Any, tmp_path: Path) -> None:
    async def work() -> Any:
        await imported(hub, tmp_path)
        async with hub.db.read() as conn:
            place = sa.select(schema.evaluation).where(schema.evaluation.c.subtask == "sst-2")
            return (await conn.execute(place)).mappings().all()

    rows = run(work())
    assert {(row["task"], row["metric"], row["value"]) for row in rows} == {("sentiment", "accuracy", 92.5)}


def test_old_names_lead_to_what_they_led_to(hub: Hub, run: Any, tmp_path: Path) -> None:
    async def work() -> Any:
        await imported(hub, tmp_path)
        async with hub.db.read() as conn:
            names = ("@ukp/sst_houlsby", "sentiment/sst-2", "no/wiki@ukp")
            return [await resolver.resolve(conn, ANONYMOUS, name) for name in names]

    file, place, language = run(work())
    assert file.id == "ukp/sst_houlsby"
    assert (place.id, place.reason) == ("ukp/sst_pfeiffer", "preferred")
    assert language.id == "ukp/no-wiki"


def wiki(language: str, file: str, using: str = "pfeiffer", subtask: str = "wiki") -> dict[str, str]:
    text = old_cards.NORWEGIAN.replace("task: no\n", f"task: {language}\n").replace("pfeiffer+inv", using)
    return {f"ukp/bert-base-multilingual-cased-{file}.yaml": text.replace("subtask: wiki", f"subtask: {subtask}")}


def test_places_have_the_defaults_of_the_old_index(hub: Hub, run: Any, tmp_path: Path) -> None:
    """Of several of one architecture, the old hub took that which its file system listed last."""
    cards_of = {}
    for language in ("gn", "jv"):
        for variant, using in (("houlsby", "houlsby"), ("pfeiffer", "pfeiffer"), ("pfeiffer_relu", "pfeiffer")):
            cards_of |= wiki(language, f"{language}-wiki_{variant}", using)

    async def work() -> Any:
        await import_cards(hub, old_cards.write(tmp_path, cards_of))
        async with hub.db.read() as conn:
            return [(await resolver.resolve(conn, ANONYMOUS, f"{language}/wiki")).id for language in ("gn", "jv")]

    gn, jv = run(work())
    assert gn == "ukp/bert-base-multilingual-cased-gn-wiki_pfeiffer"
    assert jv == "ukp/bert-base-multilingual-cased-jv-wiki_pfeiffer_relu"


def test_a_language_and_a_data_set_of_one_name_are_ambiguous(hub: Hub, run: Any, tmp_path: Path) -> None:
    cards_of = {**wiki("ja", "ja-wiki"), **wiki("wikiann", "wikiann-ja", subtask="ja")}

    async def work() -> Any:
        await import_cards(hub, old_cards.write(tmp_path, cards_of))
        async with hub.db.read() as conn:
            await resolver.resolve(conn, ANONYMOUS, "ja", model="bert-base-multilingual-cased")

    with pytest.raises(Conflict, match="can mean 2 adapters"):
        run(work())


def test_configs_have_the_ids_of_the_old_hub() -> None:
    """Also those of an architecture that leaves layers out: their numbers are numbers."""
    architectures = {row["name"]: row["config"] for row in load("taxonomy.json")["architectures"]}
    names = {
        "pfeiffer": "9076f36a74755ac4",
        "houlsby": "b1017368d7a97b11",
        "lohfink-rossi-leaveout": "e36ab9a116654f61",
    }
    assert {name: config_id(architectures[name]) for name in names} == names


def test_a_head_of_a_fixed_class_is_known_by_it(hub: Hub, run: Any, tmp_path: Path) -> None:
    text = old_cards.SST.replace("BertModelWithHeads", "BertForQuestionAnswering")

    async def work() -> Any:
        await import_cards(hub, old_cards.write(tmp_path, {"ukp/qa.yaml": text, "ukp/none.yaml": old_cards.NORWEGIAN}))
        return await columns(hub, "@ukp/qa"), await columns(hub, "@ukp/none")

    of_class, none = run(work())
    assert (of_class["head_type"], none["head_type"]) == ("question_answering", None)


def test_pages_say_once_that_there_are_no_weights(hub_server: Any, tmp_path: Path) -> None:
    hub_server.call(lambda hub: import_cards(hub, old_cards.write(tmp_path, {"ukp/sst.yaml": old_cards.SST})))
    with hub_server.client(None) as client:
        page, listing, home = (client.get(path).text for path in ("/ukp/sst", "/adapters", "/"))
        (snippet,) = client.get("/api/v1/snippet/ukp/sst").json()
    assert page.count("No weights here.") == 1 and "failing check" not in page + listing + home
    assert "/upload?repo=ukp%2Fsst" in page
    assert "no weights here" in listing
    assert "<b>1</b>adapter without weights here" in home
    assert snippet["id"] == "fetch" and "https://example.org/2.zip" in snippet["code"]


def test_a_second_import_changes_nothing(hub: Hub, run: Any, tmp_path: Path) -> None:
    async def heads() -> Any:
        async with hub.db.read() as conn:
            return (await conn.execute(sa.select(schema.ref).order_by("repo_id", "name"))).all()

    async def work() -> Any:
        await imported(hub, tmp_path)
        before = await heads()
        return before, await imported(hub, tmp_path), await heads()

    before, again, after = run(work())
    assert (again.repositories, again.organisations, again.versions, again.unchanged) == (0, 0, 0, 4)
    assert after == before


def test_a_changed_card_is_taken_over_again(hub: Hub, run: Any, tmp_path: Path) -> None:
    async def work() -> Any:
        await imported(hub, tmp_path)
        changed = old_cards.SST.replace("Jane Doe", "John Doe")
        old_cards.write(tmp_path, {"ukp/sst_pfeiffer.yaml": changed})
        return await import_cards(hub, tmp_path), await files_of(hub, "ukp/sst_pfeiffer")

    again, (card, _) = run(work())
    assert again.unchanged == 3
    assert "John Doe" in card.body


def test_what_people_changed_is_left_alone(hub: Hub, run: Any, tmp_path: Path) -> None:
    async def work() -> Any:
        await imported(hub, tmp_path)
        me = await admin(hub)
        async with hub.db.read() as conn:
            repo = await repos.find(conn, me, "ukp/sst_pfeiffer")

        async def text() -> Any:
            yield b"mine"

        blob = await ingest(hub, text(), repo_id=repo.id, name="README.md")
        await committing.commit(hub, me, repo, "main", [Put("README.md", blob.sha256, lfs=False)], title="Rewrite")
        return await import_cards(hub, tmp_path), await files_of(hub, "ukp/sst_pfeiffer")

    again, (card, _) = run(work())
    assert card.body == "mine"
    assert any("ukp/sst_pfeiffer was changed since" in problem for problem in again.problems)


def test_who_may_import_what(hub: Hub, run: Any, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="has no cards"):
        run(import_cards(hub, tmp_path))
    with pytest.raises(Unauthorized):
        run(import_cards(hub, old_cards.write(tmp_path), ANONYMOUS))
