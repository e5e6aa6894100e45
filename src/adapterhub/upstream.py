"""Another hub behind this one: repositories that are unknown here are fetched from there, and kept.

So one `HF_ENDPOINT` is enough for adapters of this hub and base models of that one. It is asked without any token, and
only for reading. What it sends is believed when it has the hash that it was announced with: the last byte of a file
goes out after all of them are proven.

    <data>/upstream/answers/<key>.json    what it said about a path at a revision, or about a repository
    <data>/upstream/files/<hash>          the bytes of a file, by their SHA-256 or git's hash of a blob
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from .errors import (
    EntryNotFound,
    Forbidden,
    HubError,
    NotFound,
    RepoNotFound,
    RevisionNotFound,
    TooLarge,
    UpstreamUnavailable,
)
from .settings import MiB, Settings

if TYPE_CHECKING:
    import httpx

__all__ = ["Answer", "Fetch", "FileAt", "Upstream"]

FRESH = 60.0
"""Seconds for which an answer about a branch or a tag holds; one about a commit holds for ever."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_MISSING: Mapping[str, type[NotFound]] = {"EntryNotFound": EntryNotFound, "RevisionNotFound": RevisionNotFound}
_REDIRECTS = 5
_MAX_ANSWER = 32 * MiB
_MAX_ANSWERS = 20_000
_PATIENCE = 15.0  # seconds after which a hub that did not answer is asked again
_AT_A_TIME = 8  # files that are fetched by one process
_CHUNK = 1 << 20


@dataclass(frozen=True)
class FileAt:
    """A file of a repository at a revision.

    Attributes:
        commit: the commit of the revision.
        hash: SHA-256 of the bytes, or for small files git's hash of them as a blob.
        size: in bytes.
        location: where the bytes are.
    """

    commit: str
    hash: str
    size: int
    location: str


@dataclass(frozen=True)
class Answer:
    """What a call of the API was answered with: its JSON text, and the headers that clients read."""

    body: str
    headers: Mapping[str, str]


