"""Tasks, languages and data sets, and which adapters stand there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from .. import accounts
from ..errors import NotFound
from ..facts.taxonomy import Taxonomy, read
from ..http import hub_of
from ..index import leaderboard, resolver, search
from ..repos import repos
from .models import Board, Preferred, TypeOfAdapter
from .shared import Caller, Choice, FullName, Text, User, part

__all__ = ["router"]

router = part("places")


@router.get("/tree", response_model=list[TypeOfAdapter])
async def tree(request: Request) -> Any:
    """All tasks and languages with their data sets, and how many public adapters stand at each."""
    hub = hub_of(request)
    async with hub.db.read() as conn:
        counts, known = await search.tree(conn, hub.counts), await read(conn)
    return [_type(kind, counts.get(kind, {}), known) for kind in ("text_task", "text_lang")]


def _type(kind: str, counts: Mapping[str, Mapping[str, int]], known: Taxonomy) -> dict[str, Any]:
    ids = {id for id, row in known.tasks.items() if row["type"] == kind} | counts.keys()
    tasks = [_task(id, counts.get(id, {}), known) for id in ids]
    tasks.sort(key=lambda task: (task["displayname"].lower(), task["id"]))
    return {"type": kind, "count": sum(task["count"] for task in tasks), "tasks": tasks}


def _task(id: str, counts: Mapping[str, int], known: Taxonomy) -> dict[str, Any]:
    rows = {subtask: row for (task, subtask), row in known.subtasks.items() if task == id}
    rows |= {subtask: {} for subtask in counts if subtask and subtask not in rows}
    subtasks = [
        {**row, "id": subtask, "displayname": row.get("displayname") or subtask, "count": counts.get(subtask, 0)}
        for subtask, row in sorted(rows.items())
    ]
    about = known.tasks.get(id, {"displayname": id, "description": ""})
    return {**about, "id": id, "count": sum(counts.values()), "subtasks": subtasks}


@router.get("/leaderboard/{task}/{subtask}", response_model=Board)
async def board(
    request: Request, caller: Caller, task: Text, subtask: Text, metric: Choice = None, base_model: Choice = None
) -> Any:
    """The adapters of a data set by what their cards report.

    Without `metric` the data set's own is taken. Where less is better, as for a loss, the least comes first.
    """
    async with hub_of(request).db.read() as conn:
        found = await leaderboard.board(conn, caller, task, subtask, metric=metric, base_model=base_model)
        known = await read(conn)
    if not found.lines and not found.missing and (task, subtask) not in known.subtasks:
        near = known.near(task, subtask)
        hint = f" Did you mean {' or '.join(near)}?" if near else " GET /api/v1/tree lists all."
        raise NotFound(f"There is no data set {task}/{subtask}.{hint}", details={"near": near})
    return found


@router.put("/preferred", status_code=204)
async def prefer(request: Request, caller: User, body: Preferred) -> None:
    """Makes an adapter the one that is meant by its task, subtask and base model. For administrators."""
    async with hub_of(request).db.write() as conn:
        repo = await repos.find(conn, caller, body.id)
        await resolver.prefer(conn, repo.id)
        await accounts.log(conn, caller, "preferred.set", repo.full_name)


@router.delete("/preferred", status_code=204)
async def unprefer(request: Request, caller: User, id: FullName) -> None:
    """Takes the preference for an adapter back. For administrators."""
    async with hub_of(request).db.write() as conn:
        repo = await repos.find(conn, caller, id)
        await resolver.unprefer(conn, repo.id)
        await accounts.log(conn, caller, "preferred.unset", repo.full_name)
