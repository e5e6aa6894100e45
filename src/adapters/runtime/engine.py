"""The adapters of one model: builds them at their sites, and tells what belongs to them.

One engine belongs to one base model. Costs of adding, loading, activating and deleting depend on the adapter's own
sites, never on how many other adapters there are. What acts is `programs.py`; when it acts, `entry.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from torch import nn

from adapters.composition.blocks import AdapterCompositionBlock, Stack, parse_composition
from adapters.composition.registry import BLOCK_MODULES
from adapters.errors import AdapterNameError, CompositionError, ConfigError, UnsupportedError, choices
from adapters.methods import METHODS
from adapters.methods.base import AdapterModule
from adapters.methods.config import AdapterConfig, ConfigUnion
from adapters.methods.interface import AdapterModelInterface
from adapters.methods.locations import names_in, names_of
from adapters.runtime import tree
from adapters.runtime.active import Setup
from adapters.runtime.adapters_config import ModelAdaptersConfig
from adapters.runtime.building import Builder
from adapters.runtime.entry import Entry
from adapters.runtime.hooks import HookedEmbedding, HookedLayer, HookedPrompt, HookedSite, HookedTable, hooked_sites
from adapters.runtime.natives import silence
from adapters.runtime.owned import Owned
from adapters.runtime.parts import Part, Parts
from adapters.runtime.programs import Program, Programs
from adapters.runtime.replication import Replication
from adapters.sharding import may_move
from adapters.sites.lookup import spec_for
from adapters.sites.resolve import resolve
from adapters.sites.site import Site


class Adapters(Parts):
    """The adapters of a model."""

    def check(self, part: Part, found: nn.Module) -> None:
        if part.hooked is None:
            return
        if not isinstance(found, AdapterModule) or not isinstance(found.site, type(part.hooked.site)):
            raise UnsupportedError(
                f"{part.path}.{part.name} is a {type(found).__name__}, which cannot act in place of an adapter there. "
                f"Put a {type(part.last_seen).__name__} of the same kind of place in, or delete the entry."
            )


class Engine:
    """The adapters of one model.

    Attributes:
        root: The model that the user calls.
        base: The transformer inside it; the same object for headless models.
        interface: The user's own description of the model, if there is one.
        config: Names, configs and the active set-up: `model.adapters_config`.
        spec, names: Where its places are, and what files call them.
        hooked: The places where adapters can act; `sites` finds them by their site.
        masked: Those whose adapters need the attention mask.
        programs: What the set-ups mean that were asked for.
        builder: Makes the modules of adapters.
        parts: Adapter name -> its modules.
        owned: What blocks own, by the noun of their kind ("fusion").
        added: All of that.
        shared: Name of shared parameters -> the adapters that share them.
        merged: Adapter -> what is known of it in the base weights (`merging.Merged`); each lies on top of those before.
        trained: What trains since `train_adapter` was called, as `Parts.key` has it; None before.
    """

    def __init__(
        self,
        root: nn.Module,
        base: nn.Module,
        config: ModelAdaptersConfig,
        interface: AdapterModelInterface | None = None,
        example_inputs: Mapping[str, Any] | None = None,
    ) -> None:
        self.root, self.base, self.config, self.interface = root, base, config, interface
        self.spec = spec_for(base, example_inputs, root) if interface is None else interface.spec(base)
        self.names = names_in(base) if interface is None else names_of("")
        self.programs = Programs(self)
        self.hooked = hooked_sites(resolve(base, self.spec, self.names), self.programs)
        self.sites: dict[Site, HookedSite[Any]] = {hooked.site: hooked for hooked in self.hooked}
        self.masked: list[Any] = [hooked for hooked in self.hooked if isinstance(hooked, (HookedLayer, HookedPrompt))]
        self.builder = Builder(base, self.spec, self.sites)
        self.edits, self._seen_edits = tree.Edits(), 0
        self.parts = Adapters(base, self.edits, self.follow_edits)
        self.owned = {kind.noun: Owned(self, kind) for kind in BLOCK_MODULES}
        self.added: tuple[Parts, ...] = (self.parts, *self.owned.values())
        self.shared: dict[str, list[str]] = {}
        self.merged: dict[str, Any] = {}
        self.trained: frozenset[str] | None = None
        self._moves = False
        self.entry = Entry(self)
        self.replication = Replication(self)
        self.programs.default = self.programs.of(None)

    def take_over(self) -> None:
        """What a model has of its own gives way: its own adapters, and how it checkpoints. The last step of `init`."""
        self.adopt_checkpointing()
        if self.spec.natives is not None:
            silence(self.base, self.spec.natives)

    def withdraw(self) -> None:
        """Take all adapters out of a model that the engine has not taken over."""
        for name in list(self.parts):
            self.delete(name)

    # ----------------------------------------------------------------------------------------------- adapters

    def add(self, name: str, config: AdapterConfig, overwrite: bool = False, new: bool = False) -> None:
        """Build the adapter `name`, in place of one of this name if `overwrite` is set.

        With `new` it is refused what only adapters in files may be. Leaves the model as it was if anything fails. A
        set-up that names a replaced adapter stays active.
        """
        self.insert(name, config, self.build(name, config, new), overwrite)

    def insert(self, name: str, config: AdapterConfig, parts: list[Part], overwrite: bool = False) -> None:
        """Put what `build` made into the model, in place of an adapter of this name if `overwrite` is set."""
        config = self.builder.flagged(config)
        with self.programs.lock:
            if name not in self.parts or not overwrite:
                self.config.add(name, config)
                try:
                    self.parts.put_in(name, parts, self.may_train(name))
                    self.changed([name])
                    self.programs.of(Stack(name))  # now, so that to activate it for the first time takes no longer
                except BaseException:  # an interrupt too
                    self._forget(name)
                    self.changed([name])
                    raise
                return
            old, old_config = self.parts[name], self.config.get(name)
            assert old_config is not None
            for owned in self.owned.values():
                owned.check_replaced(name, parts)
            try:
                self._replace(name, parts, config)
                self.changed([name])
            except BaseException:
                self._replace(name, old, old_config)
                self.changed([name])
                raise

    def build(self, name: str, config: AdapterConfig, new: bool = False) -> list[Part]:
        """The modules of an adapter, not yet in the model. Raises as `Builder.build`."""
        return self.builder.build(name, config, new)

    def delete(self, name: str) -> None:
        """Remove the adapter `name` and every trace of it. Calls that run keep it to their end."""
        with self.programs.lock:
            if (setup := self.config.active_setup) is not None and name in setup.flatten():
                self.activate(None)
            for owned in self.owned.values():
                for own in owned.of_adapter(name):
                    owned.delete(own)
            self._forget(name)
            for group in [group for group, members in self.shared.items() if name in members]:
                self.shared[group].remove(name)
                if not self.shared[group]:
                    del self.shared[group]
            self.changed([name])

    # ----------------------------------------------------------------------------------------------- set-ups

    def require(self, name: str | None) -> None:
        """Raise AdapterNameError unless the adapter `name` exists."""
        if name not in self.parts:
            raise AdapterNameError(
                f"There is no adapter {name!r} in this {type(self.root).__name__}. {choices(name, self.parts)}"
            )

    def parse(self, setup: Any) -> AdapterCompositionBlock | None:
        """Check a set-up: blocks that nest, adapters and fusions that exist, a meaning at every site."""
        parsed = parse_composition(setup)
        block: AdapterCompositionBlock | None = Stack(parsed) if isinstance(parsed, str) else parsed
        self.programs.of(block)
        return block

    def activate(self, setup: Any, skip_layers: Iterable[int] | None = None) -> None:
        """Make `setup` the one that is active outside of every `AdapterSetup`. Nothing changes if it is refused."""
        skipped = sorted(set(skip_layers or ()))
        self.programs.check_layers(skipped, "skip_layers")
        parsed = parse_composition(setup)
        block = Stack(parsed) if isinstance(parsed, str) else parsed
        self.programs.set_default(block, skipped)
        self.config.active_setup, self.config.skip_layers = block, skipped or None

    def current(self) -> Setup:
        """The set-up in force on this thread."""
        return self.programs.in_force().setup

    def set_output_embeddings(self, modules: Iterable[nn.Module]) -> None:
        """Tell where invertible adapters are undone."""
        outputs = tuple(modules)
        with self.programs.lock:
            for hooked in (hooked for hooked in self.hooked if isinstance(hooked, HookedEmbedding)):
                for tap in list(hooked.handles):
                    hooked.unhook(tap)
                hooked.outputs = outputs
                self.changed(hooked.names)
            for table in (hooked for hooked in self.hooked if isinstance(hooked, HookedTable)):
                if table.names:  # what is tied to them
                    self.changed(table.names)

    def is_merged(self, name: str, part: Part) -> bool:
        """Whether a module of an adapter acts through the base weights, and must not act beside them."""
        return name in self.merged and part.module.merges

    def check_merged(self, setup: Setup, merged: Iterable[str]) -> None:
        """Raise CompositionError if a set-up would not compute the same once these are merged, one after the other."""
        names = set() if setup is None else setup.flatten()
        below: list[str] = []
        for name in merged:
            below.append(name)
            if name not in names:
                continue
            others = _chain(setup)
            reason = "the block gives it a part of what is computed, and merged it acts in all"
            if others is not None:
                reason = self._changed_by_merging(name, [n for n in others if n == name or n not in below])
            if reason and len(names) > 1:
                raise CompositionError(
                    f"{setup!r} would mean something else while {name!r} is merged: {reason}. Activate the others "
                    "alone, which then act on top of the merged weights, or do not merge it (reset_adapter)."
                )

    def _changed_by_merging(self, name: str, order: list[str]) -> str:
        """Why a stack of adapters in this order is another one once `name` is next to the weights; "" if it is not."""
        for part in (part for part in self.parts[name] if part.hooked is not None and part.module.merges):
            for other in (other for other in order if other != name):
                for own in (own for own in self.parts[other] if own.hooked is part.hooked):
                    after = order.index(other) > order.index(name)
                    if own.tap == part.tap and after == (part.tap == "input"):
                        return f"it would be next to the weights, and {other!r} is in the stack"
                    if own.tap == "output" and (reason := own.module.changed_by_merging(part.module)):
                        return str(reason)
        return ""

    def act_first_only(self, name: str) -> None:
        """Let an adapter do in a `Stack` what it did in version 1 of the library: see `AdapterModule.chains`."""
        for part in self.parts[name]:
            if part.hooked is not None and not part.module.chained_before:
                part.module.chains = False
        self.changed([name])

    def is_chained(self, name: str) -> bool:
        """Whether all of an adapter acts where others come before it in a `Stack`."""
        return all(part.module.chains for part in self.parts[name] if part.hooked is not None)

    def eject(self, name: str) -> None:
        """Put what the reparametrisation of a prefix makes in its place, in the adapter's weights and its config."""
        self.require(name)
        config = self.config.get(name)
        assert config is not None
        adapters = [part.module for part in self.parts[name] if part.hooked is not None]
        ejected_any = [module.eject() for module in adapters]
        if True not in ejected_any:
            raise ConfigError(f"Adapter {name!r} has no prefix tuning, so there is nothing to eject.")
        self.config.delete(name)
        self.config.add(name, ejected(config))
        self.changed([name])

    # ----------------------------------------------------------------------------------------- the module tree

    def _forget(self, name: str) -> None:
        if name in self.parts:
            self.parts.take_out(name)
        self.config.delete(name)

    def _replace(self, name: str, parts: list[Part], config: AdapterConfig) -> None:
        self._forget(name)
        self.config.add(name, config)
        self.parts.put_in(name, parts, self.may_train(name))

    def may_train(self, key: str) -> bool:
        """Whether what is new trains: unless `train_adapter` has named others."""
        return self.trained is None or key in self.trained

    def owns(self, module: nn.Module) -> bool:
        """Whether a module is one of those that blocks own in this model."""
        return any(part.module is module for owned in self.owned.values() for name in owned for part in owned[name])

    def asks_for_masks(self) -> bool:
        """Whether something outside of `masked` needs the attention mask."""
        return any(parts.masked for parts in self.added)

    def changed(self, names: Iterable[str]) -> None:
        """Bring programs and hooks up to date after adapters, or what blocks own, have changed."""
        if self.parts:
            self.entry.attach()
        else:
            self.replication.detach()
        self.entry.follow_stacks()
        self.programs.changed(names)
        if not self.parts:
            self.entry.detach()

    def moves(self) -> bool:
        """Whether parameters of the model get other memory in the course of a call: nothing derived is kept then."""
        self._moves = self._moves or may_move(self.root)
        return self._moves

    def is_edited(self, program: Program) -> bool:
        """Whether somebody has edited the module tree by hand where it concerns a program."""
        return self.edits.count != self._seen_edits or not program.holds()

    def follow_edits(self) -> None:
        """Take notice of edits of the module tree, if there were any."""
        if self.edits.count != self._seen_edits:
            self.reread()

    def reread(self) -> None:
        """Let what stands in the module tree act from now on, whoever put it there.

        Raises:
            UnsupportedError: something stands in place of an adapter that is none.
        """
        with self.programs.lock:
            changed = set().union(*(parts.reread() for parts in self.added))
            self._seen_edits = self.edits.count
            if (find_outputs := getattr(self.root, "_on_heads_changed", None)) is not None:
                find_outputs()
            self.programs.changed(changed, replaced=True)

    # ------------------------------------------------------------------------------------------ checkpointing

    def adopt_checkpointing(self) -> None:
        """Take over gradient checkpointing that was enabled before the model had an engine."""
        for module in self.root.modules():
            if getattr(module, "gradient_checkpointing", False) and hasattr(module, "_gradient_checkpointing_func"):
                module._gradient_checkpointing_func = self.checkpointed(module._gradient_checkpointing_func)
        functions = list(checkpoint_functions(self.root))
        if functions and not any(map(reenters, functions)):
            for module in self.root.modules():
                if getattr(module, "_require_grads_hooks", None):
                    module.disable_input_require_grads()  # type: ignore[operator]

    def reenters_backward(self) -> bool:
        """Whether gradient checkpointing is on, and of the kind that runs backward inside of backward."""
        return any(map(reenters, checkpoint_functions(self.root)))

    def checkpointed(self, function: Any) -> Any:
        """`function` (torch's checkpoint), made to run its recomputation under the set-up of the forward call."""
        return partial(_checkpoint, self, function)


