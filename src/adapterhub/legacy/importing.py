"""Taking over the cards of the old hub."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from .. import accounts
from ..accounts import Principal
from ..changes import committing, manage
from ..changes.committing import Put
from ..content.cards import InvalidCard
from ..db import schema
from ..errors import BadRequest, HubError, NotFound, RepoNotFound
from ..facts import taxonomy
from ..facts.taxonomy import Taxonomy
from ..index import base_models, resolver
from ..ingest import ingest, once
from ..repos import commits, refs, repos
from ..repos.repos import Repo
from . import cards
from .cards import OldCard

if TYPE_CHECKING:
    from ..hub import Hub

__all__ = ["Imported", "import_cards"]

_HUB = Principal(name="adapterhub", is_admin=True, role="write")
_TITLE = "Take over the card of the old AdapterHub"
# What the old index named by default, though a card of a later name has Pfeiffer's architecture too.
_LISTED_LAST = frozenset(
    f"@ukp/bert-base-multilingual-cased-{language}-wiki_pfeiffer"
    for language in ("cdo", "gn", "is", "ja", "my", "qu", "sw")
)
_UNTOUCHED = (_TITLE, "initial commit")


@dataclass
class Imported:
    """What came of an import.

    Attributes:
        cards: how many were read.
        organisations: how many were made.
        repositories: how many were made.
        versions: how many branches were made.
        unchanged: cards that were here already, just like this.
        problems: what could not be taken over, and why.
    """

    cards: int = 0
    organisations: int = 0
    repositories: int = 0
    versions: int = 0
    unchanged: int = 0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = f"{self.cards} cards: {self.organisations} organisations, {self.repositories} repositories and "
        counts += f"{self.versions} versions made, {self.unchanged} cards unchanged, {len(self.problems)} problems. "
        counts += "No weights came along; their pages say where they were, and how to add them."
        return "\n".join([counts, *self.problems])


async def import_cards(hub: Hub, directory: Path, principal: Principal = _HUB) -> Imported:
    """Makes a repository of each card `adapters/<org>/<file>.yaml`, in an organisation of that name.

    A repository has the card's text, its config and a branch per version; the weights are not fetched. It can be
    repeated: what is here already stays, and what somebody has changed since is left alone. The adapter that the old
    hub took by default at a place becomes the preferred one, unless another is.

    Args:
        directory: a copy of the old hub, or its folder `adapters`.
        principal: an administrator, who becomes admin of the organisations that are made; by default the hub itself,
            and then they have no members yet.

    Raises:
        BadRequest: there are no cards.
        Unauthorized, Forbidden: the caller is no administrator.
    """
    if principal is not _HUB:
        accounts.require_admin(principal)
    done = Imported()
    paths = _paths(directory)
    if not paths:
        raise BadRequest(f"{directory} has no cards: expected are files like adapters/<organisation>/<name>.yaml.")
    async with hub.db.write() as conn:
        await taxonomy.seed(conn)
        known = await taxonomy.read(conn)
        architecture = sa.select(schema.architecture.c.name, schema.architecture.c.config)
        architectures = dict((await conn.execute(architecture)).all())
    taken: list[tuple[OldCard, Repo]] = []
    for path in paths:
        try:
            card = cards.read(path)
            done.cards += 1
            done.problems += _doubts(card, known)
            repo = await _take_over(hub, principal, card, known, architectures, done)
        except (InvalidCard, HubError) as error:
            done.problems.append(f"{path.parent.name}/{path.name}: {error}")
        else:
            taken.append((card, repo))
    async with hub.db.write() as conn:
        await _prefer(conn, taken)
        await accounts.log(conn, principal, "import.legacy", directory.name, repositories=done.repositories)
    return done


def _paths(directory: Path) -> list[Path]:
    root = directory / "adapters" if (directory / "adapters").is_dir() else directory
    return sorted(path for path in root.glob("*/*") if path.suffix in (".yaml", ".yml"))


def _doubts(card: OldCard, known: Taxonomy) -> list[str]:
    """What a card refers to, but is not there."""
    _, task, subtask = card.place
    found = []
    if (task, subtask) not in known.subtasks:
        near = known.near(task, subtask)
        hint = f" Near to it: {', '.join(near)}." if near else ""
        found.append(f"{card.legacy_id}: the taxonomy has no {task}/{subtask}.{hint}")
    if card.text("default_version") not in {str(item["version"]) for item in card.versions}:
        found.append(f"{card.legacy_id}: its default version {card.text('default_version')!r} is not among its files.")
    return found


async def _take_over(
    hub: Hub,
    principal: Principal,
    card: OldCard,
    known: Taxonomy,
    architectures: Mapping[str, Mapping[str, Any]],
    done: Imported,
) -> Repo:
    full_name = f"{card.org}/{card.repo_name}"
    config = json.dumps(cards.adapter_config(card, architectures), indent=2, sort_keys=True) + "\n"
    files = {"README.md": cards.readme(card, full_name, known), "adapter_config.json": config}
    repo = await _repo(hub, principal, card.org, full_name, done)
    async with hub.db.read() as conn:
        head = await commits.resolve(conn, repo, repo.default_branch)
    if head.title not in _UNTOUCHED:
        raise BadRequest(f"{full_name} was changed since it was taken over, so it is left as it is.")
    puts = []
    for path, text in files.items():
        blob = await ingest(hub, once(text.encode()), repo_id=repo.id, name=path)
        puts.append(Put(path, blob.sha256, lfs=False))
    made = await committing.commit(hub, principal, repo, repo.default_branch, puts, title=_TITLE)
    done.unchanged += not made.changed
    await _branches(hub, repo, card, done)
    return repo


async def _repo(hub: Hub, principal: Principal, org: str, full_name: str, done: Imported) -> Repo:
    """The repository of that name, made with its organisation if it is not there."""
    async with hub.db.write() as conn:
        try:
            return await repos.find(conn, principal, full_name, write=True)
        except RepoNotFound:
            pass
        try:
            await accounts.find_account(conn, org, kind="org")
        except NotFound:
            await accounts.create_org(conn, org, principal.id, task_name=True)
            done.organisations += 1
    repo = await manage.create(hub, principal, full_name)
    done.repositories += 1
    return repo


async def _branches(hub: Hub, repo: Repo, card: OldCard, done: Imported) -> None:
    async with hub.db.write() as conn:
        present = {row["name"] for row in await refs.listing(conn, repo, refs.HEADS)}
        for version in dict.fromkeys(str(item["version"]) for item in card.versions):
            if refs.HEADS + version in present:
                continue
            try:
                await refs.create(conn, repo, refs.HEADS, version, repo.default_branch)
                done.versions += 1
            except BadRequest as error:
                done.problems.append(f"{card.legacy_id}: {error}")


async def _prefer(conn: AsyncConnection, taken: Iterable[tuple[OldCard, Repo]]) -> None:
    """Prefers what the old hub took by default: the last one of Pfeiffer's architecture, else the first one.

    Where a place had several of them, the last one was what its file system listed last: mostly that of the last name.
    """
    defaults: dict[tuple[str, str, str], tuple[OldCard, Repo]] = {}
    for card, repo in taken:
        first = card.place not in defaults
        kept = not first and defaults[card.place][0].legacy_id in _LISTED_LAST
        if first or (card.data["config"]["using"] == "pfeiffer" and not kept):
            defaults[card.place] = card, repo
    chosen = schema.preferred.c
    settled = set((await conn.execute(sa.select(chosen.base_model, chosen.task, chosen.subtask))).all())
    for (model, task, subtask), (_, repo) in defaults.items():
        if (base_models.canonical(model), task, subtask) not in settled:
            await resolver.prefer(conn, repo.id)
