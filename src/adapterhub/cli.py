"""The command `adapterhub`: starts a hub and looks after it."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import getpass
import os
import re
import shutil
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import HubError
from .serve import parse, read_settings
from .settings import Settings, unshared

if TYPE_CHECKING:
    from .hub import Hub

__all__ = ["main"]

_EPILOG = """\
first steps:
  adapterhub serve                                   a hub at http://127.0.0.1:8090, its data in ./hub-data
  adapterhub user add alice --admin                  an administrator (or open the link that `serve` prints)
  adapterhub token new alice laptop                  a token, with which alice uploads

every option of `serve` is an environment variable too: --public-url is ADAPTERHUB_PUBLIC_URL.
"""
_HUB = ("data", "db", "blobs")  # the settings that say which hub is meant


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status: 0, 1 where something is wrong, 2 where it was called wrongly."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if not hasattr(args, "run"):
        args.parser.print_help()
        return 2
    mask = os.umask(0o077)
    try:
        settings = read_settings({name: getattr(args, name) for name in args.settings})
        os.umask(unshared(settings))
        result = args.run(args, settings)
        status: int | None = asyncio.run(result) if asyncio.iscoroutine(result) else result
        return status or 0
    except HubError as error:
        print(f"adapterhub: {error.message}", file=sys.stderr)
    except (ValueError, OSError, ImportError) as error:
        print(f"adapterhub: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if not type(error).__module__.startswith(("sqlalchemy", "asyncpg", "sqlite3")):
            raise
        cause = str(getattr(error, "orig", error)).strip().splitlines()[0]
        print(f"adapterhub: the database cannot be used: {cause}", file=sys.stderr)
    finally:
        os.umask(mask)
    return 1


# ---- arguments ------------------------------------------------------------------------------------------------------


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help in two columns that use the width of the terminal."""

    def __init__(self, prog: str) -> None:
        width = min(shutil.get_terminal_size().columns, 110)
        super().__init__(prog, max_help_position=32, width=width)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "adapterhub", description="A hub of adapters of your own.", epilog=_EPILOG, formatter_class=_Help
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    parser.set_defaults(parser=parser)

    serve = _add(commands, "serve", "start the hub", _serve, settings=_setting_names())
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all (127.0.0.1)")
    serve.add_argument("--port", type=int, default=8090, help="port to listen on (8090)")

    user = _group(commands, "user", "make and manage users")
    add = _add(user, "add", "make a user; asks for a password", _user_add)
    add.add_argument("name")
    add.add_argument("--fullname", default="", help="name for people to read")
    add.add_argument("--email")
    add.add_argument("--admin", action="store_true", help="the user runs the hub")
    _password_options(add)
    _add(user, "list", "show the users", _user_list)
    disable = _add(user, "disable", "lock a user out: their tokens and sessions end", _user_disable)
    disable.add_argument("name")
    disable.add_argument("--undo", action="store_true", help="let the user in again")
    password = _add(user, "password", "change a user's password", _user_password)
    password.add_argument("name")
    _password_options(password)

    org = _group(commands, "org", "make organisations and manage their members")
    add = _add(org, "add", "make an organisation", _org_add)
    add.add_argument("name")
    add.add_argument("owner", help="its first member, who manages it")
    add.add_argument("--fullname", default="", help="name for people to read")
    member = _add(org, "member", "add a member, change their role, or remove them", _org_member)
    member.add_argument("org")
    member.add_argument("user")
    member.add_argument("role", choices=("read", "write", "admin", "none"), help="none removes them")

    token = _group(commands, "token", "make and revoke tokens")
    new = _add(token, "new", "make a token and print it, this once", _token_new)
    new.add_argument("user")
    new.add_argument("name", help="to tell it from others, such as the machine it is for")
    new.add_argument("--role", choices=("read", "write"), default="write", help="what it may do (write)")
    new.add_argument("--scope", action="append", default=[], metavar="NAME", help="only for a namespace or repository")
    new.add_argument("--days", type=int, help="days until it ends; without, it does not")
    listing = _add(token, "list", "show a user's tokens", _token_list)
    listing.add_argument("user")
    revoke = _add(token, "revoke", "end a token at once", _token_revoke)
    revoke.add_argument("user")
    revoke.add_argument("id", type=int, help="its number in `token list`")

    legacy = _add(commands, "import-legacy", "take over the cards of the old AdapterHub", _import_legacy)
    legacy.add_argument("folder", type=Path, help="a checkout of the old Hub repository")
    check = _add(commands, "check", "check a local folder as an upload would be", _check, settings=())
    check.add_argument("path", type=Path)
    _add(commands, "reindex", "derive the index anew from all files", _reindex)
    gc = _add(commands, "gc", "remove bytes that nothing names", _gc)
    gc.add_argument("--grace", type=float, default=7, metavar="DAYS", help="keep what was named so lately (7)")
    fsck = _add(commands, "fsck", "look everything over; exit status 1 if something is wrong", _fsck)
    fsck.add_argument("--deep", action="store_true", help="read and hash all bytes")
    fsck.add_argument("--repair", action="store_true", help="put right what can be derived")
    copy = _add(commands, "backup", "copy the hub, while it runs, into a folder; again: only what is new", _backup)
    copy.add_argument("folder", type=Path)
    copy.add_argument("--tables", action="store_true", help="as rows of JSON, which any database can take")
    back = _add(commands, "restore", "fill a new hub from such a folder", _restore)
    back.add_argument("folder", type=Path)
    _add(commands, "migrate", "bring the database to what this version needs", _migrate)
    return parser


