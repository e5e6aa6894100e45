"""Ranks, ties, directions and adapters without results; and adapters that fit a model."""

from __future__ import annotations

from typing import Any

from adapterhub.accounts import ANONYMOUS, Principal
from adapterhub.index import compat, leaderboard

from .conftest import Trial
from .rows import add, add_place

SST = {"task": "sentiment", "subtask": "sst-2", "base_model": "bert-base-uncased", "parameters": 7, "bytes": 30}


def board(trial: Trial, rows: dict[str, dict[str, Any]], place: tuple[str, str], **options: Any) -> leaderboard.Board:
    async def work(conn: Any) -> leaderboard.Board:
        await add_place(conn, "lm", "books", "perplexity", False)
        for name, columns in rows.items():
            await add(conn, name, **columns)
        return await leaderboard.board(conn, options.pop("caller", ANONYMOUS), *place, **options)

    return trial(work)


def test_ranks_ties_and_missing_results(trial: Trial) -> None:
    rows = {
        "a/second": {**SST, "scores": {"accuracy": 0.91}},
        "a/also-second": {**SST, "scores": {"accuracy": 91.0}},
        "a/first": {**SST, "scores": {"accuracy": 95.5}},
        "a/fourth": {**SST, "scores": {"accuracy": 0.4}},
        "a/none": SST,
        "a/elsewhere": {**SST, "subtask": "imdb", "scores": {"accuracy": 0.99}},
        "a/private": {**SST, "private": True, "scores": {"accuracy": 0.99}},
        "a/yanked": {**SST, "yanked": "why", "scores": {"accuracy": 0.99}},
        "a/other-metric": {**SST, "scores": {"f1": 0.9}},
    }
    found = board(trial, rows, ("sentiment", "sst-2"))
    assert (found.metric, found.higher_is_better) == ("accuracy", True)
    assert [(line.rank, line.full_name) for line in found.lines] == [
        (1, "a/first"),
        (2, "a/second"),
        (2, "a/also-second"),
        (4, "a/fourth"),
    ]
    assert [(line.value, line.reported) for line in found.lines[:3]] == [(0.955, 95.5), (0.91, 0.91), (0.91, 91.0)]
    assert (found.lines[0].adapter["parameters"], found.lines[0].adapter["bytes"]) == (7, 30)
    assert (list(found.missing), found.unranked) == (["a/none", "a/other-metric"], 2)
    assert found.metrics == {"accuracy": 4, "f1": 1}


def test_those_without_a_number_need_not_be_looked_for(trial: Trial) -> None:
    rows = {"a/first": {**SST, "scores": {"accuracy": 0.9}}, "a/none": SST}
    found = board(trial, rows, ("sentiment", "sst-2"), unranked=False)
    assert [line.full_name for line in found.lines] == ["a/first"]
    assert (list(found.missing), found.unranked) == ([], 0)


def test_less_is_better_for_some_metrics(trial: Trial) -> None:
    books = {"task": "lm", "subtask": "books"}
    rows = {f"a/x{value}": {**books, "scores": {"perplexity": float(value)}} for value in (30, 9, 120)}
    found = board(trial, rows, ("lm", "books"))
    assert [line.full_name for line in found.lines] == ["a/x9", "a/x30", "a/x120"]
    assert not found.higher_is_better


def test_another_metric_and_one_base_model(trial: Trial) -> None:
    rows = {
        "a/one": {**SST, "scores": {"accuracy": 0.5, "f1": 0.2}},
        "a/two": {**SST, "base_model": "google-bert/bert-base-uncased", "scores": {"accuracy": 0.4, "f1": 0.3}},
        "a/other-model": {**SST, "base_model": "roberta-base", "scores": {"accuracy": 0.6, "f1": 0.4}},
    }
    found = board(trial, rows, ("sentiment", "sst-2"), metric="F1-score", base_model="bert-base-uncased")
    assert (found.metric, [line.full_name for line in found.lines]) == ("f1", ["a/two", "a/one"])


def test_members_see_their_private_ones(trial: Trial) -> None:
    rows = {"a/x": {**SST, "private": True, "scores": {"accuracy": 0.9}}}
    member = Principal(id=1, namespaces={"a": "read"})
    assert [line.full_name for line in board(trial, rows, ("sentiment", "sst-2"), caller=member).lines] == ["a/x"]


def test_nothing_stands_there(trial: Trial) -> None:
    found = board(trial, {}, ("no", "thing"))
    assert (found.metric, list(found.lines), list(found.missing)) == (None, [], [])


# ---- what fits a model ----------------------------------------------------------------------------------------------

BERT = {"model_type": "bert", "hidden_size": 768}
FITTING = {
    "a/same": {"base_model": "bert-base-uncased", **BERT, "layers": 12, "downloads": 1},
    "a/same-other-name": {"base_model": "google-bert/bert-base-uncased", **BERT, "downloads": 5},
    "a/cased": {"base_model": "bert-base-cased", **BERT, "layers": 12},
    "a/small": {"base_model": "tiny-bert", **BERT, "layers": 2},
    "a/large": {"base_model": "bert-large", "model_type": "bert", "hidden_size": 1024, "layers": 24},
    "a/roberta": {"base_model": "roberta-base", "model_type": "roberta", "hidden_size": 768, "layers": 12},
    "a/hidden": {"base_model": "bert-base-uncased", **BERT, "private": True},
}


def fitting(trial: Trial, model: str | None, shape: compat.Shape | None = None) -> tuple[list[str], list[str]]:
    async def work(conn: Any) -> compat.Compatible:
        for name, columns in FITTING.items():
            await add(conn, name, **columns)
        return await compat.compatible(conn, ANONYMOUS, model, shape)

    found = trial(work)
    return [row["full_name"] for row in found.same], sorted(row["full_name"] for row in found.fits)


def test_by_name_and_by_the_shape_that_others_tell(trial: Trial) -> None:
    assert fitting(trial, "bert-base-uncased") == (["a/same-other-name", "a/same"], ["a/cased"])


def test_by_a_given_shape(trial: Trial) -> None:
    assert fitting(trial, "my/new-bert", compat.Shape("bert", 768, 2)) == ([], ["a/small"])
    wide = ["a/cased", "a/same", "a/same-other-name", "a/small"]
    assert fitting(trial, None, compat.Shape("bert", 768)) == ([], wide)


def test_an_unknown_model_fits_nothing(trial: Trial) -> None:
    assert fitting(trial, "never/heard") == ([], [])
