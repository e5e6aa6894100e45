"""The object ids of git, so that a repository here and its clone elsewhere agree. Objects are not stored."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import datetime

__all__ = ["BlobHash", "blob_oid", "is_lfs_pointer", "lfs_pointer", "tree_oid", "commit_oid", "EMPTY_SHA256"]

MAX_POINTER = 1024
_POINTER = b"version https://git-lfs.github.com/spec/v1\n"
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


def _oid(kind: str, data: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data).hexdigest()


def blob_oid(data: bytes) -> str:
    """`git hash-object` of a file's bytes."""
    return _oid("blob", data)


def lfs_pointer(sha256: str, size: int) -> bytes:
    """The small text that stands in git's tree for a file in large file storage."""
    return _POINTER + f"oid sha256:{sha256}\nsize {size}\n".encode()


def is_lfs_pointer(data: bytes) -> bool:
    """Whether a file's bytes are such a text."""
    return len(data) <= MAX_POINTER and data.startswith(_POINTER)


def tree_oid(files: Iterable[tuple[str, str]]) -> str:
    """`git write-tree` of (path, blob oid) pairs, all of mode 100644."""
    root: dict[str, object] = {}
    for path, oid in files:
        *folders, name = path.split("/")
        place = root
        for folder in folders:
            place = place.setdefault(folder, {})  # type: ignore[assignment]
        place[name] = oid
    return _tree(root)


def folder_oids(files: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The tree oid of every folder of (path, blob oid) pairs, without the root."""
    below: dict[str, list[tuple[str, str]]] = {}
    for path, oid in files:
        folder = ""
        *folders, _ = path.split("/")
        for part in folders:
            folder = f"{folder}/{part}" if folder else part
            below.setdefault(folder, []).append((path[len(folder) + 1 :], oid))
    return {folder: tree_oid(inside) for folder, inside in below.items()}


def _tree(node: dict[str, object]) -> str:
    # git sorts folders as if their names ended with a slash
    order = sorted(node, key=lambda name: name.encode() + (b"/" if isinstance(node[name], dict) else b""))
    data = bytearray()
    for name in order:
        child = node[name]
        mode, oid = ("40000", _tree(child)) if isinstance(child, dict) else ("100644", str(child))
        data += f"{mode} {name}\0".encode() + bytes.fromhex(oid)
    return _oid("tree", bytes(data))


def commit_oid(tree: str, parent: str | None, author: str, email: str, date: datetime, title: str, message: str) -> str:
    """The id git gives a commit with these fields; author and committer are one."""
    who = f"{author} <{email}> {int(date.timestamp())} +0000"
    text = f"{title}\n\n{message}\n" if message else f"{title}\n"
    parents = f"parent {parent}\n" if parent else ""
    return _oid("commit", f"tree {tree}\n{parents}author {who}\ncommitter {who}\n\n{text}".encode())


class BlobHash:
    """SHA-256 and git's object id of bytes that come in pieces; git needs their number beforehand."""

    def __init__(self, size: int | None) -> None:
        self.sha256 = hashlib.sha256()
        self._sha1 = hashlib.sha1(f"blob {size}\0".encode()) if size is not None else None

    def update(self, chunk: bytes) -> None:
        """Takes the next bytes."""
        self.sha256.update(chunk)
        if self._sha1 is not None:
            self._sha1.update(chunk)

    @property
    def oid(self) -> str | None:
        """git's object id, if the size was known."""
        return self._sha1.hexdigest() if self._sha1 is not None else None
