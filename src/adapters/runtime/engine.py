"""The adapters of one model: builds them at their sites, and tells what belongs to them.

One engine belongs to one base model. Costs of adding, loading, activating and deleting depend on the adapter's own
sites, never on how many other adapters there are. What acts is `programs.py`; when it acts, `entry.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adapters.composition.blocks import AdapterCompositionBlock, Stack, parse_composition
from adapters.composition.fusion import AdapterFusion
from adapters.composition.fusion_config import AdapterFusionConfig
from adapters.errors import AdapterNameError, CompositionError, ConfigError, UnsupportedError, choices
from adapters.methods import METHODS
from adapters.methods.base import AdapterModule, AffineAdapter, init_seed
from adapters.methods.bottleneck import Bottleneck
from adapters.methods.config import AdapterConfig, ConfigUnion, members_of
from adapters.methods.interface import AdapterModelInterface
from adapters.methods.locations import names_of
from adapters.methods.places import check_layers, choose, flagged
from adapters.runtime import tree
from adapters.runtime.active import Setup
from adapters.runtime.adapters_config import ModelAdaptersConfig
from adapters.runtime.entry import Entry
from adapters.runtime.hooks import (
    HookedEmbedding,
    HookedLayer,
    HookedPrompt,
    HookedResidual,
    HookedSite,
    Pin,
    hooked,
)
from adapters.runtime.programs import Program, Programs, fusion_key, fusion_names
from adapters.runtime.replication import Replication
from adapters.sites.resolve import Site, resolve, spec_for


class Part:
    """One stored module of an adapter or fusion: at a site, or shared by the sites of an adapter (`live` is None).

    Attributes:
        path: Module path, relative to the base model, of the dictionary that holds it.
        name: Its name in there.
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
        live: HookedSite[Any] | None = None,
    ) -> None:
        self.base, self.path, self.name = base, path, name
        self.location, self.layer, self.live = location, layer, live
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


