"""Users, organisations, tokens and sessions, and what each of them may do."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import secrets
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar

import argon2
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from . import claims, names
from .db import schema
from .db.engine import Database, insert
from .db.lookup import Lookup
from .db.schema import now
from .errors import BadRequest, Busy, Conflict, Forbidden, NotFound, Unauthorized

__all__ = [
    "ANONYMOUS",
    "Principal",
    "authenticate",
    "check_password",
    "confirm_session",
    "create_org",
    "create_token",
    "create_user",
    "find_account",
    "log",
    "logout",
    "open_session",
    "principal",
    "revoke_token",
    "session_principal",
    "set_member",
    "set_password",
    "remove_member",
    "tokens",
]

_T = TypeVar("_T")

TOKEN_PREFIX = "ahb_"
SESSION_DAYS = 30
ROLES = ("read", "write", "admin")
_LONGEST = 1024  # characters of a password
_PASSWORDS = argon2.PasswordHasher()
# Each hash takes 64 MiB and a core while it is made. Others wait for their turn, and beyond a queue, come again.
_HASHING = ThreadPoolExecutor(2, thread_name_prefix="password")
_MOST_WAITING = 64
_waiting = 0
_SEEN_EVERY = timedelta(minutes=10)


@dataclass(frozen=True)
class Principal:
    """Who asks, and what they may do.

    Attributes:
        id: the account's id; None for a visitor.
        name: the account's name; empty for a visitor.
        is_admin: whether they run the hub.
        role: `read` or `write`, of the token; a session writes.
        namespaces: their own name and those of their organisations, with `read`, `write` or `admin` for each.
        scope: namespaces or repositories that the token is limited to; empty for all.
        token_id: the token they came with.
        token: its name, role and date, as `whoami` shows it.
        session: digest of the session they came with.
        csrf: what their forms must bring back.
        confirmed: when the session's password was given last.
    """

    id: int | None = None
    name: str = ""
    is_admin: bool = False
    role: str = "read"
    namespaces: Mapping[str, str] = field(default_factory=dict)
    scope: tuple[str, ...] = ()
    token_id: int | None = None
    token: Mapping[str, Any] = field(default_factory=dict)
    session: str | None = None
    csrf: str | None = None
    confirmed: datetime | None = None

    @property
    def is_anonymous(self) -> bool:
        """Whether nobody is logged in."""
        return self.id is None

    def _role_in(self, namespace: str, full_name: str) -> str | None:
        if self.scope and not {namespace.lower(), full_name.lower()} & {part.lower() for part in self.scope}:
            return None
        own = {name.lower(): role for name, role in self.namespaces.items()}.get(namespace.lower())
        return own or ("admin" if self.is_admin else None)

    def may_read(self, namespace: str, full_name: str) -> bool:
        """Whether they see the private repository `full_name` of `namespace`."""
        return self._role_in(namespace, full_name) is not None

    def may_write(self, namespace: str, full_name: str) -> bool:
        """Whether they may change the repository `full_name` of `namespace`."""
        return self.role == "write" and self._role_in(namespace, full_name) in ("write", "admin")

    def may_admin(self, namespace: str) -> bool:
        """Whether they may delete its repositories and manage its members."""
        return self.role == "write" and self._role_in(namespace, namespace) == "admin"

    def require_user(self) -> int:
        """Their account's id.

        Raises:
            Unauthorized: nobody is logged in.
        """
        if self.id is None:
            raise Unauthorized("This needs an account. Log in, or send a token: Authorization: Bearer ahb_…")
        return self.id


ANONYMOUS = Principal()


async def find_account(conn: AsyncConnection, name: str, *, kind: str | None = None) -> sa.RowMapping:
    """The account of a name, whatever its case.

    Raises:
        NotFound: there is none of that name and kind.
    """
    query = sa.select(schema.account).where(schema.account.c.name_key == names.key(name))
    row = (await conn.execute(query)).mappings().one_or_none()
    if row is None or row["name"].lower() != name.lower() or (kind and row["kind"] != kind):
        raise NotFound(f"There is no {'organisation' if kind == 'org' else kind or 'account'} named {name!r}.")
    return row


async def create_user(
    conn: AsyncConnection,
    name: str,
    password: str | None = None,
    *,
    fullname: str = "",
    email: str | None = None,
    is_admin: bool = False,
) -> int:
    """A new user; without a password they can only use tokens.

    Raises:
        BadRequest: the name is not allowed or the password is shorter than eight characters.
        Conflict: the name, or one that looks like it, is taken.
    """
    names.check_namespace(name)
    hashed = await _hashed(password) if password is not None else None
    return await _create(
        conn, name, kind="user", fullname=fullname, email=email, is_admin=is_admin, password_hash=hashed
    )


async def create_org(
    conn: AsyncConnection,
    name: str,
    owner_id: int | None,
    *,
    fullname: str = "",
    about: str = "",
    task_name: bool = False,
) -> int:
    """A new organisation, with its owner as first member.

    Args:
        task_name: whether it may be called like a task: only where those who run the hub vouch for it.

    Raises:
        BadRequest, Conflict: as for `create_user`.
    """
    names.check_namespace(name, task_name=task_name)
    org_id = await _create(conn, name, kind="org", fullname=fullname, about=about)
    if owner_id is not None:
        await conn.execute(sa.insert(schema.membership).values(org_id=org_id, user_id=owner_id, role="admin"))
    return org_id


async def _create(conn: AsyncConnection, name: str, **values: Any) -> int:
    await claims.require_unclaimed(conn, name)
    name_key = names.key(name)
    taken = (await conn.execute(sa.select(schema.account.c.name).where(schema.account.c.name_key == name_key))).scalar()
    if taken is not None:
        raise Conflict(f"{name!r} is taken or looks like {taken!r}. Choose another name.")
    return await insert(conn, schema.account, name=name, name_key=name_key, **values)


async def set_member(conn: AsyncConnection, org_id: int, user_id: int, role: str) -> None:
    """Adds a user to an organisation, or changes their role there.

    Raises:
        BadRequest: there is no such role.
        Conflict: the last admin would lose their role.
    """
    if role not in ROLES:
        raise BadRequest(f"role={role!r} is not one of {', '.join(ROLES)}.")
    if role != "admin":
        await _keep_an_admin(conn, org_id, user_id)
    await conn.execute(sa.delete(schema.membership).where(*_membership(org_id, user_id)))
    await conn.execute(sa.insert(schema.membership).values(org_id=org_id, user_id=user_id, role=role))


async def remove_member(conn: AsyncConnection, org_id: int, user_id: int) -> None:
    """Removes a user from an organisation.

    Raises:
        Conflict: they are its last admin.
    """
    await _keep_an_admin(conn, org_id, user_id)
    await conn.execute(sa.delete(schema.membership).where(*_membership(org_id, user_id)))


def _membership(org_id: int, user_id: int) -> tuple[sa.ColumnElement[bool], ...]:
    return schema.membership.c.org_id == org_id, schema.membership.c.user_id == user_id


async def _keep_an_admin(conn: AsyncConnection, org_id: int, user_id: int) -> None:
    query = sa.select(schema.membership.c.user_id).where(
        schema.membership.c.org_id == org_id, schema.membership.c.role == "admin"
    )
    admins = set((await conn.execute(query)).scalars())
    if admins == {user_id}:
        raise Conflict("An organisation needs an admin. Make another member admin first.")


# ---- tokens ---------------------------------------------------------------------------------------------------------


async def create_token(
    conn: AsyncConnection,
    account_id: int,
    name: str,
    role: str,
    scope: Sequence[str] = (),
    expires: datetime | None = None,
) -> str:
    """A new token. It is returned this once; the database keeps its SHA-256 only.

    Args:
        role: `read` or `write`.
        scope: namespaces (`acme`) or repositories (`acme/sst2`) that it is limited to; empty for all.

    Raises:
        BadRequest: there is no such role, or the name is empty.
    """
    if role not in ("read", "write"):
        raise BadRequest(f"role={role!r} is not one of read, write.")
    if not name.strip() or len(name) > 96:
        raise BadRequest("A token needs a name of 1 to 96 characters, so that you can tell it from others.")
    body = secrets.token_urlsafe(32).replace("-", "x").replace("_", "y")
    token = f"{TOKEN_PREFIX}{body}{zlib.crc32(body.encode()):08x}"
    await conn.execute(
        sa.insert(schema.token).values(
            account_id=account_id,
            name=name.strip(),
            digest=_digest(token),
            hint=token[:8],
            role=role,
            scope=list(scope),
            expires=expires,
        )
    )
    return token


async def tokens(conn: AsyncConnection, account_id: int) -> Sequence[sa.RowMapping]:
    """An account's tokens that are not revoked, the newest first."""
    query = sa.select(schema.token).where(schema.token.c.account_id == account_id, schema.token.c.revoked.is_(None))
    return (await conn.execute(query.order_by(schema.token.c.id.desc()))).mappings().all()


