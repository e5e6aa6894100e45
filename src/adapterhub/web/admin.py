"""Running the hub: accounts, quotas, the audit log and the timed jobs."""

from __future__ import annotations

import sqlalchemy as sa
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from .. import accounts
from ..db import schema
from ..errors import BadRequest, Conflict
from ..http import hub_of, principal_of, whole
from ..rights import Page, is_fresh
from ..settings import GiB
from . import queries
from .formats import path as quoted
from .pages import form_of, page, redirect

router = APIRouter(include_in_schema=False, route_class=Page)

_TABS = ("accounts", "audit", "jobs")


@router.get("/admin")
async def admin(request: Request) -> Response:
    """Accounts, the audit log or the jobs."""
    me, params = await principal_of(request), request.query_params
    tab, before = params.get("tab", _TABS[0]), whole(params, "before", None)
    async with hub_of(request).db.read() as conn:
        users = await queries.accounts(conn, params.get("q", "")) if tab == "accounts" else []
        lines = await queries.audit(conn, before=before) if tab == "audit" else []
        jobs = await queries.jobs(conn) if tab == "jobs" else []
    return await page(request, "admin.html", tab=tab, users=users, lines=lines, jobs=jobs, gib=GiB, fresh=is_fresh(me))


@router.post("/admin/accounts")
async def add(request: Request) -> Response:
    """A new user."""
    form, me = await form_of(request), await principal_of(request)
    name = str(form.get("name", "")).strip()
    async with hub_of(request).db.write() as conn:
        await accounts.create_user(conn, name, str(form.get("password", "")), is_admin=form.get("is_admin") == "1")
        await accounts.log(conn, me, "user.create", name)
    return redirect(f"/admin?q={quoted(name, whole=True)}")


@router.post("/admin/accounts/{name}")
async def change(request: Request, name: str) -> Response:
    """Changes an account's quota, or whether it may log in."""
    form, me = await form_of(request), await principal_of(request)
    values = {"quota": _quota(str(form.get("quota", "")).strip()), "disabled": form.get("disabled") == "1"}
    async with hub_of(request).db.write() as conn:
        account = await accounts.find_account(conn, name)
        if account["id"] == me.id and values["disabled"]:
            raise Conflict("You would lock yourself out. Let another administrator do it.")
        await conn.execute(sa.update(schema.account).where(schema.account.c.id == account["id"]).values(**values))
        await accounts.log(conn, me, "account.change", account["name"], **values)
    return redirect(f"/admin?q={quoted(account['name'], whole=True)}")


def _quota(text: str) -> int | None:
    """Bytes of a number of GiB; empty for the hub's default."""
    if not text:
        return None
    try:
        gib = float(text)
    except ValueError as error:
        raise BadRequest(f"quota={text!r} must be a number of GiB, or empty for the hub's default.") from error
    if not 0 <= gib < 2**20:
        raise BadRequest(f"quota={text!r} must lie between 0 and 1,000,000 GiB.")
    return int(gib * GiB)
