"""Where does an adapter lie that someone names? A folder, an archive, a URL or a repository of the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from adapters.checkpoint.layout import ADAPTER, EMBEDDING_FILE, FUSION, HEAD, SETUP_FILE, Layout
from adapters.errors import CheckpointError, CheckpointNotFound, choices

logger = logging.getLogger(__name__)

ADAPTER_CACHE = os.path.join(
    os.getenv("TORCH_HOME") or os.path.join(os.getenv("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "torch"),
    "adapters",
)
"""Where archives from URLs are kept."""

FILES = [f for layout in (ADAPTER, HEAD, FUSION) for f in (layout.config, *layout.weights)] + [
    SETUP_FILE,
    EMBEDDING_FILE,
]
WANTED = [pattern for file in FILES for pattern in (file, f"*/{file}")]
"""What is downloaded of a repository."""
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision")


def locate(path: str | os.PathLike[str], needs: Layout | str, version: str | None = None, **kwargs: Any) -> Path:
    """The local folder of a checkpoint; downloads it if need be.

    Args:
        path: A folder or archive, a http(s) URL of an archive, or the id of a repository such as "org/name".
        needs: The files that must be there.
        version: Branch, tag or commit of a repository.
        kwargs: Arguments of huggingface_hub's snapshot_download; `subfolder` is a folder in the repository.
    Raises:
        CheckpointNotFound: nothing is there, or it lacks files.
        TypeError: an argument is not known.
    """
    name = os.fspath(path)
    if unknown := sorted(set(kwargs) - {*HUB_ARGUMENTS, "subfolder"}):
        raise TypeError(f"Unexpected argument {unknown[0]!r}. {choices(unknown[0], [*HUB_ARGUMENTS, 'subfolder'])}")
    inner = str(kwargs.pop("subfolder", None) or "")
    if re.match(r"https?://", name):
        folder = _from_url(name, bool(kwargs.get("force_download")))
    elif os.path.isdir(name):
        folder = Path(name)
    elif os.path.isfile(name):
        folder = _unpacked(Path(name))
    else:
        folder = _from_hub(name, version, needs, kwargs)
    if inner:
        folder = folder / inner
    _require(folder, needs)
    return folder


def holds(folder: Path, layout: Layout) -> bool:
    """Whether a complete checkpoint of this kind lies in the folder."""
    return (folder / layout.config).is_file() and any((folder / name).is_file() for name in layout.weights)


def _require(folder: Path, needs: Layout | str) -> None:
    if isinstance(needs, str):
        if (folder / needs).is_file():
            return
        expected = needs
    else:
        if holds(folder, needs):
            return
        expected = f"{needs.config} and {' or '.join(needs.weights)}"
    names = sorted(entry.name for entry in folder.iterdir())[:20] if folder.is_dir() else []
    raise CheckpointNotFound(f"{folder} does not hold {expected}. It holds: {', '.join(names) or 'nothing'}.")


def _from_hub(name: str, version: str | None, needs: Layout | str, kwargs: dict[str, Any]) -> Path:
    kind = needs.kind if isinstance(needs, Layout) else needs
    advice = f"There is no folder {name!r}, and no {kind} was found under this name on the Hugging Face Hub"
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is None or name.startswith((".", "-")):
        raise CheckpointNotFound(f"There is no folder {name!r}, and a repository of the Hub cannot be called so.")
    options = dict(kwargs) if version is None else {**kwargs, "revision": version}
    try:
        return Path(snapshot_download(name, allow_patterns=WANTED, **options))
    except LocalEntryNotFoundError:
        raise CheckpointNotFound(
            f"{advice}: it is not in the local cache, and the Hub could not be reached or HF_HUB_OFFLINE is set. "
            "Check the spelling, go online, or pass the path of a folder."
        ) from None
    except HFValidationError as error:
        raise CheckpointNotFound(f"{advice}: {error}") from None
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointNotFound(
            f"{advice}: {reason} Check the spelling, log in if the repository is private, or pass the path of a folder."
        ) from None


def _from_url(url: str, again: bool) -> Path:
    folder = Path(ADAPTER_CACHE, hashlib.sha256(url.encode()).hexdigest()[:32])
    if folder.is_dir() and not again:
        return folder
    try:
        with tempfile.TemporaryDirectory() as temporary, urllib.request.urlopen(url, timeout=60) as answer:
            archive = Path(temporary, "archive")
            with archive.open("wb") as file:
                shutil.copyfileobj(answer, file)
            return _unpack(archive, folder, url)
    except (urllib.error.URLError, OSError) as error:
        if isinstance(error, CheckpointNotFound):
            raise
        raise CheckpointNotFound(
            f"{url} could not be downloaded: {error}. Check the address and the network."
        ) from None


def _unpacked(archive: Path) -> Path:
    stat = archive.stat()
    key = f"{archive.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    folder = Path(ADAPTER_CACHE, hashlib.sha256(key.encode()).hexdigest()[:32])
    return folder if folder.is_dir() else _unpack(archive, folder, str(archive))


def _unpack(archive: Path, folder: Path, name: str) -> Path:
    """Put the files that we know into `folder`, whatever folders they are in; nothing else leaves the archive."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = tempfile.mkdtemp(dir=folder.parent)
    try:
        for member, source in _members(archive, name):
            target = PurePosixPath(member.replace("\\", "/")).name
            if target in FILES:
                with source, open(Path(temporary, target), "wb") as file:
                    shutil.copyfileobj(source, file)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _members(archive: Path, name: str) -> Iterator[tuple[str, IO[bytes]]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            for name in opened.namelist():
                if not name.endswith("/"):
                    yield name, opened.open(name)
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as packed:
            for member in packed:
                if member.isfile() and (content := packed.extractfile(member)) is not None:
                    yield member.name, content
    else:
        raise CheckpointError(f"{name} is neither a folder nor a zip or tar archive of one.")