async def revoke_token(conn: AsyncConnection, account_id: int, token_id: int) -> None:
    """Ends a token at once.

    Raises:
        NotFound: the account has no such token.
    """
    own = (schema.token.c.account_id == account_id, schema.token.c.id == token_id, schema.token.c.revoked.is_(None))
    result = await conn.execute(sa.update(schema.token).where(*own).values(revoked=now()))
    if not result.rowcount:
        raise NotFound("You have no such token.")


_TOKEN = Lookup(
    sa.select(schema.token, schema.account.c.disabled)
    .join(schema.account, schema.account.c.id == schema.token.c.account_id)
    .where(schema.token.c.digest == sa.bindparam("digest"))
)


async def authenticate(db: Database, authorization: str) -> Principal:
    """Who sends an `Authorization` header.

    Raises:
        Unauthorized: the token is malformed, unknown, revoked or expired, or its account is disabled.
    """
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise _bad_credentials()
    for row in await db.look_up(_TOKEN, digest=_digest(token.strip())):
        if not (row.revoked or row.disabled or (row.expires and row.expires < now())):
            shown = {"displayName": row.name, "role": row.role, "created": row.created, "seen": row.last_used}
            given = {"role": row.role, "scope": tuple(row.scope), "token_id": row.id, "token": shown}
            return await principal(db, row.account_id, **given)
    raise _bad_credentials()