def _group(commands: Any, name: str, text: str) -> Any:
    parser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", formatter_class=_Help)
    parser.set_defaults(parser=parser)
    return parser.add_subparsers(title="commands", metavar="COMMAND")


def _add(
    commands: Any, name: str, text: str, run: Callable[..., Any], settings: Sequence[str] = _HUB
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", formatter_class=_Help
    )
    parser.set_defaults(run=run, settings=settings)
    group = parser.add_argument_group("settings") if settings else parser
    texts = _setting_texts()
    for field in dataclasses.fields(Settings):
        if field.name in settings:
            _add_setting(group, field, texts[field.name])
    return parser


def _add_setting(group: Any, field: dataclasses.Field[Any], text: str) -> None:
    option = "--" + field.name.replace("_", "-")
    text = text.replace("`", "").rstrip(".").replace("%", "%%")
    if str(field.type) == "bool":
        group.add_argument(option, action=argparse.BooleanOptionalAction, default=None, help=text)
        return

    def convert(value: str) -> Any:
        try:
            return parse(field.name, value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    group.add_argument(option, type=convert, default=None, metavar=_METAVARS.get(field.name, "TEXT"), help=text)


_METAVARS = {
    "data": "DIR",
    "db": "URL",
    "blobs": "URL",
    "public_url": "URL",
    "workers": "N",
    "upload_mode": "auto|inline|lfs",
    "pickle_policy": "refuse|quarantine|allow",
    "enforce_checks": "errors|none",
    "multipart_bytes": "SIZE",
    "lfs_bytes": "SIZE",
    "max_file": "SIZE",
    "quota": "SIZE",
    "limits": "api=1000/300,…|off",
    "accel_prefix": "PATH",
    "forwarded_hops": "N",
    "upstream": "URL",
    "upstream_bytes": "SIZE",
}


def _setting_names() -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(Settings))


def _setting_texts() -> dict[str, str]:
    """What each setting means, from where it is documented."""
    text = textwrap.dedent((Settings.__doc__ or "").split("Attributes:\n", 1)[-1])
    return {
        match[1]: " ".join(match[2].split()) for match in re.finditer(r"^(\w+): (.*(?:\n +.*)*)", text, re.MULTILINE)
    }


def _password_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--password-stdin", action="store_true", help="read the password from standard input")
    group.add_argument("--no-password", action="store_true", help="no password: the user has tokens only")


# ---- commands -------------------------------------------------------------------------------------------------------


def _serve(args: argparse.Namespace, settings: Settings) -> None:
    from .serve import serve

    if settings.public_url == Settings.public_url and (args.host, args.port) != ("127.0.0.1", 8090):
        shown = "127.0.0.1" if args.host in ("0.0.0.0", "::") else f"[{args.host}]" if ":" in args.host else args.host
        settings = dataclasses.replace(settings, public_url=f"http://{shown}:{args.port}")
    serve(settings, host=args.host, port=args.port, on_ready=lambda key: _greet(settings, key))


def _greet(settings: Settings, key: str | None) -> None:
    url = settings.public_url
    lines = [f"{settings.name} is at {url}, its data in {settings.data}. Ctrl-C ends it."]
    if key:
        lines += [
            "",
            "There is no administrator yet. Open this link within a day to become one; it works once:",
            f"  {url}/setup/{key}",
            "or, in another terminal:",
            "  adapterhub user add NAME --admin",
        ]
        if not settings.load_checks:
            lines += ["", "With --load-checks, every upload is loaded once too, into a model of random weights."]
    lines += ["", "Clients find the hub by this line:", f"  export HF_ENDPOINT={url}"]
    print("\n".join(lines), flush=True)


