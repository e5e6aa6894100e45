"""The checks, run on a folder before anything is uploaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import EntryNotFound, TooLarge
from ..repos.files import Entry, Manifest
from ..settings import MiB

__all__ = ["LocalFiles", "check_folder"]

# These compare with what is on a hub: it is done when the files come there.
_NEEDS_HUB = ("deps.exist", "name.confusable", "size.quota")
_IGNORED = (".git", "__pycache__", ".cache", ".DS_Store")


@dataclass(frozen=True)
class LocalFiles:
    """The files of a folder, as the checks read them. Hashes are left out: no check looks at them."""

    root: Path
    manifest: Manifest

    @classmethod
    def of(cls, root: Path) -> LocalFiles:
        """All files in a folder."""
        manifest = {}
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root).as_posix()
            if path.is_file() and not set(name.split("/")) & set(_IGNORED):
                manifest[name] = Entry(name, "", "", path.stat().st_size, lfs=False)
        return cls(root, manifest)

    async def read(self, path: str, limit: int = 2 * MiB) -> bytes:
        """The bytes of a file.

        Raises:
            EntryNotFound: there is none of that path.
            TooLarge: it has more than `limit` bytes.
        """
        if path not in self.manifest:
            raise EntryNotFound(f"{path} does not exist")
        if self.manifest[path].size > limit:
            raise TooLarge(f"{path} has {self.manifest[path].size} bytes; at most {limit} are read here.")
        return (self.root / path).read_bytes()

    async def header(self, path: str) -> dict[str, Any] | None:
        """The tensors of a safetensors file; None for another one."""
        from ..content.inspect import inspect

        return inspect(self.root / path, path)[0] if path in self.manifest else None


async def check_folder(root: Path) -> list[dict[str, Any]]:
    """What the checks say of a folder, and what the hub would refuse to take.

    Raises:
        ValueError: it is no folder.
    """
    from .. import checks
    from ..content.inspect import inspect
    from ..facts import taxonomy

    if not root.is_dir():
        raise ValueError(f"{root} is no folder. Give the folder that holds adapter_config.json and README.md.")
    files = LocalFiles.of(root)
    known = taxonomy.Taxonomy.packaged()
    tasks: dict[str, list[str]] = {task: [] for task in known.tasks}
    for task, subtask in known.subtasks:
        tasks.setdefault(task, []).append(subtask)
    limits = {name: limits for name, (_, _, limits) in taxonomy.METRICS.items()}
    found = await checks.run(files, checks.CheckContext(tasks=tasks, metrics=limits))
    shown = [check for check in found if check["id"] not in _NEEDS_HUB]
    for path in files.manifest:
        if danger := inspect(root / path, path)[1]:
            fix = "Leave it out, or save the weights as safetensors."
            shown.append({"id": "files.content", "level": "error", "message": danger, "fix": fix})
    return shown