def _bad_credentials() -> Unauthorized:
    message = "Invalid credentials in Authorization header"
    return Unauthorized(message, headers={"X-Error-Message": message})


def was_seen_lately(principal: Principal) -> bool:
    """Whether the token's `last_used` is fresh enough to leave it."""
    seen = principal.token.get("seen")
    return principal.token_id is None or (seen is not None and now() - seen < _SEEN_EVERY)


async def mark_seen(conn: AsyncConnection, token_id: int) -> None:
    """Notes that a token was used."""
    await conn.execute(sa.update(schema.token).where(schema.token.c.id == token_id).values(last_used=now()))


_ORG = schema.account.alias()
_MEMBER = Lookup(  # one row for each of their organisations, at least one
    sa.select(schema.account.c.name, schema.account.c.is_admin, _ORG.c.name.label("org"), schema.membership.c.role)
    .select_from(schema.account)
    .outerjoin(schema.membership, schema.membership.c.user_id == schema.account.c.id)
    .outerjoin(_ORG, _ORG.c.id == schema.membership.c.org_id)
    .where(schema.account.c.id == sa.bindparam("id"))
    .order_by(_ORG.c.name)
)


async def principal(db: Database, account_id: int, *, role: str = "write", **facts: Any) -> Principal:
    """What an account may do."""
    rows = await db.look_up(_MEMBER, id=account_id)
    namespaces = {rows[0].name: "admin", **{row.org: row.role for row in rows if row.org}}
    return Principal(account_id, rows[0].name, rows[0].is_admin, role, namespaces, **facts)


# ---- sessions -------------------------------------------------------------------------------------------------------


