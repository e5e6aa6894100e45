"""Names of accounts, repositories, revisions and files: what is allowed."""

from __future__ import annotations

import functools
import re
import unicodedata

from .data import load
from .errors import BadRequest

__all__ = ["RESERVED", "key", "check_namespace", "check_repo_name", "skeleton", "split", "check_path", "check_ref"]

# First segments of the hub's own pages.
RESERVED = frozenset(
    name
    for line in (
        "_blob _lfs admin adapters api architectures assets atom.xml blob collections community datasets dist docs",
        "download favicon.ico healthz help home hub join leaderboard legal login logout metrics models new oauth",
        "openapi.json organizations papers pricing privacy readyz resolve robots.txt search security settings",
        "signup sitemap.xml setup spaces static status support terms upload user users watching xet explore",
    )
    for name in line.split()
)
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_REF = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./+@=-]{0,199}")
_CONFUSABLE = str.maketrans({"0": "o", "1": "l", "i": "l", "5": "s", "-": "", "_": "", ".": ""})


def key(name: str) -> str:
    """A form in which names that look alike are equal: `Acme-1` and `acmeI`."""
    return name.lower().translate(_CONFUSABLE) or name.lower()


# What looks like a letter: in Cyrillic, in Greek, in Latin with a stroke, among digits; and pairs that look like one.
_LOOKALIKES = str.maketrans(
    dict(zip("аеорсухіјѕһԁԛԝкмт", "aeopcyxijshdqwkmt"))
    | dict(zip("αεικνορτυχη", "aeikvoptuxn"))
    | dict(zip("ıłøđɑɡ|", "ilodagl"))
    | dict(zip("234789", "zeatbg"))
)
_PAIRS = (("rn", "m"), ("vv", "w"))


def skeleton(name: str) -> str:
    """A form in which names of any script that look alike are equal: `sent1ment`, `ѕеntiment` and `Sentiment`.

    It is stricter than `key`, by which accounts are stored: names are compared by it when they are made.
    """
    plain = unicodedata.normalize("NFKD", name).casefold()
    plain = "".join(c for c in plain if unicodedata.category(c) not in ("Mn", "Cf")).translate(_LOOKALIKES)
    for pair, one in _PAIRS:
        plain = plain.replace(pair, one)
    return key(plain)


def check_repo_name(name: str) -> str:
    """A repository's name, if it is one.

    Raises:
        BadRequest: it holds other characters than letters, digits, `-`, `_` and `.`, is longer than 96, begins or
            ends with `-` or `.`, holds `--` or `..`, or ends with `.git`.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or ".." in name or "--" in name or name.endswith(".git"):
        raise BadRequest(
            f"{name!r} cannot be a name. Use 1 to 96 letters, digits, '-', '_' and '.'; no '--' or '..', no '-' or '.' "
            "at either end, and not '.git' at the end."
        )
    return name


def check_namespace(name: str, *, task_name: bool = False) -> str:
    """A name for a user or an organisation: a repository's name that neither is nor looks like a page or a task.

    Args:
        task_name: whether it may be a task.

    Raises:
        BadRequest: it is reserved, or no name.
    """
    plain = skeleton(check_repo_name(name))
    if page := _reserved().get(plain):
        raise BadRequest(f"{name!r} is reserved for the hub's own pages, or looks like {page!r}. Choose another name.")
    if not task_name and (task := _tasks().get(plain)):
        raise BadRequest(
            f"{name!r} is, or looks like, the task or language {task!r}, by which adapters are found. Choose another "
            "name."
        )
    return name


@functools.cache
def _reserved() -> dict[str, str]:
    return {skeleton(name): name for name in RESERVED}


@functools.cache
def _tasks() -> dict[str, str]:
    """Tasks and languages: whoever had one as their name could put an adapter where a data set is looked for."""
    return {skeleton(task["id"]): task["id"] for task in load("taxonomy.json")["tasks"]}


def split(full_name: str) -> tuple[str, str]:
    """Namespace and name of `namespace/name`.

    Raises:
        BadRequest: it is not of that form.
    """
    namespace, slash, name = full_name.partition("/")
    if not slash:
        raise BadRequest(f"{full_name!r} is not of the form 'namespace/name'.")
    return check_repo_name(namespace), check_repo_name(name)


def check_path(path: str) -> str:
    """The path of a file in a repository, if it is a safe one.

    Raises:
        BadRequest: it is empty, absolute, too long, too deep or not in NFC, holds `.`, `..`, `.git`, `\\` or a
            character that cannot be seen, or could not be written by Windows.
    """
    if not isinstance(path, str) or not path or len(path.encode("utf-8", "surrogatepass")) > 512:
        raise BadRequest(f"{str(path)[:80]!r} cannot be a path: it must have 1 to 512 bytes.")
    problem = None
    parts = path.split("/")
    if any(unicodedata.category(character) in _UNSEEN for character in path) or "\\" in path:
        problem = "it holds a control character, an invisible character or a backslash"
    elif any(part in ("", ".", "..") for part in parts):
        problem = "its parts must not be empty, '.' or '..'"
    elif len(parts) > _DEPTH:
        problem = f"it has {len(parts)} parts, and may have {_DEPTH}"
    elif any(part.lower().rstrip(". ") in (".git", "git~1") for part in parts):
        problem = "'.git' is reserved"
    elif any(part != part.strip() for part in parts):
        problem = "its parts must not begin or end with a space"
    elif any(part.endswith(".") or _DEVICE.fullmatch(part) for part in parts) or _NOT_WINDOWS & set(path):
        problem = (
            "Windows could not write it. Its parts must not end with '.', hold one of <>:\"|?*, or be called like a "
            "device, as CON, NUL or COM1.txt are"
        )
    elif unicodedata.normalize("NFC", path) != path:
        problem = "it must be Unicode in form NFC"
    if problem:
        raise BadRequest(f"{path!r} cannot be a path: {problem}.")
    return path


_DEPTH = 64
_NOT_WINDOWS = frozenset('<>:"|?*')
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\..*)?", re.IGNORECASE | re.DOTALL)
_UNSEEN = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))


def check_ref(name: str) -> str:
    """The name of a branch or tag, by git's rules and a little stricter.

    Raises:
        BadRequest: git would not take it, or it begins with `refs/`.
    """
    parts = name.split("/")
    if (
        not _REF.fullmatch(name)
        or ".." in name
        or "@{" in name
        or name.startswith("refs/")
        or re.fullmatch(r"[0-9a-f]{40}", name)
        or any(not part or part.startswith(".") or part.endswith((".", ".lock")) for part in parts)
    ):
        raise BadRequest(
            f"{name!r} cannot name a branch or tag. Use letters, digits and '-_./+@=', with no empty part, and no part "
            "that begins or ends with '.' or ends with '.lock'; 40 hexadecimal digits are kept for commits."
        )
    return name
