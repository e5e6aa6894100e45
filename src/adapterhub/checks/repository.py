"""Checks of the repository as a whole: its files, its name, its size, and what it depends on."""

from __future__ import annotations

from typing import Any

from ..content.kinds import refused_name
from .finding import Finding, error, listed, nearest, quoted, warning
from .subject import Subject

__all__ = ["confusable", "dependencies", "no_pickle", "quota", "safetensors"]

_NEARLY = 0.9  # of a quota


def no_pickle(subject: Subject) -> list[Finding]:
    """No file can run code when it is opened."""
    refused = [reason for path in subject.sizes if (reason := refused_name(path))]
    fix = "Save the weights as safetensors, and take these files out."
    return [error(reason, fix) for reason in refused[:10]]


def safetensors(subject: Subject) -> list[Finding] | None:
    """Every safetensors file has a valid header."""
    if not subject.headers:
        return None
    broken = [path for path, header in subject.headers.items() if header is None]
    fix = "Save it again with `safetensors.torch.save_file`, and upload it again."
    return [error(f"{quoted(path)} is not a valid safetensors file.", fix) for path in broken[:10]]


def dependencies(subject: Subject) -> list[Finding] | None:
    """Adapters that the card says belong below this one are on the hub."""
    names = _dependencies(subject)
    if not names:
        return None
    known = {name.lower().removeprefix("@") for name in subject.context.known_repos}
    missing = [name for name in names if name.lower().removeprefix("@") not in known]
    return [
        warning(
            f"'dependencies' of the card names {quoted(name)}, which is not on this hub.{nearest(name, known)}",
            "Write it as 'namespace/name', upload it first, or take it out.",
        )
        for name in missing[:20]
    ]


def confusable(subject: Subject) -> list[Finding]:
    """The name does not look like another one's."""
    similar = subject.context.similar_names
    if not similar:
        return []
    message = f"The name looks like that of {listed(map(repr, similar))}, which others own."
    return [warning(message, "Rename the repository if it is not meant to stand in for the other one.")]


def quota(subject: Subject) -> list[Finding] | None:
    """The namespace keeps no more than it may."""
    limit = subject.context.quota
    if limit is None:
        return None
    used = max(subject.context.used_bytes, sum(subject.sizes.values()))
    share = f"{_size(used)} of the {_size(limit)} that this namespace may keep are used."
    if used > limit:
        return [error(share, "Delete repositories or old files, or ask the hub's administrators for more.")]
    if used > _NEARLY * limit:
        return [warning(share, "Make room before the next upload, or ask the hub's administrators for more.")]
    return []


def _dependencies(subject: Subject) -> list[str]:
    items: Any = subject.card.data.get("dependencies") if subject.card else None
    found = [item.get("key") if isinstance(item, dict) else item for item in (items if isinstance(items, list) else [])]
    return list(dict.fromkeys(name for name in found if isinstance(name, str) and name))


def _size(count: float) -> str:
    power = min(4, (len(str(int(count))) - 1) // 3)
    return f"{count / 1000**power:.4g} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"