class Upstream:
    """The hub behind this one, and what is kept of it.

    Args:
        settings: those of this hub: `upstream` is the other's address, `upstream_bytes` how much is kept.
    """

    def __init__(self, settings: Settings) -> None:
        self.url = settings.upstream
        self.settings = settings
        self.claimed: set[str] = set()  # namespaces that this process has written down
        self._answers, self._files = settings.data / "upstream" / "answers", settings.data / "upstream" / "files"
        self._client: httpx.AsyncClient | None = None
        self._fetches: dict[str, Fetch] = {}
        self._slots = asyncio.Semaphore(_AT_A_TIME)
        self._silent_until = 0.0

    async def close(self) -> None:
        """Ends all fetches and connections."""
        for fetch in list(self._fetches.values()):
            await fetch.cancel()
        if self._client is not None:
            await self._client.aclose()

    # ---- what is asked ----------------------------------------------------------------------------------------------

    async def file_at(self, repo: str, revision: str, path: str) -> FileAt:
        """Where a file is and what it must be.

        Raises:
            RepoNotFound, RevisionNotFound, EntryNotFound: there is none that everyone may read.
            TooLarge: this hub takes no files of its size.
            UpstreamUnavailable: the hub behind does not answer, or not in a way that can be believed.
        """
        at = f"{quote(repo)}/resolve/{quote(revision, safe='')}/{quote(path)}"
        return FileAt(**await self._remembered("file", at, revision, self._ask_file))

    async def answer(self, path: str, query: str, revision: str | None) -> Answer:
        """What a GET of the API says.

        Args:
            revision: which the path names; None for the default branch.

        Raises:
            RepoNotFound, RevisionNotFound, EntryNotFound, UpstreamUnavailable: as for `file_at`.
        """
        at = path.lstrip("/") + (f"?{query}" if query else "")
        return Answer(**await self._remembered("answer", at, revision or "", self._ask))

    async def paths(self, path: str, wanted: Sequence[str]) -> Answer:
        """What `paths-info` says of some paths; it is not kept.

        Raises:
            RepoNotFound, RevisionNotFound, UpstreamUnavailable: as for `file_at`.
        """
        said = await self._request("POST", f"{self.url}/{path.lstrip('/')}", json={"paths": list(wanted)})
        return said.as_answer()

    async def _ask_file(self, at: str) -> dict[str, Any]:
        said = await self._request("HEAD", f"{self.url}/{at}")
        found = (said.headers.get("x-linked-etag") or said.headers.get("etag", "")).removeprefix("W/").strip('"')
        size = said.headers.get("x-linked-size") or said.headers.get("content-length", "")
        commit = said.headers.get("x-repo-commit", "")
        if not (_HASH.fullmatch(found) and size.isdigit() and _COMMIT.fullmatch(commit)):
            raise UpstreamUnavailable(f"{self.url} does not say by commit, size and hash what {at} is.")
        if int(size) > self.settings.max_file:
            raise TooLarge(f"{at} has {size} bytes; this hub takes at most {self.settings.max_file}.")
        return asdict(FileAt(commit, found, int(size), at))

    async def _ask(self, at: str) -> dict[str, Any]:
        return asdict((await self._request("GET", f"{self.url}/{at}")).as_answer())

    async def _remembered(
        self, kind: str, at: str, revision: str, ask: Callable[[str], Awaitable[dict[str, Any]]]
    ) -> dict[str, Any]:
        """What `ask` says of an address, or what it said before: while that holds, or where nobody answers now."""
        kept = self._answers / f"{hashlib.sha256(f'{kind} {at}'.encode()).hexdigest()}.json"
        known = await asyncio.to_thread(_read, kept)
        holds = known is not None and (_COMMIT.fullmatch(revision) or time.time() - known["asked"] < FRESH)
        if known is None or not holds:
            try:
                known = await self._asked(ask, at)
                await asyncio.to_thread(self._keep, kept, known)
            except UpstreamUnavailable:
                if known is None:
                    raise
        if "missing" in known:
            raise EntryNotFound(known["missing"])
        said: dict[str, Any] = known["said"]
        return said

    async def _asked(self, ask: Callable[[str], Awaitable[dict[str, Any]]], at: str) -> dict[str, Any]:
        """What is said of an address now: that there is nothing counts too."""
        try:
            return {"asked": time.time(), "said": await ask(at)}
        except EntryNotFound as error:
            return {"asked": time.time(), "missing": error.message}

    def _keep(self, path: Path, known: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{secrets.token_hex(8)}")
        new.write_text(json.dumps(known), encoding="utf-8")
        new.replace(path)
        if secrets.randbelow(100) == 0:
            _remove_oldest(self._answers, _MAX_ANSWERS, lambda state: 1)

    async def _request(self, method: str, url: str, **options: Any) -> _Said:
        """What the hub behind says, after redirects on itself.

        Raises:
            HubError: it is no success; see `file_at`.
        """
        import httpx

        if time.monotonic() < self._silent_until:
            raise UpstreamUnavailable(f"{self.url} did not answer a moment ago. Try again later.")
        try:
            for _ in range(_REDIRECTS):
                async with self._http().stream(method, url, **options) as response:
                    target = str(response.url.join(response.headers.get("location", "")))
                    if not response.is_redirect or urlsplit(target).netloc != urlsplit(url).netloc:
                        said = await _Said.of(response)
                        break
                    url = target
            else:
                raise UpstreamUnavailable(f"{self.url} redirects more than {_REDIRECTS} times. Try again later.")
        except httpx.HTTPError as error:
            raise self._silent(error) from error
        if said.status < 400:
            return said
        raise self._error(said)

    def _silent(self, error: Exception) -> UpstreamUnavailable:
        """Says that nobody answers; for a moment nobody is asked, so that what is kept is served at once."""
        self._silent_until = time.monotonic() + _PATIENCE
        return UpstreamUnavailable(f"{self.url} does not answer ({type(error).__name__}). Try again later.")

    def _error(self, said: _Said) -> HubError:
        code = said.headers.get("x-error-code", "")
        if known := _MISSING.get(code):
            return known(said.headers.get("x-error-message") or "Entry not found")
        if code == "GatedRepo":
            return Forbidden(
                f"{self.url} gives this repository only to those whom its authors let in. Fetch it there, with a token "
                "of your own."
            )
        if said.status in (401, 403, 404):
            return RepoNotFound(anonymous=False)
        return UpstreamUnavailable(f"{self.url} answers with status {said.status}. Try again later.")

    def _http(self) -> httpx.AsyncClient:
        if self._client is None:
            import httpx

            headers = {"User-Agent": "adapterhub", "Accept-Encoding": "identity"}
            self._client = httpx.AsyncClient(headers=headers, timeout=httpx.Timeout(5, read=30))
        return self._client

    # ---- bytes ------------------------------------------------------------------------------------------------------

    async def open(self, file: FileAt) -> Fetch:
        """The bytes of a file, here or on their way.

        Raises:
            UpstreamUnavailable: the hub behind does not send them.
        """
        fetch = self._fetches.get(file.hash)
        if fetch is None:
            fetch = Fetch(file, self.settings.scratch / f"upstream-{secrets.token_hex(8)}", self._files / file.hash)
            if not await asyncio.to_thread(fetch.is_kept):
                fetch = self._fetches.setdefault(file.hash, fetch)
                fetch.start(lambda: self._fetch(fetch))
        await fetch.begun()
        return fetch

    async def _fetch(self, fetch: Fetch) -> None:
        """Gets the bytes of a file, and keeps them once they are proven."""
        import httpx

        try:
            async with (
                self._slots,
                self._http().stream("GET", f"{self.url}/{fetch.file.location}", follow_redirects=True) as response,
            ):
                if not response.is_success:
                    raise self._error(await _Said.of(response))
                await fetch.take(response.aiter_bytes(_CHUNK))
            await asyncio.to_thread(self._make_room, fetch.kept)
        except httpx.HTTPError as error:
            fetch.end(self._silent(error))
        except HubError as error:
            fetch.end(error)
        except OSError as error:
            fetch.end(UpstreamUnavailable(f"What {self.url} sends cannot be kept: {error.strerror}."))
        finally:
            fetch.end(UpstreamUnavailable("The hub is being stopped. Try again in a moment."))
            self._fetches.pop(fetch.file.hash, None)

    def _make_room(self, but: Path) -> None:
        _remove_oldest(self._files, self.settings.upstream_bytes, lambda state: state.st_size, but=but)


class Fetch:
    """A file on its way here: one download, and any number of readers, who follow it. It goes on without them.

    Args:
        file: what it must be.
        path: where its bytes are written.
        kept: where they are put when they are proven.
    """

    def __init__(self, file: FileAt, path: Path, kept: Path) -> None:
        self.file = file
        self.kept = kept
        self._path = path
        self._received = 0
        self._proven = False
        self._error: HubError | None = None
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def is_kept(self) -> bool:
        """Whether the bytes are here; they count as used then."""
        try:
            os.utime(self.kept)
        except FileNotFoundError:
            return False
        self._proven = True
        return True

    # ---- the download -----------------------------------------------------------------------------------------------

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Begins, unless it has begun."""
        if self._task is None:
            self._task = asyncio.create_task(work())

    async def cancel(self) -> None:
        """Breaks off."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def take(self, chunks: AsyncIterator[bytes]) -> None:
        """Writes the bytes down, proves and keeps them.

        Raises:
            UpstreamUnavailable: they are not what was announced.
        """
        size, wanted = self.file.size, self.file.hash
        digest = hashlib.sha256() if len(wanted) == 64 else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        with open(self._path, "wb", buffering=0) as file:
            async for chunk in chunks:
                if self._received + len(chunk) > size:
                    raise self._other("more bytes")
                digest.update(chunk)
                await asyncio.to_thread(file.write, chunk)
                self._received += len(chunk)
                self._tell()
            await asyncio.to_thread(os.fsync, file.fileno())
        if self._received != size:
            raise self._other(f"{self._received} bytes")
        if digest.hexdigest() != wanted:
            raise self._other("another hash")
        self.kept.parent.mkdir(parents=True, exist_ok=True)
        self._path.replace(self.kept)
        self._proven = True
        self._tell()

    def _other(self, what: str) -> UpstreamUnavailable:
        return UpstreamUnavailable(
            f"{self.file.location} has {what}, where {self.file.size} bytes with the hash {self.file.hash} were "
            "announced. Nothing was kept; try again later."
        )

    def end(self, error: HubError) -> None:
        """Tells the readers why there is no more, unless they have all."""
        if not self._proven and self._error is None:
            self._error = error
            self._path.unlink(missing_ok=True)
            self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # ---- its readers ------------------------------------------------------------------------------------------------

    async def begun(self) -> None:
        """Waits for the first bytes.

        Raises:
            HubError: there are none.
        """
        await self._reaches(0)

    async def read(self, start: int, end: int) -> AsyncIterator[bytes]:
        """Bytes `start` up to, and without, `end`, as soon as they are here."""
        with await asyncio.to_thread(self._open) as file:
            while start < end:
                until = min(await self._reaches(start), end, start + _CHUNK)
                chunk = await asyncio.to_thread(os.pread, file.fileno(), until - start, start)
                start += len(chunk)
                yield chunk

    def _open(self) -> IO[bytes]:
        try:
            return open(self._path, "rb")
        except FileNotFoundError:  # it was proven meanwhile
            return open(self.kept, "rb")

    async def _reaches(self, start: int) -> int:
        """Waits until a reader may have the byte at `start`; returns where what they may have ends."""
        while True:
            # The last byte is held back until all are proven: whoever gets a whole file gets the right one.
            ready = self.file.size if self._proven else min(self._received, self.file.size - 1)
            if ready > start or self._proven:
                return ready
            if self._error is not None:
                raise self._error
            await self._changed.wait()


# ---- helpers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Said:
    """An answer of the hub behind, read to its end."""

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    @classmethod
    async def of(cls, response: httpx.Response) -> _Said:
        """Reads it, if it is not too long."""
        body = bytearray()
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > _MAX_ANSWER:
                raise UpstreamUnavailable(f"{response.url} answers with more than {_MAX_ANSWER} bytes.")
        return cls(str(response.url), response.status_code, response.headers, bytes(body))

    def as_answer(self) -> Answer:
        """What is passed on of it."""
        try:
            text = self.body.decode()
            json.loads(text)
        except ValueError as error:
            raise UpstreamUnavailable(f"{self.url} does not answer with JSON. Try again later.") from error
        return Answer(text, {name: self.headers[name] for name in ("link", "x-repo-commit") if name in self.headers})


def _read(path: Path) -> dict[str, Any] | None:
    try:
        known: dict[str, Any] = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return known


def _remove_oldest(folder: Path, most: int, weigh: Callable[[os.stat_result], int], but: Path | None = None) -> None:
    """Removes the files of a folder that were used longest ago, until the others weigh at most so much."""
    found = []
    for entry in os.scandir(folder):
        with suppress(FileNotFoundError):  # another worker has removed it
            state = entry.stat()
            found.append((state.st_mtime, weigh(state), Path(entry.path)))
    total = sum(weight for _, weight, _ in found)
    for _, weight, path in sorted(found):
        if total <= most:
            return
        if path != but:
            path.unlink(missing_ok=True)
            total -= weight
