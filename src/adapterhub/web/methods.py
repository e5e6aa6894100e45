"""The named configs of the library, told in a few words, each with its paper."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any, NamedTuple

from ..data import load

__all__ = ["FAMILIES", "METHODS", "Method", "method_of"]


class Method(NamedTuple):
    """A named config."""

    name: str
    title: str
    text: str
    citation: str
    config: Mapping[str, Any]
    aliases: tuple[str, ...]


_TOLD = json.loads((resources.files(__package__) / "methods.json").read_text(encoding="utf-8"))
FAMILIES: Mapping[str, list[str]] = _TOLD["families"]


def _citation(key: str) -> str:
    """A paper as BibTeX."""
    paper = _TOLD["papers"][key]
    fields = {
        "title": paper["title"],
        "author": paper["author"],
        "booktitle": paper["venue"],
        "year": paper["venue"].rpartition(" ")[2],
        "eprint": paper["arxiv"],
        "archivePrefix": "arXiv",
    }
    return f"@inproceedings{{{key},\n" + "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items()) + "}"


def _method(told: Mapping[str, str]) -> Method:
    known, name = load("configs.json"), told["name"]
    aliases = tuple(alias for alias, target in known["aliases"].items() if target == name)
    return Method(name, told["title"], told["text"], _citation(told["paper"]), known["configs"][name], aliases)


METHODS: Mapping[str, Method] = {told["name"]: _method(told) for told in _TOLD["methods"]}


def method_of(name: str | None) -> Method | None:
    """The method of a name or of one of its older names."""
    return next((method for method in METHODS.values() if name == method.name or name in method.aliases), None)
