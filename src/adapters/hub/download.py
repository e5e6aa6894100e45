"""Bring files of a repository here: only those asked for, each checked against the hash that the hub has on record."""

from __future__ import annotations

import glob
import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from adapters._version import __version__
from adapters.errors import CheckpointError, CheckpointNotFound, choices
from adapters.hub import session

logger = logging.getLogger(__name__)

ATTEMPTS = 3


class NoRepository(CheckpointNotFound):
    """The hub has no repository of this name, or does not show it to us."""


class NotCached(CheckpointNotFound):
    """Without network, the cache does not have what is needed."""


def fetch(
    repo: str,
    revision: str | None,
    choose: Callable[[str, Sequence[str]], Sequence[str]],
    expected: Sequence[str],
    *,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """The local folder with files of a repository.

    Args:
        repo: Its id.
        revision: Branch, tag or commit; by default the main branch.
        choose: Takes `repo` and the paths of all its files, and returns those to download.
        expected: Paths that are needed of a copy in the cache if the repository has them; for work without network.
        token: Token of the hub.
        cache_dir: Where to keep the files; by default a cache per hub.
        force_download: Download also what is in the cache.
        local_files_only: Look only into the cache.
    Raises:
        NoRepository: there is none.
        NotCached: the hub could not be reached, and the cache does not have it either.
        CheckpointNotFound: the repository has no such revision, or the hub refused.
        CheckpointError: a file differs from what the hub has on record. It is removed from the cache.
    """
    options = {
        "revision": revision,
        "cache_dir": cache_dir or session.cache_folder(),
        "endpoint": session.endpoint(),
        "token": session.credentials(token),
        "library_name": "adapters",
        "library_version": __version__,
    }
    if not local_files_only:
        try:
            for _ in range(ATTEMPTS):
                info = session.api(token).model_info(repo, revision=revision, files_metadata=True)
                siblings = info.siblings or []
                names = list(choose(repo, [file.rfilename for file in siblings]))
                patterns = [glob.escape(name) for name in names]
                folder = Path(
                    snapshot_download(repo, allow_patterns=patterns, force_download=force_download, **options)  # type: ignore[arg-type]
                )
                if folder.name == info.sha:  # else somebody has committed in between
                    _warn_if_yanked(repo, revision, info)
                    _verify(repo, folder, [file for file in siblings if file.rfilename in names])
                    return folder
            raise CheckpointNotFound(f"{repo} changes faster than it can be downloaded. Name a commit: revision=...")
        except (session.HTTPError, HFValidationError, OSError) as error:
            if not session.is_unreachable(error):
                raise _failure(repo, revision, error, token) from error
            if not constants.is_offline_mode():
                logger.warning("%s could not be reached, so the cache counts: %s", session.endpoint(), error)
    return _cached(repo, [glob.escape(name) for name in expected], options)


def _warn_if_yanked(repo: str, revision: str | None, info: Any) -> None:
    """Says what the hub tells of a repository, or of this commit of it, that its owners have taken back."""
    reason = getattr(info, "yanked", None)
    if isinstance(reason, str):
        named = f"Revision {revision!r} of {repo}" if revision else repo
        logger.warning(
            "%s was yanked by its owners, because: %s It loads all the same; choose another adapter or revision: %s",
            named,
            reason,
            f"{session.endpoint()}/{repo}",
        )


def _cached(repo: str, patterns: list[str], options: dict[str, Any]) -> Path:
    try:
        folder = Path(snapshot_download(repo, allow_patterns=patterns, local_files_only=True, **options))
    except HFValidationError as error:
        raise NoRepository(f"{repo!r} cannot be the id of a repository: {session.reason(error)}") from None
    except LocalEntryNotFoundError as error:
        revision = f" at revision {options['revision']!r}" if options["revision"] else ""
        raise NotCached(
            f"{repo}{revision} is not in the local cache, or only a part of it, and {session.endpoint()} could not be "
            "reached or HF_HUB_OFFLINE is set. Check the spelling, go online, or pass the path of a folder."
        ) from error
    for file in folder.rglob("*"):
        recorded = file.resolve().name
        if len(recorded) == 64 and file.is_file():  # the cache calls what is stored by LFS by its sha256
            _compare(repo, file, _sha256(file), recorded)
    return folder


def _verify(repo: str, folder: Path, files: Iterable[Any]) -> None:
    for file in files:
        path = folder / file.rfilename
        if file.lfs is not None:
            _compare(repo, path, _sha256(path), file.lfs.sha256)
        elif file.blob_id:
            _compare(repo, path, _git_oid(path), file.blob_id)


def _compare(repo: str, path: Path, found: str, recorded: str) -> None:
    if found == recorded:
        return
    for place in {path.resolve(), path}:
        place.unlink(missing_ok=True)
    raise CheckpointError(
        f"{path.name} of {repo} is not what {session.endpoint()} has on record: its hash is {found}, not {recorded}. "
        "It was removed from the cache. Load it again; if this goes on, the hub or the way to it is not to be trusted."
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _git_oid(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _failure(repo: str, revision: str | None, error: Exception, token: str | bool | None) -> CheckpointNotFound:
    hub = session.endpoint()
    if isinstance(error, CheckpointNotFound):
        return error
    if isinstance(error, RevisionNotFoundError):
        return CheckpointNotFound(f"{repo} on {hub} has no revision {revision!r}. {_revisions(repo, revision, token)}")
    if isinstance(error, GatedRepoError):
        return CheckpointNotFound(f"{repo} asks for consent first: open {hub}/{repo} and accept its terms.")
    if isinstance(error, RepositoryNotFoundError):
        return NoRepository(
            f"There is no folder and no repository {repo!r} on {hub}. Check the spelling, choose another hub with "
            f"adapters.hub.use(...), or pass the path of a folder. If it is private, log in: {session.LOGIN}"
        )
    if isinstance(error, HFValidationError):
        return NoRepository(f"{repo!r} cannot be the id of a repository: {session.reason(error)}")
    return CheckpointNotFound(f"{repo} could not be downloaded from {hub}: {session.reason(error)}")


def _revisions(repo: str, revision: str | None, token: str | bool | None) -> str:
    try:
        refs = session.api(token).list_repo_refs(repo)
    except (session.HTTPError, OSError):
        return "Name a branch, a tag or a commit."
    return choices(revision, [ref.name for ref in (*refs.branches, *refs.tags)])
