"""How does a folder change as a whole, whenever the program is killed? By a folder inside of it, and one rename.

    my_adapter/
        .unfinished-3f9a.../           1. what is being saved is written here, and flushed to the disk
        .saved/                        2. one rename: from now on the folder's state is the new one
        adapter_config.json, ...       3. the files move to their places; what the new state does not have goes

A kill before the rename leaves the old state, one after it the new state: whoever reads or saves next finishes step 3,
every part of which can be repeated. Sub-folders are states of their own: they get their part as their own `.saved`.
Savers and readers of a folder wait for each other, where the system has flock. Files that are not ours stay; the folder
itself is never renamed, and may be a link.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from adapters.checkpoint.layout import PathLike, make_folder, superseded
from adapters.errors import CheckpointError

UNFINISHED = ".unfinished-"
"""How the name of a folder starts in which a save is under way."""
SAVED = ".saved"
"""The folder in which a whole save waits to be moved to its places."""
CHANGES = ".changes.json"
"""File in `SAVED`: {"folders": [...], "removed": [...]}, sub-folders of the new state, and what it has no more."""


def nothing(path: str) -> bool:
    """No path at all, for `saving`."""
    return False


@contextmanager
def saving(folder: PathLike, replaces: Callable[[str], bool] = nothing) -> Iterator[Path]:
    """A new folder, whose content gets into `folder` at once when the context ends without an error.

    Args:
        folder: It is made if it is not there.
        replaces: Which paths in `folder`, relative to it, go if they are not saved anew; besides those that a kind of
            checkpoint replaces (`layout.superseded`).
    Raises:
        CheckpointError: a file is where a folder should be, or the other way round.
    """
    is_new = not os.path.lexists(folder)
    target = make_folder(folder)
    path = target / f"{UNFINISHED}{secrets.token_hex(6)}"
    with _locked(target, exclusive=True):
        _settle(target)
        for left in target.glob(f"{UNFINISHED}*"):
            shutil.rmtree(left, ignore_errors=True)
        path.mkdir()
        try:
            yield path
            _complete(path, target, "", replaces)
            os.rename(path, target / SAVED)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            if is_new:
                with suppress(OSError):
                    target.rmdir()
            raise
        _flush(target)
        _settle(target)


@contextmanager
def reading(folder: PathLike) -> Iterator[None]:
    """In this context `folder` holds one state, and does not change. A save that was interrupted is finished first.

    Raises:
        CheckpointError: such a save cannot be finished, because the folder cannot be written.
    """
    path = Path(folder)
    while True:
        with _locked(path, exclusive=False):
            if not (path / SAVED).is_dir():
                yield
                return
        with _locked(path, exclusive=True):
            try:
                _settle(path)
            except OSError as error:
                raise CheckpointError(
                    f"A save into {path} was interrupted, and cannot be finished now: {error}. Make the folder "
                    "writable and try again."
                ) from None


def finish(folder: PathLike) -> None:
    """Finish a save that was interrupted, for a folder that others read. Raises CheckpointError as `reading`."""
    if os.path.isdir(folder):
        with reading(folder):
            pass


def _complete(path: Path, target: Path, below: str, replaces: Callable[[str], bool]) -> None:
    """Flush what is to be saved, and note what it changes in `target`."""
    saved = {entry.name: entry.is_dir() for entry in path.iterdir()}
    present = {entry.name for entry in target.iterdir()} if target.is_dir() else set()
    present = {name for name in present if name != SAVED and not name.startswith(UNFINISHED)}
    for name, is_folder in saved.items():
        if name in present and (target / name).is_dir() != is_folder:
            kind, other = ("folder", "file") if is_folder else ("file", "folder")
            raise CheckpointError(f"{target / name} is a {other}, but a {kind} is to be saved there. Move it away.")
        if is_folder:
            _complete(path / name, target / name, f"{below}{name}/", replaces)
        else:
            _flush(path / name)
    gone = superseded(saved, present) | {name for name in present if replaces(f"{below}{name}")}
    folders = [name for name, is_folder in saved.items() if is_folder]
    changes = {"folders": sorted(folders), "removed": sorted(gone - saved.keys())}
    (path / CHANGES).write_text(json.dumps(changes), encoding="utf-8")
    _flush(path / CHANGES)
    _flush(path)


def _settle(target: Path) -> None:
    """Move what waits in `target` to its places."""
    waiting = target / SAVED
    if not waiting.is_dir():
        return
    if (waiting / CHANGES).is_file():
        changes = json.loads((waiting / CHANGES).read_text(encoding="utf-8"))
        for name in changes["folders"]:
            inner = make_folder(target / name)
            with _locked(inner, exclusive=True):
                _settle(inner)
                if (waiting / name).is_dir():
                    os.rename(waiting / name, inner / SAVED)
                    _settle(inner)
        for entry in waiting.iterdir():
            if entry.name != CHANGES:
                os.replace(entry, target / entry.name)
        for name in changes["removed"]:
            _remove(target / name)
        (waiting / CHANGES).unlink()
    waiting.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Write a file, or the entries of a folder, to the disk."""
    if sys.platform == "win32":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _locked(folder: Path, exclusive: bool) -> Iterator[None]:
    """Nobody saves into `folder` meanwhile; with `exclusive` nobody reads it either. Without flock: no promise."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        yield
        return
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)
