"""The adapters of one model: builds them at their sites, activates set-ups, and follows each forward call.

One engine belongs to one base model. Costs of adding, loading, activating and deleting depend on the adapter's own
sites, never on how many other adapters there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adapters.composition.blocks import AdapterCompositionBlock, Fuse, Stack, parse_composition
from adapters.composition.fusion import AdapterFusion
from adapters.composition.fusion_config import AdapterFusionConfig
from adapters.errors import AdapterNameError, CompositionError, ConfigError, UnsupportedError, choices
from adapters.methods import METHODS
from adapters.methods.base import AdapterModule, init_seed
from adapters.methods.bottleneck import Bottleneck
from adapters.methods.config import AdapterConfig, members_of
from adapters.methods.prefix_tuning import PrefixEmbedding, PrefixTuning, flattened
from adapters.runtime.active import ENGINES, IN_USE, STATIC, AdapterSetup, Setup, setup_key
from adapters.runtime.adapters_config import ModelAdaptersConfig
from adapters.runtime.entry import Entry
from adapters.runtime.hooks import AdapterDict, Live, LiveEmbedding, LiveLayer, LivePrompt, LiveResidual, enliven
from adapters.runtime.replication import Replication
from adapters.sites.interface import AdapterModelInterface
from adapters.sites.resolve import Site, resolve, spec_for

MOST_BLOCKS = 32
"""Blocks of several adapters whose plans are kept; those of single adapters all are."""


@dataclass(eq=False)
class Part:
    """One stored module of an adapter: at a site, or shared by its sites (`live` is None).

    `path` is the module path, relative to the base model, of the dictionary that holds it.
    """

    path: str
    module: nn.Module
    location: str
    layer: int
    live: Live[Any] | None = None


class Engine:
    """The adapters of one model.

    Attributes:
        root: The model that the user calls.
        masked: Sites whose adapters need the attention mask.
        base: The transformer inside it; the same object for headless models.
        interface: The user's own description of the model, if there is one.
        config: Names, configs and the active set-up: `model.adapters_config`.
        parts: Adapter name -> its modules.
        shared: Name of shared parameters -> the adapters that share them.
        fusions: Fusion name -> its layers.
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
        self.live = list(enliven(resolve(base, self.spec)))
        self.masked = [live for live in self.live if isinstance(live, (LiveLayer, LivePrompt))]
        self.parts: dict[str, list[Part]] = {}
        self.fusions: dict[str, list[Part]] = {}
        self.shared: dict[str, list[str]] = {}
        self.merged: dict[str, list[tuple[Live[Any], Tensor, Tensor | None]] | None] = {}
        self.entry = Entry(self)
        self.replication = Replication(self)
        self._touched: set[Live[Any]] = set()
        self._blocks: dict[str, set[Live[Any]]] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy hears of contexts too."""
        self.__dict__.update(state)
        if self.parts:
            ENGINES.add(self)

    # ----------------------------------------------------------------------------------------------- adapters

    def add(self, name: str, config: AdapterConfig, overwrite: bool = False) -> None:
        """Build the adapter `name`, in place of one of this name if `overwrite` is set.

        Leaves the model as it was if anything fails.
        """
        self.insert(name, config, self.build(name, config), overwrite)

    def build(self, name: str, config: AdapterConfig) -> list[Part]:
        """The modules of an adapter, not yet in the model."""
        parts: list[Part] = []
        try:
            for member in members_of(config):
                parts += self._build(name, member, config)
        except ConfigError as error:
            if str(error).startswith("Adapter "):
                raise
            raise ConfigError(f"Adapter {name!r}: {error}") from error
        taken: set[tuple[str, int]] = set()
        for part in parts:
            if (key := (part.path, id(part.live))) in taken:
                raise ConfigError(
                    f"Adapter {name!r}: two configs of the union put an adapter at {part.path}. Let their flags or "
                    "leave_out keep them apart."
                )
            taken.add(key)
        return parts

    def insert(self, name: str, config: AdapterConfig, parts: list[Part], overwrite: bool = False) -> None:
        """Put what `build` made into the model, in place of an adapter of this name if `overwrite` is set."""
        if overwrite and name in self.parts:
            self.delete(name)
        self.config.add(name, config)
        self.parts[name] = parts
        for part in parts:
            self._container(part.path)[name] = part.module
            if part.live is not None:
                part.live.add(name, part.module)  # type: ignore[arg-type]
        self._refresh({part.live for part in parts if part.live is not None})

    def _build(self, name: str, member: AdapterConfig, config: AdapterConfig) -> Iterator[Part]:
        methods = [method for method in METHODS if method.handles(member)]
        if not methods:
            raise UnsupportedError(
                f"Adapter {name!r}: no method handles {type(member).__name__} with architecture "
                f"{getattr(member, 'architecture', None)!r}. {choices(None, [m.__name__ for m in METHODS])}"
            )
        for method in methods:
            yield from self._build_method(name, method, member)

    def _build_method(self, name: str, method: type[AdapterModule[Any]], config: AdapterConfig) -> list[Part]:
        kind = [live for live in self.live if isinstance(live.site, method.site_type)]
        left_out = set(getattr(config, "leave_out", ()))
        chosen = [live for live in kind if method.acts_at(config, live.site) and live.site.layer not in left_out]
        model_type = self.base.config.model_type  # type: ignore[union-attr]
        if not kind:
            raise UnsupportedError(
                f"Adapter {name!r}: {method.__name__} cannot act in models of type {model_type!r}, which have no place "
                f"of the kind {method.site_type.__name__}. Choose another method for this model."
            )
        if not chosen:
            raise ConfigError(
                f"Adapter {name!r}: {type(config).__name__} selects no place in this model of type {model_type!r}. "
                f"Its places for {method.__name__}: {', '.join(sorted({live.site.location for live in kind}))}; "
                f"layers {sorted({live.site.layer for live in kind})}. Check flags, layers and leave_out."
            )
        for live in chosen:
            live.check()
        with init_seed(config):
            shared = method.shared(config, [live.site for live in chosen])
        parts: list[Part] = []
        if shared is not None:
            location = "shared" if method.shared_container == "shared_parameters" else ""
            parts.append(Part(method.shared_container, self._placed(shared, None, config), location, -1))
        for live in chosen:
            with init_seed(config):
                module = method(config, live.site, name)
            module.bind(shared)
            path = ".".join(filter(None, (live.site.path, method.container)))
            module = self._placed(module, live.site, config)  # type: ignore[assignment]
            parts.append(Part(path, module, live.site.location, live.site.layer, live))
        return parts

    def _placed(self, module: nn.Module, site: Site | None, config: Any) -> nn.Module:
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
        tensors = (p for m in (*modules, self.base) if m is not None for p in m.parameters())
        return next((p for p in tensors if p.is_floating_point()), torch.empty(0))

    def delete(self, name: str) -> None:
        """Remove the adapter `name` and every trace of it."""
        if (setup := self.config.active_setup) is not None and name in setup.flatten():
            self.activate(None)
        for fusion in [f for f in self.fusions if name in (self.config.get_fusion(f)[1] or ())]:
            self.delete_fusion(fusion)
        parts = self.parts.pop(name)
        for part in parts:
            if part.live is not None:
                part.live.remove(name)
            self._discard(part.path, name)
        self.config.delete(name)
        self._refresh({part.live for part in parts if part.live is not None})

    # ----------------------------------------------------------------------------------------------- fusion

    def add_fusion(self, names: list[str], config: Any, fusion_name: str | None, overwrite: bool = False) -> str:
        """Build a fusion layer wherever all adapters have a bottleneck; `overwrite` replaces an old one."""
        for name in names:
            self.require(name)
        lives = [
            live
            for live in self.live
            if isinstance(live, LiveResidual) and all(isinstance(live.modules.get(n), Bottleneck) for n in names)
        ]
        key = fusion_name or ",".join(names)
        if not lives:
            raise ConfigError(
                f"Fusion {key!r}: there is no place where all of {names} have a bottleneck adapter. AdapterFusion "
                "combines bottleneck adapters at places that all of them adapt."
            )
        AdapterFusionConfig.load(config)
        if overwrite and key in self.fusions:
            self.delete_fusion(key)
        config, _ = self.config.add_fusion(names, config, fusion_name)
        dropout = float(getattr(self.base.config, "attention_probs_dropout_prob", 0.0) or 0.0)
        self.fusions[key] = []
        for live in lives:
            path = f"{live.site.path}.adapter_fusion_layer"
            layer = self._placed(AdapterFusion(config, live.site, key, dropout), live.site, config)
            self.fusions[key].append(Part(path, layer, live.site.location, live.site.layer, live))
            self._container(path)[key] = layer
            live.fusions[key] = layer  # type: ignore[assignment]
            live.plans.clear()
        self._refresh(set(lives))
        return key

    def delete_fusion(self, name: str) -> None:
        """Remove the fusion layers called `name`."""
        if (setup := self.config.active_setup) is not None and name in _fusion_names(setup):
            self.activate(None)
        for part in self.fusions.pop(name):
            assert part.live is not None
            part.live.fusions.pop(name)
            part.live.plans.clear()
            self._discard(part.path, name)
            self._refresh({part.live})
        self.config.delete_fusion(name)

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
        """Check a set-up: blocks that nest, adapters and fusions that exist."""
        parsed = parse_composition(setup)
        block: AdapterCompositionBlock | None = Stack(parsed) if isinstance(parsed, str) else parsed
        for name in sorted(block.flatten()) if block is not None else ():
            self.require(name)
        return block

    def activate(self, setup: Any, skip_layers: Iterable[int] | None = None) -> None:
        """Make `setup` the one that is active outside of every `AdapterSetup`."""
        block = self.parse(setup)
        skipped = sorted(set(skip_layers or ()))
        self.config.active_setup, self.config.skip_layers = block, skipped or None
        self.entry.static_key = setup_key(block)
        touched = self._lives_of(block)
        self._set_static(touched | self._touched)
        self._touched = {live for live in touched | self._touched if live.handles}
        self._ensure_context()
        self._set_level(STATIC, block, touched)
        self._keep_plans(self.entry.static_key, block, touched)

    def _set_static(self, lives: Iterable[Live[Any]]) -> None:
        block, skipped = self.config.active_setup, self.config.skip_layers or ()
        key = setup_key(block)
        for live in lives:
            if live.site.layer in skipped:
                live.set_static("none", None)
            else:
                live.set_static(key, block)

    def _lives_of(self, block: AdapterCompositionBlock | None) -> set[Live[Any]]:
        if block is None:
            return set()
        return {
            p.live for name in block.flatten() if name in self.parts for p in self.parts[name] if p.live is not None
        }

    def ensure(self, key: str, setup: Setup) -> None:
        """Prepare the set-up of a context, before the first call that needs it."""
        block = Stack(setup) if isinstance(setup, str) else setup
        lives = self._lives_of(block)
        for live in lives:
            live.activate(key, block)
            live.hook_all(key)
            self._touched.add(live)
        self._set_level(key, block, lives)
        self._keep_plans(key, block, lives)

    def _keep_plans(self, key: str, block: AdapterCompositionBlock | None, lives: set[Live[Any]]) -> None:
        """Keep the plans of the blocks that were used last: a server that mixes its batches meets ever new ones."""
        if block is None or len(block.flatten()) < 2:
            return
        self._blocks.pop(key, None)
        self._blocks[key] = lives
        old = [other for other in list(self._blocks) if other not in IN_USE and other != self.entry.static_key]
        for other in old[: max(0, len(self._blocks) - MOST_BLOCKS)]:
            for live in self._blocks.pop(other, ()):
                live.plans.pop(other, None)
            self.entry.watches.pop(other, None)
            self.replication.forget(other)

    def _set_level(self, key: str, block: AdapterCompositionBlock | None, lives: set[Live[Any]]) -> None:
        """Tell from which layer on the rows of parallel adapters differ."""
        layers = {live.site.layer for live in lives} - set(self.config.skip_layers or ())
        copies = 1 if block is None else block.parallel_channels
        self.replication.set_level(key, min(layers, default=None), copies)

    def current(self) -> Setup:
        """The set-up in force on this thread."""
        context = AdapterSetup.get_context()
        return context.adapter_setup if context else self.config.active_setup

    def _refresh(self, lives: set[Live[Any]]) -> None:
        """Bring plans up to date after the adapters at `lives` changed."""
        if self.parts:
            ENGINES.add(self)
            self.entry.attach()
        else:
            ENGINES.discard(self)
            self.entry.detach()
            self.replication.detach()
        self.entry.follow_stacks()
        self.entry.watches.clear()
        for live in lives:
            if live.modules:
                self._set_static([live])
            else:
                live.unhook()
        self._ensure_context()

    def _ensure_context(self) -> None:
        """Hook what the context needs that this thread is in."""
        if (context := AdapterSetup.get_context()) is not None:
            self.ensure(context.key, context.adapter_setup)

    def set_output_embeddings(self, modules: Iterable[nn.Module]) -> None:
        """Tell where invertible adapters are undone."""
        for live in self.live:
            if isinstance(live, LiveEmbedding):
                live.unhook()
                live.outputs = tuple(modules)
                live.plans.clear()
                self._set_static([live])

    def refresh_hooks(self, live: Live[Any]) -> None:
        """Hook `live` for what is active, after it was suspended."""
        self._set_static([live])

    def fusions_of(self, block: AdapterCompositionBlock | None) -> list[str]:
        """Names of the fusions in `block`. Raises CompositionError if it has none, or one that was not added."""
        names = sorted(_fusion_names(block)) if block is not None else []
        missing = [name for name in names if name not in self.fusions]
        if not names or missing:
            problem = f"there is no fusion {missing[0]!r}" if missing else "the set-up holds no Fuse block"
            raise CompositionError(
                f"{block!r}: {problem}. Add fusion layers with add_adapter_fusion first. "
                f"{choices(missing, self.fusions)}"
            )
        return names

    def eject(self, name: str) -> None:
        """Make the prefix of the adapter `name` flat, in its weights and in its config."""
        self.require(name)
        prefixes = [m for part in self.parts[name] for m in part.module.modules() if isinstance(m, PrefixEmbedding)]
        if not prefixes:
            raise ConfigError(f"Adapter {name!r} has no prefix tuning, so there is nothing to eject.")
        for prefix in prefixes:
            prefix.eject()
        shared = next(p.module for p in self.parts[name] if p.path == PrefixTuning.shared_container)
        for part in self.parts[name]:
            if isinstance(part.module, PrefixTuning):
                part.module.bind(shared)
        config = self.config.get(name)
        assert config is not None
        self.config.delete(name)
        self.config.add(name, flattened(config))

    # ----------------------------------------------------------------------------------------------- modules

    def _container(self, path: str) -> AdapterDict:
        """The dictionary at `path` below the base model, made if it is not there."""
        module: nn.Module = self.base
        *holders, last = path.split(".")
        for name in holders:
            if name not in module._modules:
                module.add_module(name, nn.Module())
            module = module._modules[name]  # type: ignore[assignment]
        if last not in module._modules:
            module.add_module(last, AdapterDict())
        found = module._modules[last]
        assert isinstance(found, AdapterDict)
        return found

    def _discard(self, path: str, name: str) -> None:
        """Remove `name` from the dictionary at `path`, and every holder that this leaves empty."""
        names = path.split(".")
        chain: list[nn.Module] = [self.base]
        for part in names:
            chain.append(chain[-1]._modules[part])  # type: ignore[arg-type]
        del chain[-1]._modules[name]
        for owner, child, part in reversed(list(zip(chain, chain[1:], names))):
            if child._modules or not (isinstance(child, AdapterDict) or type(child) is nn.Module):
                break
            del owner._modules[part]

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


def _fusion_names(block: AdapterCompositionBlock) -> set[str]:
    names = {block.name} if isinstance(block, Fuse) else set()
    return names.union(*(_fusion_names(child) for child in block if isinstance(child, AdapterCompositionBlock)))
