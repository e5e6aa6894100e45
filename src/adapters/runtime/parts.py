"""Modules that were added to a model, by name: those of adapters, and those that blocks own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from adapters.runtime import tree
from adapters.runtime.hooks import HookedSite, Pin
from adapters.sharding import follow


class Part:
    """One stored module: at a site, or shared by the sites of an adapter (`hooked` is None).

    Attributes:
        path: Module path, relative to the base model, of the dictionary that holds it.
        name: Its name in there.
        tap: The tap at which it acts, or beside whose adapters it stands.
        placed: Whether it is in the module tree; before that, and afterwards, it is by itself.
    """

    def __init__(
        self,
        base: nn.Module,
        path: str,
        name: str,
        module: nn.Module,
        location: str,
        layer: int,
        hooked: HookedSite[Any] | None = None,
        tap: str = "output",
    ) -> None:
        self.base, self.path, self.name = base, path, name
        self.location, self.layer, self.hooked, self.tap = location, layer, hooked, tap
        self.last_seen, self.placed = module, False

    @property
    def module(self) -> Any:
        """The module. Once it is placed in the module tree: what stands there, whoever put it there."""
        if not self.placed or (holder := tree.find(self.base, self.path)) is None:
            return self.last_seen
        return holder._modules.get(self.name) or self.last_seen

    def is_in_tree(self) -> bool:
        """Whether the module tree (still) has something of this name at its path."""
        holder = tree.find(self.base, self.path)
        return holder is not None and holder._modules.get(self.name) is not None

    def hang(self) -> tuple[Pin, Any]:
        """Where the dictionary that holds it hangs in the module tree, and the module itself."""
        parent, _, last = self.path.rpartition(".")
        owner = tree.find(self.base, parent) if parent else self.base
        assert owner is not None
        children: dict[str, Any] = owner._modules
        holder = children[last]
        return (children, last, holder), holder._modules[self.name]


class Parts(Mapping[str, list[Part]]):
    """All parts of one kind by the name of what they belong to. Reading it takes notice of edits of the module tree.

    Attributes:
        masked: Names of those that need the attention mask.
    """

    def __init__(self, base: nn.Module, edits: tree.Edits, follow_edits: Callable[[], None]) -> None:
        self.base, self.edits, self._follow_edits = base, edits, follow_edits
        self._of: dict[str, list[Part]] = {}
        self.masked: set[str] = set()

    def __getitem__(self, name: str) -> list[Part]:
        self._follow_edits()
        return self._of[name]

    def __iter__(self) -> Iterator[str]:
        self._follow_edits()
        return iter(self._of)

    def __len__(self) -> int:
        self._follow_edits()
        return len(self._of)

    def key(self, name: str) -> str:
        """What stands for `name` among the names of a program."""
        return name

    def put_in(self, name: str, parts: list[Part], train: bool) -> None:
        """Hang the modules of `name` into the tree; frozen unless they are to train."""
        follow(self.base, (part.last_seen for part in parts))
        self._of[name] = parts
        for part in parts:
            tree.container(self.base, part.path, self.edits)._modules[name] = part.last_seen
            part.placed = True
            if not train:
                part.last_seen.requires_grad_(False)
            if part.hooked is not None:
                part.hooked.names.add(self.key(name))
                if "mask" in getattr(part.last_seen, "needs", ()):
                    self.masked.add(name)

    def take_out(self, name: str) -> list[Part]:
        """Remove the modules of `name` from the tree, and return them."""
        parts = self._of.pop(name)
        self.masked.discard(name)
        for part in parts:
            tree.discard(self.base, part.path, name)
            part.placed = False
            if part.hooked is not None:
                part.hooked.names.discard(self.key(name))
        return parts

    def reread(self) -> set[str]:
        """Take over what was edited in the module tree by hand; the names, as `key` has them, that it concerns.

        Raises:
            UnsupportedError: something stands in a place where it cannot act.
        """
        changed: set[str] = set()
        for name, parts in self._of.items():
            for part in list(parts):
                found = part.module if part.is_in_tree() else None
                if found is part.last_seen:
                    continue
                if found is not None:
                    self.check(part, found)
                    part.last_seen = found
                else:
                    parts.remove(part)
                    if part.hooked is not None:
                        part.hooked.names.discard(self.key(name))
                changed.add(self.key(name))
        return changed

    def check(self, part: Part, found: nn.Module) -> None:
        """Raise UnsupportedError if `found` cannot act in place of a part."""


def parameters_of(groups: Iterable[Mapping[str, list[Part]]]) -> Iterator[nn.Parameter]:
    """The parameters of all parts of some collections."""
    for parts in groups:
        for name in parts:
            for part in parts[name]:
                yield from part.module.parameters()
