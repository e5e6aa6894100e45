"""Organisations and their members, tokens, quotas, and the audit log."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import Path, Query
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request

from .. import accounts, names, quotas
from ..accounts import Principal
from ..db import schema
from ..db.schema import now
from ..errors import Forbidden
from ..http import hub_of
from .models import Event, NewOrganisation, NewToken, Organisation, Quota, Role, Token, TokenSecret, Usage
from .shared import Caller, Choice, Name, User, part

__all__ = ["router"]

router = part("accounts")

Limit = Annotated[int, Query(ge=1, le=500)]


# ---- organisations --------------------------------------------------------------------------------------------------


@router.get("/orgs", response_model=list[Organisation])
async def organisations(
    request: Request,
    after: Annotated[str, Query(max_length=96, pattern=r"^[A-Za-z0-9._-]*$", description="Name to go on after.")] = "",
    limit: Limit = 100,
) -> Any:
    """The organisations of this hub by name, without their members."""
    account = schema.account.c
    query = sa.select(account.name, account.fullname, account.about).where(
        account.kind == "org", sa.not_(account.disabled), account.name > after
    )
    async with hub_of(request).db.read() as conn:
        return (await conn.execute(query.order_by(account.name).limit(limit))).mappings().all()


@router.post("/orgs", status_code=201, response_model=Organisation)
async def create_organisation(request: Request, caller: User, body: NewOrganisation) -> Any:
    """A new organisation, of which the caller is the first admin."""
    async with hub_of(request).db.write() as conn:
        await accounts.create_org(conn, body.name, caller.id, fullname=body.fullname, about=body.about)
        await accounts.log(conn, caller, "org.create", body.name)
    return {**body.model_dump(), "members": [{"name": caller.name, "role": "admin"}]}


@router.get("/orgs/{org}", response_model=Organisation)
async def organisation(request: Request, caller: Caller, org: Name) -> Any:
    """One organisation; its members see who else belongs to it."""
    async with hub_of(request).db.read() as conn:
        row = await accounts.find_account(conn, org, kind="org")
        members = await _members(conn, row["id"]) if caller.may_read(row["name"], row["name"]) else []
    return {**row, "members": members}


async def _members(conn: AsyncConnection, org_id: int) -> list[sa.RowMapping]:
    query = (
        sa.select(schema.account.c.name, schema.membership.c.role)
        .join(schema.membership, schema.membership.c.user_id == schema.account.c.id)
        .where(schema.membership.c.org_id == org_id)
        .order_by(schema.account.c.name)
    )
    return [*(await conn.execute(query)).mappings()]


@router.put("/orgs/{org}/members/{user}", status_code=204)
async def set_member(request: Request, caller: User, org: Name, user: Name, body: Role) -> None:
    """Adds a user to an organisation, or changes their role."""
    async with hub_of(request).db.write() as conn:
        owner = await _administered(conn, caller, org)
        member = await accounts.find_account(conn, user, kind="user")
        await accounts.set_member(conn, owner["id"], member["id"], body.role)
        await accounts.log(conn, caller, "org.member", owner["name"], user=member["name"], role=body.role)


@router.delete("/orgs/{org}/members/{user}", status_code=204)
async def remove_member(request: Request, caller: User, org: Name, user: Name) -> None:
    """Removes a user from an organisation; everyone may leave one, and needs no password for that."""
    async with hub_of(request).db.write() as conn:
        member = await accounts.find_account(conn, user, kind="user")
        leaves = member["id"] == caller.id
        owner = await (accounts.find_account(conn, org, kind="org") if leaves else _administered(conn, caller, org))
        await accounts.remove_member(conn, owner["id"], member["id"])
        await accounts.log(conn, caller, "org.member", owner["name"], user=member["name"], role=None)


async def _administered(conn: AsyncConnection, caller: Principal, org: str) -> sa.RowMapping:
    row = await accounts.find_account(conn, org, kind="org")
    if not caller.may_admin(row["name"]):
        raise Forbidden(f"Only admins of {row['name']!r} may do this. Ask one of them.")
    return row


# ---- tokens ---------------------------------------------------------------------------------------------------------


@router.get("/tokens", response_model=list[Token])
async def tokens(request: Request, caller: User) -> Any:
    """The caller's tokens, the newest first."""
    async with hub_of(request).db.read() as conn:
        return await accounts.tokens(conn, caller.require_user())


@router.post("/tokens", status_code=201, response_model=TokenSecret)
async def create_token(request: Request, caller: User, body: NewToken) -> Any:
    """A new token, shown this once."""
    for part_of_scope in body.scope:
        if "/" in part_of_scope:
            names.split(part_of_scope)
        else:
            names.check_repo_name(part_of_scope)
    expires = now() + timedelta(days=body.days) if body.days else None
    async with hub_of(request).db.write() as conn:
        user = caller.require_user()
        token = await accounts.create_token(conn, user, body.name, body.role, body.scope, expires)
        await accounts.log(conn, caller, "token.create", body.name.strip(), role=body.role, scope=body.scope)
    return {"token": token}


@router.delete("/tokens/{id}", status_code=204)
async def revoke_token(request: Request, caller: User, id: Annotated[int, Path(ge=1, lt=2**31)]) -> None:
    """Ends a token at once."""
    async with hub_of(request).db.write() as conn:
        await accounts.revoke_token(conn, caller.require_user(), id)
        await accounts.log(conn, caller, "token.revoke", str(id))


# ---- quotas and the log ---------------------------------------------------------------------------------------------


@router.get("/usage/{namespace}", response_model=Usage)
async def usage(request: Request, caller: User, namespace: Name) -> Any:
    """How many bytes a namespace holds, and may hold."""
    hub = hub_of(request)
    async with hub.db.read() as conn:
        row = await accounts.find_account(conn, namespace)
        if not caller.may_read(row["name"], row["name"]):
            raise Forbidden(f"Only members of {row['name']!r} see what it holds.")
        found = await quotas.usage(hub, conn, row["id"])
        return {"namespace": found.name, "bytes": found.used, "quota": found.quota}


@router.put("/usage/{namespace}", status_code=204)
async def set_quota(request: Request, caller: User, namespace: Name, body: Quota) -> None:
    """Sets how many bytes a namespace may hold. For administrators."""
    async with hub_of(request).db.write() as conn:
        row = await accounts.find_account(conn, namespace)
        mine = schema.account.c.id == row["id"]
        await conn.execute(sa.update(schema.account).where(mine).values(quota=body.quota))
        await accounts.log(conn, caller, "quota", row["name"], quota=body.quota)


@router.get("/audit", response_model=list[Event])
async def audit(
    request: Request,
    caller: User,
    actor: Choice = None,
    action: Choice = None,
    target: Choice = None,
    before: Annotated[int | None, Query(ge=1, lt=2**31, description="Id of the last line of the page before.")] = None,
    limit: Limit = 100,
) -> Any:
    """Who did what, the newest first. For administrators."""
    log = schema.audit.c
    given = {log.actor: actor, log.action: action, log.target: target}
    where = [column == value for column, value in given.items() if value is not None]
    query = sa.select(schema.audit).where(*where, *([log.id < before] if before else []))
    async with hub_of(request).db.read() as conn:
        return (await conn.execute(query.order_by(log.id.desc()).limit(limit))).mappings().all()
