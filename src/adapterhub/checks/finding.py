"""What checks say."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

__all__ = ["Check", "Finding", "Level", "error", "listed", "nearest", "quoted", "warning"]

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Check:
    """What one check says.

    Attributes:
        id: its name, such as `weights.shape`.
        level: `ok`, `warning` or `error`.
        message: what was found, with the field, its value and the rule.
        fix: what to do about it; empty where all is well.
        link: where more is told, a path on the hub.
    """

    id: str
    level: Level
    message: str
    fix: str = ""
    link: str = ""

    def shown(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Finding(NamedTuple):
    """Something that is wrong."""

    level: Level
    message: str
    fix: str


def error(message: str, fix: str) -> Finding:
    """Something that must be mended."""
    return Finding("error", message, fix)


def warning(message: str, fix: str) -> Finding:
    """Something that should be mended."""
    return Finding("warning", message, fix)


def quoted(value: object, length: int = 80) -> str:
    """A value as it stands in a message."""
    text = repr(value)
    return text if len(text) <= length else text[: length - 1] + "…"


def listed(values: Iterable[object], most: int = 3) -> str:
    """Some values as they stand in a message: `a, b, c and 7 more`."""
    items = [str(value) for value in values]
    rest = len(items) - most
    return ", ".join(items[:most]) + (f" and {rest} more" if rest > 0 else "")


def nearest(value: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """A hint at known names that are like a given one: ` Did you mean 'x'?`; empty without any."""
    near = difflib.get_close_matches(value.lower(), sorted(known), n=3, cutoff=cutoff)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
