"""Where does an adapter lie that someone names? A folder, an archive, a URL, or on a hub."""

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
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from adapters.checkpoint.atomic import finish, reading
from adapters.checkpoint.layout import (
    ADAPTER,
    EMBEDDING_FILE,
    HEAD,
    KINDS,
    PEFT,
    SETUP_FILE,
    CheckpointKind,
    PathLike,
)
from adapters.errors import CheckpointError, CheckpointNotFound, choices
from adapters.hub import session
from adapters.hub.download import NoRepository, NotCached, fetch
from adapters.hub.names import UnknownName, is_repo_id, resolve
from adapters.methods.config import get_adapter_config_hash
from adapters.methods.presets import ADAPTER_CONFIG_MAP
from adapters.methods.presets import load as load_config

logger = logging.getLogger(__name__)

ADAPTER_CACHE = os.path.join(
    os.getenv("TORCH_HOME") or os.path.join(os.getenv("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "torch"),
    "adapters",
)
"""Where archives from URLs are kept."""

FILES = [f for kind in KINDS for f in (kind.config, *kind.weights)] + [
    SETUP_FILE,
    EMBEDDING_FILE,
]
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision")
SOURCES = ("local", "hf", "ah")


def locate(
    path: PathLike,
    needs: CheckpointKind | str,
    version: str | None = None,
    *,
    source: str | None = None,
    model_name: str | None = None,
    config: Any = None,
    base_model: str | None = None,
    use_safetensors: bool = True,
    **kwargs: Any,
) -> Path:
    """The local folder of a checkpoint; downloads it if need be.

    Args:
        path: A folder or archive, a http(s) URL of an archive, the id of a repository such as "org/name", or another
            name that the hub's index knows, such as "task/subtask@org".
        needs: The files that must be there.
        version: Branch, tag or commit of a repository.
        source: Look only there: "local", a folder or archive; "hf", a repository; "ah", the index. None: in this order.
            A folder is taken whatever it says.
        model_name, config: Base model and config, where the index has several adapters of this name.
        base_model: What `model_name` is by default.
        use_safetensors: Download safetensors where a repository also has pickle files.
        kwargs: `HUB_ARGUMENTS`, as of huggingface_hub's snapshot_download; `subfolder` is a folder in the repository.
    Raises:
        CheckpointNotFound: nothing is there, it lacks files, or it can mean several adapters.
        CheckpointError: what was downloaded is not what the hub has on record.
        TypeError: an argument is not known.
    """
    name = os.fspath(path)
    if unknown := sorted(set(kwargs) - {*HUB_ARGUMENTS, "subfolder"}):
        raise TypeError(f"Unexpected argument {unknown[0]!r}. {choices(unknown[0], [*HUB_ARGUMENTS, 'subfolder'])}")
    if source not in (None, *SOURCES):
        raise CheckpointNotFound(f"There is no source {source!r}. {choices(source, SOURCES)}")
    inner = str(kwargs.pop("subfolder", None) or "").strip("/")
    revision = version or kwargs.pop("revision", None)
    kwargs.pop("revision", None)
    elsewhere = source in ("hf", "ah") and not os.path.isdir(name)
    local = None if elsewhere else _local(name, bool(kwargs.get("force_download")))
    if local is not None:
        finish(local)
        if config is not None or model_name is not None:
            logger.warning("config and model_name are not used for %s: its stored config is.", name)
        folder = local
    elif source == "local":
        raise CheckpointNotFound(f"There is no folder or archive {name!r}.")
    else:
        wanted = {
            "choose": partial(wanted_files, needs=needs, inner=inner, use_safetensors=use_safetensors),
            "expected": list(_names(needs, inner, use_safetensors)),
            **kwargs,
        }
        folder = _from_hub(name, revision, source, model_name or base_model, config, wanted)
    folder = folder / inner
    with reading(folder):
        _require(folder, needs)
    return folder


def holds(folder: Path, kind: CheckpointKind) -> bool:
    """Whether a complete checkpoint of this kind lies in the folder."""
    return (folder / kind.config).is_file() and any((folder / name).is_file() for name in kind.weights)


def _require(folder: Path, needs: CheckpointKind | str) -> None:
    if isinstance(needs, str):
        if (folder / needs).is_file():
            return
        expected = needs
    else:
        if any(holds(folder, kind) for kind in _forms(needs)):
            return
        expected = f"{needs.config} and {' or '.join(needs.weights)}"
    names = sorted(entry.name for entry in folder.iterdir())[:20] if folder.is_dir() else []
    raise CheckpointNotFound(f"{folder} does not hold {expected}. It holds: {', '.join(names) or 'nothing'}.")


def _local(name: str, again: bool) -> Path | None:
    if re.match(r"https?://", name):
        return _from_url(name, again)
    if os.path.isdir(name):
        return Path(name)
    return _unpacked(Path(name)) if os.path.isfile(name) else None


def _from_hub(
    name: str, revision: str | None, source: str | None, model_name: str | None, config: Any, wanted: dict[str, Any]
) -> Path:
    if name.startswith((".", "/", "~", "-")) or not name:
        raise CheckpointNotFound(f"There is no folder {name!r}, and nothing on a hub can be called so.")
    missing = None
    may_be_repository = is_repo_id(name) and ("/" in name or session.is_public())
    if source == "hf" or (source is None and may_be_repository):
        try:
            return fetch(name, revision, **wanted)
        except (NoRepository, NotCached) as error:
            if source == "hf" or session.is_public():
                raise
            missing = error
    try:
        found = resolve(name, _base_model(model_name), _config_name(config), revision, wanted.get("token"))
    except UnknownName as error:
        raise UnknownName(f"{missing or f'There is no folder {name!r}.'} {error}") from None
    except CheckpointNotFound:
        if isinstance(missing, NotCached):
            raise missing from None
        raise
    logger.info("%s is %s on %s.", name, found.id, session.endpoint())
    return fetch(found.id, found.revision, **wanted)


def _base_model(name: str | None) -> str | None:
    """A model's name to look adapters up by; paths on this machine tell the hub nothing."""
    return name if name and is_repo_id(name) and not os.path.exists(name) else None


def _config_name(config: Any) -> str | None:
    """What the index knows a config by: its name, for any sizes, or its hash, for just these options."""
    if isinstance(config, str) and (config in ADAPTER_CONFIG_MAP or re.fullmatch("[0-9a-f]{16}", config)):
        return config
    found = load_config(config)
    return get_adapter_config_hash(found.to_dict()) if found is not None else None


def wanted_files(
    repo: str, files: Sequence[str], needs: CheckpointKind | str, inner: str = "", use_safetensors: bool = True
) -> list[str]:
    """Those files of a repository that a checkpoint consists of; no pickles where there are safetensors.

    Args:
        repo: Its name.
        files: Paths of all its files.
        needs: What is to be loaded.
        inner: Folder in the repository.
        use_safetensors: Prefer safetensors to pickles; otherwise the other way round.
    Raises:
        CheckpointNotFound: what is needed is not among them.
    """
    prefix = f"{inner}/" if inner else ""
    here = [file for file in files if file.startswith(prefix)]
    folders = {""} | ({file[len(prefix) :].rpartition("/")[0] for file in here} if needs == SETUP_FILE else set())
    chosen = [f"{prefix}{SETUP_FILE}"] if needs == SETUP_FILE else []
    for folder in sorted(folder for folder in folders if "/" not in folder and folder != ".."):
        place = f"{prefix}{folder}/" if folder else prefix
        for kind in _kinds(needs):
            weights = kind.weights if use_safetensors else reversed(kind.weights)
            chosen += [f"{place}{kind.config}", *[f"{place}{w}" for w in weights if f"{place}{w}" in files][:1]]
    chosen = [file for file in dict.fromkeys(chosen) if file in files]
    first = needs.config if isinstance(needs, CheckpointKind) else needs
    found = {f"{prefix}{w}" for kind in _forms(needs) for w in kind.weights}.intersection(chosen)
    lacks_weights = isinstance(needs, CheckpointKind) and not found
    if f"{prefix}{first}" not in chosen or lacks_weights:
        raise CheckpointNotFound(_lacking(repo, files, needs, inner))
    return chosen


def _kinds(needs: CheckpointKind | str) -> tuple[CheckpointKind, ...]:
    if not isinstance(needs, CheckpointKind):
        return KINDS
    return (needs,) if needs is HEAD else (*_forms(needs), HEAD)


def _forms(needs: CheckpointKind | str) -> tuple[CheckpointKind, ...]:
    """The kinds of checkpoint that will do: of an adapter PEFT's too."""
    if isinstance(needs, str):
        return ()
    return (ADAPTER, PEFT) if needs is ADAPTER else (needs,)


def _names(needs: CheckpointKind | str, inner: str, use_safetensors: bool) -> Iterator[str]:
    """Where the files of a checkpoint lie, if a repository has them all."""
    prefix = f"{inner}/" if inner else ""
    if not isinstance(needs, CheckpointKind):
        yield f"{prefix}{needs}"
    for kind in _kinds(needs):
        if kind is not PEFT:
            yield from (f"{prefix}{kind.config}", f"{prefix}{kind.weights[not use_safetensors]}")


def _lacking(repo: str, files: Sequence[str], needs: CheckpointKind | str, inner: str) -> str:
    place = f"{repo}, folder {inner!r}," if inner else repo
    shown = ", ".join(sorted(files)[:20]) or "nothing"
    first = needs.config if isinstance(needs, CheckpointKind) else needs
    noun = needs.noun if isinstance(needs, CheckpointKind) else "set-up of adapters"
    parts = f"{first} and {' or '.join(needs.weights)}" if isinstance(needs, CheckpointKind) else first
    places = sorted(file.rpartition("/")[0] for file in files if file.endswith(f"/{first}"))
    hint = f" There is one in {', '.join(places)}: pass subfolder={places[0]!r}." if places else ""
    if needs is ADAPTER and SETUP_FILE in files:
        hint = " It holds a set-up: use load_adapter_setup."
    return f"{place} holds no {noun}, which is {parts}.{hint} It holds: {shown}."


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
