"""Accounts: logging in, settings, organisations, and the pages of those who publish."""

from __future__ import annotations

from datetime import timedelta

import sqlalchemy as sa
from fastapi import APIRouter
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response

from .. import accounts, attempts, interest
from ..db import schema
from ..db.schema import now
from ..errors import BadRequest, Conflict, Forbidden, NotFound, TooManyRequests, Unauthorized
from ..http import BROWSER_COOKIE, SESSION_COOKIE, cookie_name, hub_of, principal_of, session_cookie, whole
from ..index import search
from ..ops.setup import consume_setup_key
from ..rights import Page, confirm, is_fresh
from . import queries
from .formats import path as quoted
from .pages import form_of, page, redirect

router = APIRouter(include_in_schema=False, route_class=Page)

_EXPIRY = {"": None, "30": 30, "90": 90, "365": 365}


# ---- sessions -------------------------------------------------------------------------------------------------------


@router.get("/login")
async def login_form(request: Request) -> Response:
    """The form, or onwards for those who are logged in."""
    following = _inside(request.query_params.get("next", "/"))
    if not (await principal_of(request)).is_anonymous:
        return redirect(following)
    return await page(request, "login.html", following=following, problem=None, name="")


@router.post("/login")
async def login(request: Request) -> Response:
    """Checks name and password."""
    form, hub = await form_of(request), hub_of(request)
    following, name = _inside(str(form.get("next", "/"))), str(form.get("name", "")).strip()
    browser = attempts.known_browser(hub, name, request.cookies.get(cookie_name(hub.settings, BROWSER_COOKIE)))
    try:
        async with attempts.attempt(hub, name, browser), hub.db.read() as conn:
            user = await accounts.check_password(conn, name, str(form.get("password", "")))
    except (Unauthorized, TooManyRequests) as error:
        answer = await page(request, "login.html", error.status, following=following, problem=error.message, name=name)
        answer.headers.update(error.headers)
        return answer
    async with hub.db.write() as conn:
        cookie = await accounts.open_session(conn, user)
    answer = _with_session(request, redirect(following), cookie)
    _set_cookie(request, answer, BROWSER_COOKIE, attempts.remember(hub, name), attempts.KNOWN_DAYS)
    return answer


@router.post("/logout")
async def logout(request: Request) -> Response:
    """Ends the session."""
    await form_of(request)
    me, hub = await principal_of(request), hub_of(request)
    if me.session:
        async with hub.db.write() as conn:
            await accounts.logout(conn, me.session)
    answer = redirect("/")
    answer.delete_cookie(session_cookie(hub), secure=_is_secure(request))
    return answer


@router.get("/confirm")
async def confirm_form(request: Request) -> Response:
    """The form for the password, which some changes need again."""
    following = _inside(request.query_params.get("next", "/settings/tokens"))
    return await page(request, "confirm.html", following=following, problem=None)


@router.post("/confirm")
async def confirm_password(request: Request) -> Response:
    """Notes that the password was given; the session needs it no second time for a while."""
    form, me = await form_of(request), await principal_of(request)
    following = _inside(str(form.get("next", "/")))
    try:
        await confirm(request, me, str(form.get("password", "")))
    except (Forbidden, TooManyRequests) as error:
        answer = await page(request, "confirm.html", error.status, following=following, problem=error.message)
        answer.headers.update(error.headers)
        return answer
    return redirect(following)


@router.get("/signup")
async def signup_form(request: Request) -> Response:
    """The form for a new account, where the hub allows it."""
    _require_signup(request)
    return await page(request, "signup.html", setup=None, problem=None, values={})


@router.post("/signup")
async def signup(request: Request) -> Response:
    """Makes an account, and logs it in."""
    _require_signup(request)
    return await _create(request, await form_of(request), setup=None)


@router.get("/setup/{key}")
async def setup_form(request: Request, key: str) -> Response:
    """The form for the first administrator."""
    return await page(request, "signup.html", setup=key, problem=None, values={})


@router.post("/setup/{key}")
async def setup(request: Request, key: str) -> Response:
    """Makes the first administrator."""
    return await _create(request, await form_of(request), setup=key)