class Engine:
    """The adapters of one model.

    Attributes:
        root: The model that the user calls.
        base: The transformer inside it; the same object for headless models.
        interface: The user's own description of the model, if there is one.
        config: Names, configs and the active set-up: `model.adapters_config`.
        spec, names: Where its places are, and what files call them.
        live: The places where adapters can act; `sites` finds them by their site.
        masked: Those whose adapters need the attention mask.
        programs: What the set-ups mean that were asked for.
        shared: Name of shared parameters -> the adapters that share them.
        merged: Adapter -> (site, weight, bias) of the linear maps and norms it was folded into, as they were before;
            None where they are not known.
        gated: Adapters outside of `masked` that need the attention mask too.
        trained: The adapters and fusions that train since `train_adapter` was called; None before.
    """

    def __init__(
        self,
        root: nn.Module,
        base: nn.Module,
        config: ModelAdaptersConfig,
        interface: AdapterModelInterface | None = None,
    ) -> None:
        self.root, self.base, self.config, self.interface = root, base, config, interface
        self.spec = spec_for(base) if interface is None else interface.spec(base)
        self.names = names_of(base.config.model_type if interface is None else "")  # type: ignore[union-attr, arg-type]
        self.programs = Programs(self)
        self.live = hooked(resolve(base, self.spec, self.names.location), self.programs)
        self.sites: dict[Site, HookedSite[Any]] = {live.site: live for live in self.live}
        self.masked: list[Any] = [live for live in self.live if isinstance(live, (HookedLayer, HookedPrompt))]
        self._parts: dict[str, list[Part]] = {}
        self._fusions: dict[str, list[Part]] = {}
        self.shared: dict[str, list[str]] = {}
        self.merged: dict[str, list[tuple[HookedSite[Any], Tensor, Tensor | None]] | None] = {}
        self.trained: frozenset[str] | None = None
        self.gated: set[str] = set()
        self.edits, self._seen_edits = tree.Edits(), 0
        self.entry = Entry(self)
        self.replication = Replication(self)
        self.programs.static = self.programs.of(None)

    @property
    def parts(self) -> dict[str, list[Part]]:
        """Adapter name -> its modules."""
        if self.edits.count != self._seen_edits:
            self.reread()
        return self._parts

    @property
    def fusions(self) -> dict[str, list[Part]]:
        """Fusion name -> its layers."""
        if self.edits.count != self._seen_edits:
            self.reread()
        return self._fusions

    # ----------------------------------------------------------------------------------------------- adapters

    def add(self, name: str, config: AdapterConfig, overwrite: bool = False, new: bool = False) -> None:
        """Build the adapter `name`, in place of one of this name if `overwrite` is set.

        With `new` it is refused what only adapters in files may be. Leaves the model as it was if anything fails. A
        set-up that names a replaced adapter stays active.
        """
        self.insert(name, config, self.build(name, config, new), overwrite)

    def insert(self, name: str, config: AdapterConfig, parts: list[Part], overwrite: bool = False) -> None:
        """Put what `build` made into the model, in place of an adapter of this name if `overwrite` is set."""
        config = self._flagged(config)
        with self.programs.lock:
            if not overwrite or name not in self.parts:
                self.config.add(name, config)
                self._parts[name] = parts
                self._put_in(name, parts)
                self._changed([name])
                return
            old, old_config = self.parts[name], self.config.get(name)
            assert old_config is not None
            self._check_fusions(name, parts)
            self._replace(name, parts, config)
            try:
                self._changed([name])
            except Exception:
                self._replace(name, old, old_config)
                self._changed([name])
                raise

    def build(self, name: str, config: AdapterConfig, new: bool = False) -> list[Part]:
        """The modules of an adapter, not yet in the model. Raises as `add`."""
        parts: list[Part] = []
        try:
            for member in members_of(self._flagged(config)):
                if new:
                    self._check_new(member)
                parts += self._build_member(name, member)
        except (ConfigError, UnsupportedError) as error:
            if str(error).startswith("Adapter "):
                raise
            kind = UnsupportedError if isinstance(error, UnsupportedError) else ConfigError
            raise kind(f"Adapter {name!r}: {error}") from error
        taken: set[tuple[str, int]] = set()
        for part in parts:
            if (key := (part.path, id(part.live))) in taken:
                raise ConfigError(
                    f"Adapter {name!r}: two configs of the union put an adapter at {part.path}. Let their places, "
                    "flags or leave_out keep them apart."
                )
            taken.add(key)
        return parts

    def _flagged(self, config: AdapterConfig) -> AdapterConfig:
        """`config` with flags in place of `places`, where they can say the same: other readers know only them."""
        members = members_of(config)
        if not any(member.get("places") for member in members):
            return config
        changed = []
        for member in members:
            for method in METHODS:
                if method.handles(member) and method.placeable:
                    member = flagged(method, member, list(self.sites), self._choose(method, member))
            changed.append(member)
        return changed[0] if not isinstance(config, ConfigUnion) else ConfigUnion(*changed)

    def _check_new(self, config: AdapterConfig) -> None:
        check_layers(config, list(self.sites))
        for method in (method for method in METHODS if method.handles(config)):
            for site in self._choose(method, config):
                method.check_new(config, site)

    def _choose(self, method: type[AdapterModule[Any]], config: AdapterConfig) -> list[Site]:
        """The sites at which a config puts adapters of a method."""
        model = f"this model of type {self.base.config.model_type!r}"  # type: ignore[union-attr]
        return choose(method, config, list(self.sites), self.spec.refusals(), model)

    def supports(self, config: AdapterConfig) -> bool:
        """Whether a method handles `config`, no union, and the model has what the method needs where it is to act."""
        methods = [method for method in METHODS if method.handles(config)]
        try:
            return bool(methods) and all(self._choose(method, config) for method in methods)
        except UnsupportedError:
            return False
        except ConfigError:  # the model has such places, only not where this config names them
            return True

    def _build_member(self, name: str, member: AdapterConfig) -> Iterator[Part]:
        methods = [method for method in METHODS if method.handles(member)]
        if not methods:
            raise UnsupportedError(
                f"Adapter {name!r}: no method handles {type(member).__name__} with architecture "
                f"{getattr(member, 'architecture', None)!r}. {choices(None, [m.__name__ for m in METHODS])}"
            )
        for method in methods:
            yield from self._build_method(name, method, member)

    def _build_method(self, name: str, method: type[AdapterModule[Any]], config: AdapterConfig) -> list[Part]:
        chosen = [self.sites[site] for site in self._choose(method, config)]
        for live in chosen:
            live.check()
        with init_seed(config):
            shared = method.shared(config, [live.site for live in chosen])
        parts: list[Part] = []
        if shared is not None:
            shared = self._placed(shared, None, config)
            parts.append(Part(self.base, method.shared_container, name, shared, method.shared_location, -1))
        for live in chosen:
            with init_seed(config):
                module = method(config, live.site, name)
            module.bind(shared)
            path = ".".join(filter(None, (live.site.path, method.container)))
            placed = self._placed(module, live.site, config)
            parts.append(Part(self.base, path, name, placed, live.site.location, live.site.layer, live))
        return parts

    def _placed(self, module: nn.Module, site: Site | None, config: Any) -> Any:
        """`module` on the device and in the dtype of its site; without values it stays on `meta`."""
        like, first = self.like(site), next(module.parameters(), None)
        dtype = getattr(torch, config.dtype) if getattr(config, "dtype", None) else like.dtype
        if first is None or not first.is_meta:
            module.to(device=like.device, dtype=dtype)
        elif first.dtype is not dtype:
            module.to(dtype=dtype)
        return module.train(self.base.training)

    def like(self, site: Site | None) -> Tensor:
        """A tensor on the device of adapters at `site`, or of what its sites share (None), and of their usual dtype."""
        modules = [getattr(site, n, None) for n in ("module", "norm", "x_module", "stack")] if site else []
        owners = [m for m in (*modules, self.base) if m is not None]
        tensors = (p for m in owners for p in m.parameters())
        like = next((p for p in tensors if p.is_floating_point()), torch.empty(0))
        if like.is_meta and (device := execution_device(owners)) is not None:
            return torch.empty(0, dtype=like.dtype, device=device)
        return like

    def delete(self, name: str) -> None:
        """Remove the adapter `name` and every trace of it. Calls that run keep it to their end."""
        with self.programs.lock:
            if (setup := self.config.active_setup) is not None and name in setup.flatten():
                self.activate(None)
            for fusion in [f for f in self.fusions if name in (self.config.get_fusion(f)[1] or ())]:
                self.delete_fusion(fusion)
            parts = self.parts.pop(name)
            self._take_out(name, parts)
            self.config.delete(name)
            for group in [group for group, members in self.shared.items() if name in members]:
                self.shared[group].remove(name)
                if not self.shared[group]:
                    del self.shared[group]
            self._changed([name])

    # ----------------------------------------------------------------------------------------------- fusion

    def add_fusion(self, names: list[str], config: Any, fusion_name: str | None, overwrite: bool = False) -> str:
        """Build a fusion layer wherever all adapters have a bottleneck; `overwrite` replaces an old one."""
        for name in names:
            self.require(name)
        key = fusion_name or ",".join(names)
        with self.programs.lock:
            lives = self._fusable(names)
            if not lives:
                raise ConfigError(
                    f"Fusion {key!r}: there is no place where all of {names} have a bottleneck adapter. AdapterFusion "
                    "combines bottleneck adapters at places that all of them adapt."
                )
            found = AdapterFusionConfig.load(config)
            dropout = float(getattr(self.base.config, "attention_probs_dropout_prob", 0.0) or 0.0)
            parts = []
            for live in lives:
                layer = self._placed(AdapterFusion(found, live.site, key, dropout), live.site, found)
                path = f"{live.site.path}.adapter_fusion_layer"
                parts.append(Part(self.base, path, key, layer, live.site.location, live.site.layer, live))
            old = self.fusions.get(key) if overwrite else None
            if old is not None:
                self.config.delete_fusion(key)
            self.config.add_fusion(names, config, fusion_name)
            if old is not None:
                self._take_out(key, old)
            self.fusions[key] = parts
            self._put_in(key, parts)
            self._changed([fusion_key(key)])
        return key

    def _fusable(self, names: Iterable[str]) -> list[HookedSite[Any]]:
        """The places where all of these adapters have a bottleneck."""
        there = [{part.live for part in self.parts[name] if isinstance(part.module, Bottleneck)} for name in names]
        return [live for live in self.live if isinstance(live, HookedResidual) and all(live in one for one in there)]

    def _check_fusions(self, name: str, parts: list[Part]) -> None:
        """Raise ConfigError if a fusion of the adapter `name` needs a place that its new modules do not have."""
        there = {part.live for part in parts if isinstance(part.module, Bottleneck)}
        for fusion, layers in self.fusions.items():
            if name in (self.config.get_fusion(fusion)[1] or ()) and not {layer.live for layer in layers} <= there:
                raise ConfigError(
                    f"Adapter {name!r} takes part in the fusion {fusion!r}, which needs a bottleneck at places where "
                    "the new config has none. Call delete_adapter_fusion first, or choose another name."
                )

    def delete_fusion(self, name: str) -> None:
        """Remove the fusion layers called `name`."""
        with self.programs.lock:
            if (setup := self.config.active_setup) is not None and name in fusion_names(setup):
                self.activate(None)
            parts = self.fusions.pop(name)
            self._take_out(name, parts)
            self.config.delete_fusion(name)
            self._changed([fusion_key(name)])

    # ----------------------------------------------------------------------------------------------- set-ups

    def require(self, name: str | None) -> None:
        """Raise AdapterNameError unless the adapter `name` exists."""
        if name not in self.parts:
            raise AdapterNameError(
                f"There is no adapter {name!r} in this {type(self.root).__name__}. {choices(name, self.parts)}"
            )

    def require_fusion(self, name: str) -> None:
        """Raise AdapterNameError unless the fusion `name` exists."""
        if name not in self.fusions:
            raise AdapterNameError(
                f"There is no fusion {name!r} in this {type(self.root).__name__}. {choices(name, self.fusions)}"
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
        self.programs.set_static(block, skipped)
        self.config.active_setup, self.config.skip_layers = block, skipped or None

    def current(self) -> Setup:
        """The set-up in force on this thread."""
        return self.programs.in_force().setup

    def set_output_embeddings(self, modules: Iterable[nn.Module]) -> None:
        """Tell where invertible adapters are undone."""
        outputs = tuple(modules)
        with self.programs.lock:
            for live in (live for live in self.live if isinstance(live, HookedEmbedding)):
                for tap in list(live.handles):
                    live.unhook(tap)
                live.outputs = outputs
                self._changed(live.names)

    def fusions_of(self, block: AdapterCompositionBlock | None) -> list[str]:
        """Names of the fusions in `block`. Raises CompositionError if it has none, or one that was not added."""
        names = sorted(fusion_names(block)) if block is not None else []
        missing = [name for name in names if name not in self.fusions]
        if not names or missing:
            problem = f"there is no fusion {missing[0]!r}" if missing else "the set-up holds no Fuse block"
            raise CompositionError(
                f"{block!r}: {problem}. Add fusion layers with add_adapter_fusion first. "
                f"{choices(missing, self.fusions)}"
            )
        return names

    def is_merged(self, name: str, part: Part) -> bool:
        """Whether a module of an adapter acts through the base weights, and must not act beside them."""
        return name in self.merged and isinstance(part.module, AffineAdapter)

    def act_first_only(self, name: str) -> None:
        """Let an adapter do in a `Stack` what it did in version 1 of the library: see `AdapterModule.chains`."""
        for part in self.parts[name]:
            if part.live is not None and not part.module.chained_before:
                part.module.chains = False
        self._changed([name])

    def is_chained(self, name: str) -> bool:
        """Whether all of an adapter acts where others come before it in a `Stack`."""
        return all(part.module.chains for part in self.parts[name] if part.live is not None)

    def eject(self, name: str) -> None:
        """Put what the reparametrisation of a prefix makes in its place, in the adapter's weights and its config."""
        self.require(name)
        config = self.config.get(name)
        assert config is not None
        adapters = [part.module for part in self.parts[name] if part.live is not None]
        ejected_any = [module.eject() for module in adapters]
        if True not in ejected_any:
            raise ConfigError(f"Adapter {name!r} has no prefix tuning, so there is nothing to eject.")
        self.config.delete(name)
        self.config.add(name, ejected(config))
        self._changed([name])

    # ----------------------------------------------------------------------------------------- the module tree

    def _replace(self, name: str, parts: list[Part], config: AdapterConfig) -> None:
        self._take_out(name, self._parts[name])
        self._parts[name] = parts
        self.config.delete(name)
        self.config.add(name, config)
        self._put_in(name, parts)

    def _put_in(self, name: str, parts: Iterable[Part]) -> None:
        """Put new modules into the tree; they train unless `train_adapter` has named others."""
        for part in parts:
            tree.container(self.base, part.path, self.edits)._modules[name] = part.last_seen
            part.placed = True
            if self.trained is not None and name not in self.trained:
                part.last_seen.requires_grad_(False)
            if part.live is not None:
                part.live.names.add(name)
                if isinstance(part.last_seen, AdapterModule) and "mask" in part.last_seen.needs:
                    self.gated.add(name)

    def _take_out(self, name: str, parts: Iterable[Part]) -> None:
        self.gated.discard(name)
        for part in parts:
            tree.discard(self.base, part.path, name)
            part.placed = False
            if part.live is not None:
                part.live.names.discard(name)

    def _changed(self, names: Iterable[str]) -> None:
        """Bring programs and hooks up to date after adapters or fusions have changed."""
        if self._parts:
            self.entry.attach()
        else:
            self.replication.detach()
        self.entry.follow_stacks()
        self.programs.changed(names)
        if not self._parts:
            self.entry.detach()

    def is_edited(self, program: Program) -> bool:
        """Whether somebody has edited the module tree by hand where it concerns a program."""
        return self.edits.count != self._seen_edits or not program.holds()

    def reread(self) -> None:
        """Let what stands in the module tree act from now on, whoever put it there.

        Raises:
            UnsupportedError: something stands in place of an adapter that is none.
        """
        with self.programs.lock:
            changed: set[str] = set()
            for groups, key in ((self._parts, str), (self._fusions, fusion_key)):
                for name, parts in groups.items():
                    for part in list(parts):
                        found = part.module if part.is_in_tree() else None
                        if found is part.last_seen:
                            continue
                        if found is not None and part.live is not None and key is str:
                            self._check_adapter(part, found)
                        changed.add(key(name))
                        if found is None:
                            parts.remove(part)
                            if part.live is not None:
                                part.live.names.discard(name)
                        else:
                            part.last_seen = found
            self._seen_edits = self.edits.count
            if (find_outputs := getattr(self.root, "_on_heads_changed", None)) is not None:
                find_outputs()
            self.programs.changed(changed, replaced=True)

    @staticmethod
    def _check_adapter(part: Part, found: nn.Module) -> None:
        if not isinstance(found, AdapterModule) or not isinstance(found.site, type(part.live.site)):  # type: ignore[union-attr]
            raise UnsupportedError(
                f"{part.path}.{part.name} is a {type(found).__name__}, which cannot act in place of an adapter there. "
                f"Put a {type(part.last_seen).__name__} of the same kind of place in, or delete the entry."
            )

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

    def checkpointed(self, function: Any) -> Any:
        """`function` (torch's checkpoint), made to run its recomputation under the set-up of the forward call."""
        return partial(_checkpoint, self, function)


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


def execution_device(modules: Iterable[nn.Module]) -> Any:
    """Where accelerate computes modules whose weights it keeps elsewhere; None if it has not hooked them."""
    for owner in modules:
        for module in owner.modules():
            device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
            if device is not None:
                return torch.device(device)
    return None


def ejected(config: AdapterConfig) -> AdapterConfig:
    """The config of an adapter after `eject`, member by member."""
    if isinstance(config, ConfigUnion):
        return ConfigUnion(*map(ejected, config.configs))
    for method in METHODS:
        if method.handles(config):
            config = method.ejected(config)
    return config