async def check_password(conn: AsyncConnection, name: str, password: str) -> int:
    """The id of the user of a name and a password.

    Raises:
        Unauthorized: name and password do not fit, or the account is disabled. It is not said which.
    """
    query = sa.select(schema.account).where(
        schema.account.c.name_key == names.key(name), schema.account.c.kind == "user"
    )
    row = (await conn.execute(query)).mappings().one_or_none()
    known = row is not None and row["name"].lower() == name.lower() and row["password_hash"]
    hashed = row["password_hash"] if row is not None and known else await _in_turn(_no_password)
    try:
        await _in_turn(_PASSWORDS.verify, hashed, password)
    except argon2.exceptions.VerificationError:
        known = False
    if row is None or not known or row["disabled"]:
        raise Unauthorized("Name and password do not fit.")
    return int(row["id"])


async def _in_turn(work: Callable[..., _T], *args: object) -> _T:
    """What `work` returns, when it was its turn.

    Raises:
        Busy: too many wait for theirs.
    """
    global _waiting
    if _waiting >= _MOST_WAITING:
        raise Busy("Too many people give their passwords at this moment. Try again in a minute.")
    _waiting += 1
    try:
        return await asyncio.get_running_loop().run_in_executor(_HASHING, work, *args)
    finally:
        _waiting -= 1


@functools.cache
def _no_password() -> str:
    """Checked when there is no such user, so that the answer takes as long as for a wrong password."""
    return _PASSWORDS.hash(secrets.token_hex(16))


async def open_session(conn: AsyncConnection, account_id: int) -> str:
    """A new session: the value of its cookie."""
    cookie = secrets.token_urlsafe(32)
    await conn.execute(sa.delete(schema.session).where(schema.session.c.expires < now()))
    await conn.execute(
        sa.insert(schema.session).values(
            digest=_digest(cookie),
            account_id=account_id,
            csrf=secrets.token_urlsafe(24),
            expires=now() + timedelta(days=SESSION_DAYS),
        )
    )
    return cookie


_SESSION = Lookup(
    sa.select(schema.session, schema.account.c.disabled)
    .join(schema.account, schema.account.c.id == schema.session.c.account_id)
    .where(schema.session.c.digest == sa.bindparam("digest"))
)


async def session_principal(db: Database, cookie: str) -> Principal:
    """Who brings a session's cookie; a visitor where it is unknown or has ended."""
    for row in await db.look_up(_SESSION, digest=_digest(cookie)):
        if row.expires > now() and not row.disabled:
            given = {"session": row.digest, "csrf": row.csrf, "confirmed": row.created}
            return await principal(db, row.account_id, **given)
    return ANONYMOUS


async def confirm_session(conn: AsyncConnection, session: str) -> None:
    """Notes that the password of a session, named by its digest, was given again."""
    await conn.execute(sa.update(schema.session).where(schema.session.c.digest == session).values(created=now()))


async def logout(conn: AsyncConnection, session: str) -> None:
    """Ends a session, named by its digest."""
    await conn.execute(sa.delete(schema.session).where(schema.session.c.digest == session))


async def set_password(conn: AsyncConnection, account_id: int, password: str) -> None:
    """Changes a password and ends all sessions of the account.

    Raises:
        BadRequest: it is shorter than eight characters.
    """
    hashed = await _hashed(password)
    await conn.execute(sa.update(schema.account).where(schema.account.c.id == account_id).values(password_hash=hashed))
    await conn.execute(sa.delete(schema.session).where(schema.session.c.account_id == account_id))


async def _hashed(password: str) -> str:
    if not 8 <= len(password) <= _LONGEST:
        raise BadRequest(f"A password needs 8 to {_LONGEST} characters.")
    return await _in_turn(_PASSWORDS.hash, password)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


# ---- the log --------------------------------------------------------------------------------------------------------


async def log(conn: AsyncConnection, actor: Principal | str, action: str, target: str, **detail: Any) -> None:
    """Adds a line to the audit log, in the transaction of what it tells of."""
    name = actor if isinstance(actor, str) else actor.name
    await conn.execute(sa.insert(schema.audit).values(actor=name, action=action, target=target[:220], detail=detail))


def require_admin(principal: Principal) -> None:
    """Lets those who run the hub pass.

    Raises:
        Unauthorized: nobody is logged in.
        Forbidden: they do not run it, or their token only reads or is limited to some repositories.
    """
    principal.require_user()
    if not principal.is_admin or principal.role != "write" or principal.scope:
        raise Forbidden("This is for the administrators of the hub.")
