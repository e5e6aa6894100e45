"""How do a config's adapters come about? Their modules at the sites of a model, not yet in its module tree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adapters.errors import ConfigError, UnsupportedError, choices
from adapters.methods import METHODS
from adapters.methods.base import AdapterModule, init_seed
from adapters.methods.config import AdapterConfig, ConfigUnion, members_of
from adapters.methods.experts import new_adapter
from adapters.methods.places import check_layers, choose, flagged
from adapters.runtime.empty import Empty
from adapters.runtime.hooks import HookedSite
from adapters.runtime.parts import Part
from adapters.sites.site import Site
from adapters.sites.spec import ModelSpec

LARGEST, MOST_PARAMETERS = 10, 100_000_000
"""A new adapter may have this many times the parameters of its model, and these in any case."""


class Builder:
    """Builds modules for the sites of one base model."""

    def __init__(self, base: nn.Module, spec: ModelSpec, sites: Mapping[Site, HookedSite[Any]]) -> None:
        self.base, self.spec, self.sites = base, spec, sites

    def build(self, name: str, config: AdapterConfig, new: bool = False) -> list[Part]:
        """The modules of the adapter `name`. With `new` it is refused what only adapters in files may be.

        Raises:
            ConfigError: the config selects no place, or means nothing there.
            UnsupportedError: the model cannot carry the method.
        """
        parts: list[Part] = []
        try:
            for member in members_of(self.flagged(config)):
                if new:
                    self._check_new(member)
                    self._check_size(member)
                parts += self._build_member(name, member)
        except (ConfigError, UnsupportedError) as error:
            if str(error).startswith("Adapter "):
                raise
            raise type(error)(f"Adapter {name!r}: {error}") from error
        parts = self._together(name, parts)
        taken: set[tuple[str, int]] = set()
        for part in parts:
            if (key := (part.path, id(part.hooked))) in taken:
                raise ConfigError(
                    f"Adapter {name!r}: two configs of the union put an adapter at {part.path}. Let their places, "
                    "flags or leave_out keep them apart."
                )
            taken.add(key)
        return parts

    def flagged(self, config: AdapterConfig) -> AdapterConfig:
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

    def _check_size(self, config: AdapterConfig) -> None:
        """Raise ConfigError for an adapter far larger than the model, before memory is asked for.

        Only configs with an unusual number are looked at, since building takes time.
        """
        unusual = {name: value for name, value in vars(config).items() if _is_unusual(value)}
        if not unusual:
            return
        most, count = max(LARGEST * sum(p.numel() for p in self.base.parameters()), MOST_PARAMETERS), 0
        try:
            with Empty():
                for method in (method for method in METHODS if method.handles(config)):
                    for part in self._build_method("", method, config):
                        count += sum(p.numel() for p in part.module.parameters())
        except (TypeError, RuntimeError, OverflowError) as error:
            raise ConfigError(f"No tensor can be as large as {unusual} asks for. Give a smaller size.") from error
        if count > most:
            raise ConfigError(
                f"{unusual} makes {count:,} parameters, more than {LARGEST} times those of the model. Give a smaller "
                "size."
            )

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
        with init_seed(config):
            shared = method.shared(config, [hooked.site for hooked in chosen])
        parts: list[Part] = []
        if shared is not None:
            shared = self.placed(shared, None, config)
            parts.append(Part(self.base, method.shared_container, name, shared, method.shared_location, -1))
        for hooked in chosen:
            site = hooked.site
            with init_seed(config):
                module = new_adapter(method, config, site, name)
            module.bind(shared)
            path = ".".join(filter(None, (site.path, method.container)))
            placed = self.placed(module, site, config)
            parts.append(Part(self.base, path, name, placed, site.location, site.layer, hooked, method.tap))
        return parts

    def _together(self, name: str, parts: list[Part]) -> list[Part]:
        """`parts` with one list of modules wherever several configs of a union keep what their sites share."""
        shared: dict[str, list[Part]] = {}
        for part in parts:
            if part.hooked is None:
                shared.setdefault(part.path, []).append(part)
        several = {path: found for path, found in shared.items() if len(found) > 1}
        lists = []
        for path, found in several.items():
            modules = nn.ModuleList(part.module for part in found).train(self.base.training)
            lists.append(Part(self.base, path, name, modules, found[0].location, -1))
        return [*lists, *(part for part in parts if part.hooked is not None or part.path not in several)]

    def placed(self, module: nn.Module, site: Site | None, config: Any) -> Any:
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


def execution_device(modules: Iterable[nn.Module]) -> Any:
    """Where accelerate computes modules whose weights it keeps elsewhere; None if it has not hooked them."""
    for owner in modules:
        for module in owner.modules():
            device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
            if device is not None:
                return torch.device(device)
    return None


def _is_unusual(value: object) -> bool:
    """Whether a number in a config, or in a mapping there, may stand for an adapter larger than people mean."""
    if isinstance(value, Mapping):
        return any(map(_is_unusual, value.values()))
    return isinstance(value, (int, float)) and not isinstance(value, bool) and (value > 10_000 or 0 < value < 1e-4)