@asynccontextmanager
async def _open(settings: Settings) -> AsyncIterator[Hub]:
    """The hub of the settings, brought up to date."""
    from .hub import Hub
    from .ops.setup import prepare

    hub = await Hub.open(settings)
    try:
        await prepare(hub)
        yield hub
    finally:
        await hub.close()


async def _user_add(args: argparse.Namespace, settings: Settings) -> None:
    from . import accounts

    password = _ask_password(args)
    async with _open(settings) as hub, hub.db.write() as conn:
        more = {"fullname": args.fullname, "email": args.email, "is_admin": args.admin}
        await accounts.create_user(conn, args.name, password, **more)
        await accounts.log(conn, "adapterhub", "user.create", args.name, admin=args.admin)
    print(
        f"{args.name} is a user{' and runs the hub' if args.admin else ''}. Next: adapterhub token new {args.name} NAME"
    )


async def _user_list(args: argparse.Namespace, settings: Settings) -> None:
    import sqlalchemy as sa

    from .db import schema

    async with _open(settings) as hub, hub.db.read() as conn:
        query = sa.select(schema.account).where(schema.account.c.kind == "user").order_by(schema.account.c.name)
        rows = (await conn.execute(query)).mappings().all()
    marks = (("is_admin", "admin"), ("disabled", "disabled"))
    shown = [
        (row["name"], row["fullname"], f"{row['created']:%Y-%m-%d}", ", ".join(mark for key, mark in marks if row[key]))
        for row in rows
    ]
    _table(("name", "full name", "since", ""), shown)


async def _user_disable(args: argparse.Namespace, settings: Settings) -> None:
    import sqlalchemy as sa

    from . import accounts
    from .db import schema

    async with _open(settings) as hub, hub.db.write() as conn:
        row = await accounts.find_account(conn, args.name, kind="user")
        mine = schema.account.c.id == row["id"]
        await conn.execute(sa.update(schema.account).where(mine).values(disabled=not args.undo))
        await conn.execute(sa.delete(schema.session).where(schema.session.c.account_id == row["id"]))
        await accounts.log(conn, "adapterhub", "user.disable", row["name"], disabled=not args.undo)
    print(f"{row['name']} is {'let in again' if args.undo else 'locked out'}.")


async def _user_password(args: argparse.Namespace, settings: Settings) -> None:
    from . import accounts

    password = _ask_password(args)
    if password is None:
        raise ValueError("A password cannot be taken away; give a new one.")
    async with _open(settings) as hub, hub.db.write() as conn:
        row = await accounts.find_account(conn, args.name, kind="user")
        await accounts.set_password(conn, row["id"], password)
        await accounts.log(conn, "adapterhub", "user.password", row["name"])
    print(f"The password of {row['name']} is changed; their sessions have ended.")


def _ask_password(args: argparse.Namespace) -> str | None:
    if args.no_password:
        return None
    if args.password_stdin:
        return sys.stdin.readline().rstrip("\n")
    if not sys.stdin.isatty():
        raise ValueError("There is no terminal to ask for a password: give --password-stdin or --no-password.")
    first = getpass.getpass(f"Password for {args.name}: ")
    if getpass.getpass("The same again: ") != first:
        raise ValueError("The two passwords differ. Nothing was changed.")
    return first


async def _org_add(args: argparse.Namespace, settings: Settings) -> None:
    from . import accounts

    async with _open(settings) as hub, hub.db.write() as conn:
        owner = await accounts.find_account(conn, args.owner, kind="user")
        await accounts.create_org(conn, args.name, owner["id"], fullname=args.fullname)
        await accounts.log(conn, "adapterhub", "org.create", args.name, owner=owner["name"])
    print(f"{args.name} is an organisation, managed by {owner['name']}.")


async def _org_member(args: argparse.Namespace, settings: Settings) -> None:
    from . import accounts

    async with _open(settings) as hub, hub.db.write() as conn:
        org = await accounts.find_account(conn, args.org, kind="org")
        user = await accounts.find_account(conn, args.user, kind="user")
        if args.role == "none":
            await accounts.remove_member(conn, org["id"], user["id"])
        else:
            await accounts.set_member(conn, org["id"], user["id"], args.role)
        await accounts.log(conn, "adapterhub", "org.member", org["name"], user=user["name"], role=args.role)
    print(f"{user['name']} has the role {args.role!r} in {org['name']}.")