async def _create(request: Request, form: FormData, setup: str | None) -> Response:
    values = {name: str(form.get(name, "")).strip() for name in ("name", "fullname", "email")}
    try:
        async with hub_of(request).db.write() as conn:
            if setup is not None:
                await consume_setup_key(conn, setup)
            user = await accounts.create_user(
                conn,
                values["name"],
                str(form.get("password", "")),
                fullname=values["fullname"][:200],
                email=values["email"][:254] or None,
                is_admin=setup is not None,
            )
            cookie = await accounts.open_session(conn, user)
            await accounts.log(conn, values["name"], "user.create", values["name"])
    except Forbidden:
        raise
    except (BadRequest, Conflict) as error:
        return await page(request, "signup.html", error.status, setup=setup, problem=error.message, values=values)
    return _with_session(request, redirect("/docs/start"), cookie)


def _require_signup(request: Request) -> None:
    if not hub_of(request).settings.open_signup:
        raise Forbidden("This hub does not let visitors make accounts. Ask its administrator for one.")


def _with_session(request: Request, answer: Response, cookie: str) -> Response:
    _set_cookie(request, answer, SESSION_COOKIE, cookie, accounts.SESSION_DAYS)
    return answer


def _set_cookie(request: Request, answer: Response, name: str, value: str, days: int) -> None:
    answer.set_cookie(
        cookie_name(hub_of(request).settings, name),
        value,
        max_age=days * 86400,
        httponly=True,
        samesite="lax",
        secure=_is_secure(request),
    )


def _is_secure(request: Request) -> bool:
    return hub_of(request).settings.public_url.startswith("https://")


def _inside(url: str) -> str:
    """An address on this site; anything else becomes the front page."""
    safe = url.startswith("/") and not url.startswith("//") and "\\" not in url and url.isprintable()
    return url if safe else "/"


# ---- settings -------------------------------------------------------------------------------------------------------


@router.get("/settings")
async def settings(request: Request) -> Response:
    """The first page of the settings."""
    return redirect("/settings/profile", 307)


@router.get("/settings/profile")
async def profile(request: Request) -> Response:
    """Full name, address and password."""
    me = await principal_of(request)
    async with hub_of(request).db.read() as conn:
        account = await accounts.find_account(conn, me.name)
        organizations = await queries.organizations_of(conn, me.require_user())
    return await page(request, "profile.html", account=account, organizations=organizations)


@router.post("/settings/profile")
async def change_profile(request: Request) -> Response:
    """Full name, address and what they say of themselves."""
    form, me = await form_of(request), await principal_of(request)
    values = {
        "fullname": str(form.get("fullname", "")).strip()[:200],
        "email": str(form.get("email", "")).strip()[:254] or None,
        "about": str(form.get("about", "")).strip()[:5000],
    }
    async with hub_of(request).db.write() as conn:
        await conn.execute(sa.update(schema.account).where(schema.account.c.id == me.id).values(**values))
    return redirect("/settings/profile")


@router.post("/settings/password")
async def change_password(request: Request) -> Response:
    """Another password, for who knows the present one; other sessions end."""
    form, me, hub = await form_of(request), await principal_of(request), hub_of(request)
    user = me.require_user()
    await confirm(request, me, str(form.get("current", "")))
    async with hub.db.write() as conn:
        await accounts.set_password(conn, user, str(form.get("password", "")))
        cookie = await accounts.open_session(conn, user)
    return _with_session(request, redirect("/settings/profile"), cookie)


@router.get("/settings/tokens")
async def tokens(request: Request) -> Response:
    """The account's tokens."""
    return await _tokens(request, None)


@router.post("/settings/tokens")
async def create_token(request: Request) -> Response:
    """Makes a token, which is shown this once."""
    form, me, hub = await form_of(request), await principal_of(request), hub_of(request)
    user = me.require_user()
    days = _EXPIRY.get(str(form.get("expires", "")))
    expires = now() + timedelta(days=days) if days else None
    name, role = str(form.get("name", "")), str(form.get("role", "read"))
    async with hub.db.write() as conn:
        secret = await accounts.create_token(conn, user, name, role, str(form.get("scope", "")).split(), expires)
        await accounts.log(conn, me, "token.create", me.name, name=name, role=role)
    return await _tokens(request, secret)