def _chain(block: Setup | str) -> list[str] | None:
    """The adapters of a set-up one after the other; None if it has other blocks than `Stack`."""
    if block is None or isinstance(block, str):
        return [] if block is None else [block]
    chains = [_chain(child) for child in block] if isinstance(block, Stack) else [None]
    return None if None in chains else [name for chain in chains for name in chain or ()]


def checkpoint_functions(model: nn.Module) -> Iterator[Any]:
    """The functions by which the layers of `model` are checkpointed; none if they are not."""
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False) and hasattr(module, "_gradient_checkpointing_func"):
            yield module._gradient_checkpointing_func


def reenters(function: Any) -> bool:
    """Whether a checkpointing function runs backward inside of backward, which needs inputs with gradients."""
    while isinstance(function, partial):
        if function.keywords.get("use_reentrant") is False:
            return False
        function = function.args[1] if function.func is _checkpoint else function.func
    return True


def _checkpoint(engine: Engine, function: Any, layer: Any, *args: Any, **kwargs: Any) -> Any:
    return function(engine.entry.carry(layer), *args, **kwargs)


def ejected(config: AdapterConfig) -> AdapterConfig:
    """The config of an adapter after `eject`, member by member."""
    if isinstance(config, ConfigUnion):
        return ConfigUnion(*map(ejected, config.configs))
    for method in METHODS:
        if method.handles(config):
            config = method.ejected(config)
    return config
