"""Is another distribution installed that owns the import name `adapters`?

Two distributions with one import name overwrite each other's files, so half of each would run. The check
reads directory listings only, for `import adapters` must stay cheap; `importlib.metadata` comes in on a hit.
"""

from __future__ import annotations

import os
import sys

from adapters.errors import EnvironmentConflict

FOREIGN = "adapters"


def refuse_foreign_distribution() -> None:
    """Raise if the distribution `adapters` is installed beside `adapterhub`.

    Raises:
        EnvironmentConflict: A distribution of that name lies on `sys.path` and installs a package `adapters`.
    """
    for folder in sys.path:
        try:
            entries = os.listdir(folder or os.curdir)
        except OSError:
            continue
        if any(_is_metadata(entry) for entry in entries):
            _refuse_if_owner(folder or os.curdir)


def _is_metadata(entry: str) -> bool:
    """Whether a directory entry looks like the metadata of the foreign distribution, of any version."""
    if not entry.startswith(FOREIGN) or not entry.endswith((".dist-info", ".egg-info")):
        return False
    return entry.rpartition(".")[0].partition("-")[0] == FOREIGN


def _refuse_if_owner(folder: str) -> None:
    from importlib.metadata import distributions

    for dist in distributions(name=FOREIGN, path=[folder]):
        listed = any(file.parts[0] == FOREIGN for file in dist.files or ())
        if listed or FOREIGN in (dist.read_text("top_level.txt") or "").split():
            raise EnvironmentConflict(
                f"the distribution 'adapters' {dist.version} is installed in {os.path.abspath(folder)}, and "
                "it owns the same import name as 'adapterhub'. Only one of the two can be in an environment. "
                "Run `pip uninstall adapters`, then `pip install --force-reinstall --no-deps adapterhub`; or "
                "use a separate virtual environment for each."
            )
