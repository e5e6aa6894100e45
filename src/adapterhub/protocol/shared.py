"""What the calls of the protocol share: finding the repository and the revision, and the forms of objects."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any
from urllib.parse import parse_qs

from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request
from starlette.responses import Response

from ..accounts import Principal
from ..errors import BadRequest, TooLarge
from ..http import hub_of, iso, json_body, principal_of, unquote
from ..repos import commits, repos, revisions
from ..repos.commits import Commit
from ..repos.files import Entry, Manifest
from ..repos.repos import Repo
from ..rights import Guarded
from ..storage import git

__all__ = [
    "API",
    "PAGE",
    "Plain",
    "at_revision",
    "caller_and_repo",
    "commit_of",
    "file_object",
    "folder_object",
    "full_object",
    "model_object",
    "paths_of",
    "siblings",
    "tree_objects",
]

API = "/api/models/{namespace}/{name}"
PAGE = 1000  # objects in one answer


class Plain(Guarded):
    """A route whose function takes the request and returns the response: FastAPI prepares nothing in between."""

    def inner_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The function itself."""
        handler: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return handler


async def caller_and_repo(
    request: Request, conn: AsyncConnection, *, write: bool = False, admin: bool = False
) -> tuple[Principal, Repo]:
    """Who asks, and the repository of the path.

    Raises:
        RepoNotFound, Unauthorized, Forbidden: as for `repos.find`.
    """
    principal = await principal_of(request)
    full_name = f"{request.path_params['namespace']}/{request.path_params['name']}"
    return principal, await repos.find(conn, principal, full_name, write=write, admin=admin)


async def at_revision(request: Request) -> tuple[Repo, Commit]:
    """The repository of the path, and its commit at the path's revision, or at the default branch.

    Raises:
        RepoNotFound, RevisionNotFound, Conflict: as for `revisions.find`.
    """
    path, principal = request.path_params, await principal_of(request)
    revision = unquote(path["revision"]) if "revision" in path else None
    return await revisions.find(hub_of(request).db, principal, f"{path['namespace']}/{path['name']}", revision)


async def commit_of(request: Request, conn: AsyncConnection, repo: Repo) -> Commit:
    """The commit of the path's revision, or of the default branch where it has none.

    Raises:
        RevisionNotFound: there is no such revision.
    """
    return await commits.resolve(conn, repo, unquote(request.path_params.get("revision", repo.default_branch)))


async def paths_of(request: Request) -> list[str]:
    """The paths of a request's body, which is JSON or a form.

    Raises:
        BadRequest: it is neither, or has more than a page of them.
        TooLarge: it has more than a MiB.
    """
    if request.headers.get("content-type", "").startswith("application/json"):
        paths = (await json_body(request)).get("paths", [])
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise BadRequest("The body needs 'paths', a list of texts.")
    else:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > 1 << 20:
                raise TooLarge("The list of paths has more than 1048576 bytes.")
        paths = parse_qs(body.decode("utf-8", "replace")).get("paths", [])
    if len(paths) > PAGE:
        raise BadRequest(f"{len(paths)} paths are too many: ask for at most {PAGE} at once.")
    return [str(path) for path in paths]


# ---- objects --------------------------------------------------------------------------------------------------------


def file_object(entry: Entry) -> dict[str, Any]:
    """A file, as in trees."""
    shown = {"type": "file", "oid": entry.oid, "size": entry.size, "path": entry.path}
    return {**shown, "lfs": _lfs(entry, "oid")} if entry.lfs else shown


def folder_object(path: str, oid: str) -> dict[str, Any]:
    """A folder, as in trees."""
    return {"type": "directory", "oid": oid, "size": 0, "path": path}


def _lfs(entry: Entry, key: str) -> dict[str, Any]:
    return {key: entry.sha256, "size": entry.size, "pointerSize": len(git.lfs_pointer(entry.sha256, entry.size))}


def tree_objects(manifest: Manifest, folder: str, *, recursive: bool) -> list[dict[str, Any]]:
    """Files and folders below a folder, or all of the tree where it is empty."""
    start = f"{folder}/" if folder else ""
    inside = {path: entry for path, entry in manifest.items() if path.startswith(start)}
    oids = git.folder_oids((path, entry.oid) for path, entry in manifest.items())
    folders = [path for path in oids if path.startswith(start) and path != folder]
    objects = [folder_object(path, oids[path]) for path in folders] + [file_object(entry) for entry in inside.values()]
    near = [shown for shown in objects if recursive or "/" not in shown["path"][len(start) :]]
    return sorted(near, key=lambda shown: (shown["type"] != "directory", shown["path"]))


def siblings(entries: Iterable[Entry], *, blobs: bool) -> list[dict[str, Any]]:
    """The files of a model object."""
    if not blobs:
        return [{"rfilename": entry.path} for entry in entries]
    return [
        {
            "rfilename": entry.path,
            "size": entry.size,
            "blobId": entry.oid,
            **({"lfs": _lfs(entry, "sha256")} if entry.lfs else {}),
        }
        for entry in entries
    ]


def model_object(repo: Repo, head: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The model object, without what `full` adds.

    Args:
        facts: columns of the table `adapter`, or of a record derived from another revision.
    """
    shown: dict[str, Any] = {
        "_id": repo.uid,
        "id": repo.full_name,
        "modelId": repo.full_name,
        "author": repo.namespace,
        "sha": head,
        "lastModified": iso(repo.updated),
        "createdAt": iso(repo.created),
        "private": repo.private,
        "disabled": False,
        "gated": False,
        "downloads": repo.downloads,
        "downloadsAllTime": repo.downloads_all,
        "likes": repo.likes,
        "tags": facts["tags"],
    }
    return {**shown, **{name: facts[name] for name in ("library_name", "pipeline_tag") if facts[name]}}


def full_object(repo: Repo, head: str, facts: Mapping[str, Any], manifest: Manifest, *, blobs: bool) -> dict[str, Any]:
    """The model object with card, config and files."""
    return {
        **model_object(repo, head, facts),
        "cardData": facts["card"],
        "config": facts["model_config"],
        "siblings": siblings(manifest.values(), blobs=blobs),
        "spaces": [],
        "usedStorage": repo.bytes,
    }