async def _token_new(args: argparse.Namespace, settings: Settings) -> None:
    from . import accounts
    from .db.schema import now

    expires = now() + timedelta(days=args.days) if args.days is not None else None
    async with _open(settings) as hub, hub.db.write() as conn:
        user = await accounts.find_account(conn, args.user, kind="user")
        token = await accounts.create_token(conn, user["id"], args.name, args.role, args.scope, expires)
        await accounts.log(conn, "adapterhub", "token.create", user["name"], name=args.name, role=args.role)
    print(token)


async def _token_list(args: argparse.Namespace, settings: Settings) -> None:
    from . import accounts

    async with _open(settings) as hub, hub.db.read() as conn:
        user = await accounts.find_account(conn, args.user, kind="user")
        rows = await accounts.tokens(conn, user["id"])
    shown = [
        (str(row["id"]), row["name"], f"{row['hint']}…", row["role"], ", ".join(row["scope"]) or "all")
        + (_day(row["last_used"]), _day(row["expires"]))
        for row in rows
    ]
    _table(("id", "name", "begins", "role", "for", "used", "ends"), shown)


def _day(moment: datetime | None) -> str:
    return f"{moment.astimezone(timezone.utc):%Y-%m-%d}" if moment else "never"


async def _token_revoke(args: argparse.Namespace, settings: Settings) -> None:
    from . import accounts

    async with _open(settings) as hub, hub.db.write() as conn:
        user = await accounts.find_account(conn, args.user, kind="user")
        await accounts.revoke_token(conn, user["id"], args.id)
        await accounts.log(conn, "adapterhub", "token.revoke", user["name"], id=args.id)
    print(f"Token {args.id} of {user['name']} is revoked.")


async def _import_legacy(args: argparse.Namespace, settings: Settings) -> None:
    from .legacy import import_cards

    async with _open(settings) as hub:
        print(await import_cards(hub, args.folder))


async def _check(args: argparse.Namespace, settings: Settings) -> int:
    from .ops.local import check_folder

    found = await check_folder(args.path)
    marks = {"ok": "ok", "warning": "warning", "error": "ERROR"}
    for check in sorted(found, key=lambda check: list(marks).index(check["level"]), reverse=True):
        print(f"{marks[check['level']]:8} {check['id']:18} {check['message']}")
        if check.get("fix") and check["level"] != "ok":
            print(f"{'':27} → {check['fix']}")
    counts = {level: sum(check["level"] == level for check in found) for level in marks}
    print(f"\n{counts['error']} errors, {counts['warning']} warnings, {counts['ok']} passed")
    return 1 if counts["error"] else 0


async def _reindex(args: argparse.Namespace, settings: Settings) -> None:
    from .ops.reindex import reindex

    async with _open(settings) as hub:
        print(f"{await reindex(hub)} repositories indexed")


async def _gc(args: argparse.Namespace, settings: Settings) -> None:
    from .ops.gc import collect

    async with _open(settings) as hub:
        print(await collect(hub, grace=timedelta(days=args.grace)))


async def _fsck(args: argparse.Namespace, settings: Settings) -> int:
    from .ops.fsck import check

    left = total = 0
    async with _open(settings) as hub:
        async for finding in check(hub, deep=args.deep, repair=args.repair):
            print(finding)
            total, left = total + 1, left + (not finding.repaired)
    print(f"{total} findings, {total - left} repaired" if total else "All is well.")
    return 1 if left else 0


async def _backup(args: argparse.Namespace, settings: Settings) -> None:
    from .ops.backup import backup

    async with _open(settings) as hub:
        print(f"Copied to {args.folder}: {await backup(hub, args.folder, tables=args.tables)}.")


async def _restore(args: argparse.Namespace, settings: Settings) -> None:
    from .hub import Hub
    from .ops.backup import restore

    hub = await Hub.open(settings)
    try:
        print(f"Restored to {settings.data}: {await restore(hub, args.folder)}.")
    finally:
        await hub.close()


async def _migrate(args: argparse.Namespace, settings: Settings) -> None:
    from .db import migrate
    from .hub import Hub

    hub = await Hub.open(settings)
    try:
        before = await migrate.upgrade(hub.db)
        print(f"The database is at revision {migrate.HEAD}; it was at {before or 'none'}.")
    finally:
        await hub.close()


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints columns as wide as what is in them."""
    lines = [heads, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    for line in lines:
        print("  ".join(f"{text:{width}}" for text, width in zip(line, widths)).rstrip())
