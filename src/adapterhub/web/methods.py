"""The named configs of the library, each with a sentence and its paper, as their pages show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..data import load
from ..facts.configs import aliases
from ..methods import UNION, Preset, library
from .placement import marks

__all__ = ["FAMILIES", "METHODS", "Method", "method_of"]


class Method(NamedTuple):
    """A named config."""

    name: str
    title: str
    text: str
    citation: str
    config: Mapping[str, Any]
    aliases: tuple[str, ...]


def _citation(arxiv: str) -> str:
    """A paper as BibTeX: in full where `data/papers.json` has it, else by its number."""
    paper = load("papers.json").get(arxiv)
    entry, fields = "misc", {"eprint": arxiv, "archivePrefix": "arXiv", "url": f"https://arxiv.org/abs/{arxiv}"}
    if paper:
        entry = "inproceedings"
        fields = {
            "title": paper["title"],
            "author": paper["author"],
            "booktitle": paper["venue"],
            "year": paper["venue"].rpartition(" ")[2],
            "eprint": arxiv,
            "archivePrefix": "arXiv",
        }
    key = paper["key"] if paper else f"arXiv:{arxiv}"
    return f"@{entry}{{{key},\n" + "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items()) + "}"


def _method(preset: Preset) -> Method:
    return Method(preset.name, preset.title, preset.text, _citation(preset.paper), preset.config, preset.aliases)


# Families of methods, by the shape in which their drawing has them.
_FAMILIES = {
    "Bottlenecks": ("bottleneck", "parallel"),
    "Reparametrisation": ("lowrank", "scale"),
    "Prefixes and prompts": ("prefix", "prompt"),
    "Representation editing": ("reft",),
}


def _family(config: Mapping[str, Any]) -> str:
    if config.get("architecture") == UNION:
        return "Unions"
    shape = next((mark.kind for mark in marks(config)), "")
    return next((family for family, shapes in _FAMILIES.items() if shape in shapes), "Others")


METHODS: Mapping[str, Method] = {name: _method(preset) for name, preset in library().presets.items()}
FAMILIES: Mapping[str, list[str]] = {
    family: names
    for family in (*_FAMILIES, "Others", "Unions")
    if (names := [name for name, method in METHODS.items() if _family(method.config) == family])
}


def method_of(name: str | None) -> Method | None:
    """The method of a name or of one of its older names."""
    return METHODS.get(aliases().get(name, name)) if name else None