@router.post("/settings/tokens/revoke")
async def revoke_token(request: Request) -> Response:
    """Ends a token at once."""
    form, me = await form_of(request), await principal_of(request)
    number = whole(form, "revoke", 0, most=2**31 - 1)
    async with hub_of(request).db.write() as conn:
        await accounts.revoke_token(conn, me.require_user(), number)
        await accounts.log(conn, me, "token.revoke", me.name, token=str(number))
    return redirect("/settings/tokens")


async def _tokens(request: Request, secret: str | None) -> Response:
    me = await principal_of(request)
    async with hub_of(request).db.read() as conn:
        rows = await accounts.tokens(conn, me.require_user())
    answer = await page(request, "tokens.html", rows=rows, secret=secret, fresh=is_fresh(me))
    answer.headers["Cache-Control"] = "no-store"
    return answer


# ---- organisations and owners ---------------------------------------------------------------------------------------


@router.get("/organizations/new")
async def new_organization(request: Request) -> Response:
    """The form for an organisation."""
    return await page(request, "new_organization.html")


@router.post("/organizations/new")
async def create_organization(request: Request) -> Response:
    """Makes an organisation whose admin is the caller."""
    form, me = await form_of(request), await principal_of(request)
    values = {key: str(form.get(key, "")).strip() for key in ("name", "fullname", "about")}
    async with hub_of(request).db.write() as conn:
        await accounts.create_org(
            conn, values["name"], me.require_user(), fullname=values["fullname"][:200], about=values["about"][:5000]
        )
        await accounts.log(conn, me, "org.create", values["name"])
    return redirect(f"/{quoted(values['name'])}")


@router.post("/organizations/{name}/members")
async def change_members(request: Request, name: str) -> Response:
    """Adds, changes or removes a member."""
    form, me = await form_of(request), await principal_of(request)
    role = str(form.get("role", ""))
    async with hub_of(request).db.write() as conn:
        org = await accounts.find_account(conn, name, kind="org")
        if not me.may_admin(org["name"]):
            raise Forbidden(f"Only the admins of {org['name']} choose its members.")
        user = await accounts.find_account(conn, str(form.get("user", "")).strip(), kind="user")
        if role == "remove":
            await accounts.remove_member(conn, org["id"], user["id"])
        else:
            await accounts.set_member(conn, org["id"], user["id"], role)
        await accounts.log(conn, me, "org.member", org["name"], user=user["name"], role=role)
    return redirect(f"/{quoted(org['name'])}?tab=members")


@router.get("/{namespace}")
async def owner(request: Request, namespace: str) -> Response:
    """A user or an organisation with their adapters."""
    me, hub = await principal_of(request), hub_of(request)
    async with hub.db.read() as conn:
        account = await _account(conn, namespace)
        asked = search.Query(
            namespace=account["name"], sort="updated", limit=50, cursor=request.query_params.get("cursor")
        )
        found = await search.query(conn, asked, me, facets=False, counts=hub.counts)
        others = await queries.repos_of(conn, me, account["name"])
        is_member = me.may_read(account["name"], account["name"])
        people = await queries.members(conn, account["id"]) if account["kind"] == "org" and is_member else []
        organizations = await queries.organizations_of(conn, account["id"]) if account["kind"] == "user" else []
        is_watched = await interest.is_watched(conn, me.id, "owner", account["name"])
    return await page(
        request,
        "owner.html",
        account=account,
        found=found,
        others=others,
        people=people,
        organizations=organizations,
        is_watched=is_watched,
        tab="members" if people and request.query_params.get("tab") == "members" else "adapters",
        may_admin=me.may_admin(account["name"]),
        may_write=me.may_write(account["name"], account["name"]),
        roles=accounts.ROLES,
        fresh=is_fresh(me),
    )


async def _account(conn: AsyncConnection, name: str) -> sa.RowMapping:
    try:
        account = await accounts.find_account(conn, name)
    except NotFound as error:
        raise NotFound(
            f"There is no page, user or organisation {name!r}. The search may find what you want."
        ) from error
    if account["disabled"]:
        raise NotFound(f"The account {name!r} is disabled.")
    return account
