"""What the blocks of one kind own in a model: modules beside the adapters that they combine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adapters.composition.blocks import AdapterCompositionBlock, last_name, owning_blocks
from adapters.composition.owned import Acting, BlockModule
from adapters.errors import AdapterNameError, CompositionError, ConfigError, UnsupportedError, choices
from adapters.methods.base import AdapterModule
from adapters.runtime.adapters_config import OwnedRegister
from adapters.runtime.hooks import HookedSite
from adapters.runtime.parts import Part, Parts

if TYPE_CHECKING:
    from adapters.runtime.engine import Engine

Place = tuple[HookedSite[Any], str]
"""A site, and one of its taps."""


class Owned(Parts):
    """What blocks of one kind own, by name: `fusions` of `Fuse`, for example."""

    def __init__(self, engine: Engine, kind: type[BlockModule]) -> None:
        super().__init__(engine.base, engine.edits, engine.follow_edits)
        self.engine, self.kind = engine, kind

    @property
    def register(self) -> OwnedRegister:
        """Their configs, and the adapters that they combine."""
        return self.engine.config.owned[self.kind.noun]

    def key(self, name: str) -> str:
        """What stands for `name` among the names of a program; no adapter's name has a dot."""
        return f"{self.kind.noun}.{name}"

    def add(
        self,
        names: Sequence[str | None],
        config: Any,
        own_name: str | None = None,
        overwrite: bool = False,
        old: bool = False,
    ) -> str:
        """Build a module wherever the kind has one for these adapters.

        Args:
            names: The adapters, None for "no adapter".
            config: Whatever `load_config` of the kind understands.
            own_name: Name, if it is not the one that follows from the adapters.
            overwrite: Replace one of this name.
            old: It comes from a file of version 1, which had modules at fewer places.
        Returns:
            The name.
        Raises:
            AdapterNameError: an adapter is not there, or the name is malformed or taken.
            ConfigError: there is no place for a module, or one at which none is possible.
            CompositionError: no block can use it.
        """
        engine, kind = self.engine, self.kind
        for adapter in names:
            if adapter is not None:
                engine.require(adapter)
        with engine.programs.lock:
            name, found = self.register.name_of(names, own_name), kind.load_config(config)
            kind.block_of(names, found, name)  # raises if there can be no such block
            what = f"{kind.noun.capitalize()} {name!r}"
            chosen = list(self._chosen(self._acting(names), what, old))
            if not chosen:
                raise ConfigError(
                    f"{what}: there is no place where {', '.join(str(n) for n in names)} act together. {kind.title} "
                    "combines adapters at the places that they have in common."
                )
            parts = []
            for (hooked, tap), acting in chosen:
                site = hooked.site
                module = engine.builder.placed(kind.build(found, acting, name, engine.base.config), site, found)
                path = ".".join(filter(None, (site.path, "input" if tap == "input" else "", kind.container())))
                parts.append(Part(self.base, path, name, module, site.location, site.layer, hooked, tap))
            replaced = overwrite and name in self
            if replaced:
                self.register.delete(name)
            self.register.add(names, config, own_name)
            if replaced:
                self.take_out(name)
            self.put_in(name, parts, engine.may_train(self.key(name)))
            engine.changed([self.key(name)])
        return name

    def delete(self, name: str) -> None:
        """Remove the modules called `name`; a set-up that uses them is active no more."""
        with self.engine.programs.lock:
            setup = self.engine.config.active_setup
            if any(block.owned_name == name for block in self.blocks_in(setup)):
                self.engine.activate(None)
            self.take_out(name)
            self.register.delete(name)
            self.engine.changed([self.key(name)])

    def require(self, name: str) -> None:
        """Raise AdapterNameError unless there is one of this name."""
        if name not in self:
            model = type(self.engine.root).__name__
            raise AdapterNameError(f"There is no {self.kind.noun} {name!r} in this {model}. {choices(name, self)}")

    def block(self, name: str) -> Any:
        """The block that uses what is called `name`."""
        return self.kind.block_of(self.register.adapters_of(name), self.register.config_of(name), name)

    def blocks_in(self, setup: Any) -> list[AdapterCompositionBlock]:
        """The blocks of this kind in a set-up, of those that own something."""
        return [block for block in owning_blocks(setup) if isinstance(block, self.kind.block)]

    def names_in(self, setup: Any) -> list[str]:
        """Names of what the blocks in a set-up own.

        Raises:
            CompositionError: one of them was not added, or as something that does not serve the block.
        """
        names = set()
        for block in self.blocks_in(setup):
            name = str(block.owned_name)
            if name not in self:
                raise CompositionError(
                    f"{setup!r}: there is no {self.kind.noun} {name!r}. Add its layers with {self.kind.verb()} first. "
                    f"{choices(name, self)}"
                )
            self.kind.check_block(block, self.register.config_of(name))
            made_for, given = self.register.adapters_of(name), [last_name(child) for child in block]
            if self.kind.ordered and given != made_for:
                raise CompositionError(
                    f"{block!r} uses the {self.kind.noun} {name!r}, which was made for "
                    f"{', '.join(map(str, made_for))}. Name the same adapters in the same order."
                )
            names.add(name)
        return sorted(names)

    def some_in(self, setup: Any) -> list[str]:
        """As `names_in`; a set-up without any is an error too."""
        if names := self.names_in(setup):
            return names
        raise CompositionError(
            f"{setup!r}: the set-up holds no {self.kind.block.__name__} block that owns weights. Add layers with "
            f"{self.kind.verb()} first. {choices(None, self)}"
        )

    def of_adapter(self, adapter: str) -> list[str]:
        """Names of those in which an adapter takes part."""
        return [name for name in self if adapter in self.register.adapters_of(name)]

    def check_replaced(self, adapter: str, parts: list[Part]) -> None:
        """Raise ConfigError if the new modules of an adapter act at other places than those in which it takes part."""
        for name in self.of_adapter(adapter):
            names, own = self.register.adapters_of(name), {(part.hooked, part.tap) for part in self[name]}
            before, after = self._standing(self._acting(names)), self._standing(self._acting(names, {adapter: parts}))
            if not own <= after or not after <= own | before:
                raise ConfigError(
                    f"Adapter {adapter!r} takes part in the {self.kind.noun} {name!r}, which was made for other places "
                    f"than those of the new config. Call delete_{self.kind.stem} first, or choose another name."
                )

    def _standing(self, acting: Mapping[Place, Acting]) -> set[Place]:
        return {place for place, one in acting.items() if self.kind.stands(one, False)}

    def auxiliary_loss(self) -> Any:
        """The sum of what all modules that are ours add to the loss of a task.

        Raises:
            UnsupportedError: the loss is made in forward calls, and gradient checkpointing leaves it without gradient.
        """
        if self.makes_losses() and self.engine.reenters_backward():
            raise UnsupportedError(
                f"The loss of a {self.kind.noun} has no gradient under this kind of gradient checkpointing. Enable it "
                "with gradient_checkpointing_kwargs={'use_reentrant': False}, or leave the loss out."
            )
        return sum((module.auxiliary_loss() for module in self._ours()), 0.0)

    def makes_losses(self) -> bool:
        """Whether forward calls make losses that are not in what they return."""
        return self.kind.loss_of_call and any(module.adds_loss() for module in self._ours())

    def _ours(self) -> Iterator[BlockModule]:
        """The modules that nobody has replaced by others."""
        for name in self:
            yield from (part.module for part in self[name] if isinstance(part.module, BlockModule))

    def _acting(
        self, names: Sequence[str | None], instead: Mapping[str, list[Part]] | None = None
    ) -> dict[Place, Acting]:
        """Who of some adapters acts where, in the order of the places."""
        found: dict[Place, list[AdapterModule[Any] | None]] = {}
        for i, name in enumerate(names):
            for part in [] if name is None else (instead or {}).get(name) or self.engine.parts[name]:
                if part.hooked is not None:
                    found.setdefault((part.hooked, part.tap), [None] * len(names))[i] = part.module
        return dict(sorted(found.items(), key=lambda item: (item[0][0].number, item[0][1])))

    def _chosen(self, acting: Mapping[Place, Acting], what: str, old: bool) -> Iterator[tuple[Place, Acting]]:
        for place, there in acting.items():
            if self.kind.stands(there, old):
                yield place, there
            elif not old and (reason := self.kind.refusal(there)) is not None:
                site = place[0].site
                raise ConfigError(
                    f"{what}: nothing can combine these adapters at {site.role or site.path} of layer {site.layer}, "
                    f"since {reason}."
                )
