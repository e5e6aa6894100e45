"""Parameters that several adapters have in common: one tensor in memory, a copy in every file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adapters.errors import AdapterNameError, ConfigError, choices
from adapters.methods import METHODS
from adapters.methods.config import ConfigTypeError, MultiTaskConfig
from adapters.runtime.engine import Engine


def share(engine: Engine, names: Sequence[str], name: str, reference: str | None) -> None:
    """Let the adapters `names` use the shareable parameters of `reference` (by default the first of them).

    Raises:
        AdapterNameError: an adapter is not there, or `name` is taken.
        ConfigTypeError: an adapter has nothing to share.
        ConfigError: the adapters' parameters differ in place or shape. Nothing has changed then.
    """
    if not names:
        raise AdapterNameError("There are no adapters to share parameters. Name at least one.")
    source_name = names[0] if reference is None else reference
    sharing = {m.config_class: None for m in METHODS if issubclass(m.config_class, MultiTaskConfig)}
    for adapter in (*names, source_name):
        engine.require(adapter)
        if not isinstance(engine.config.get(adapter), MultiTaskConfig):
            raise ConfigTypeError(
                f"Adapter {adapter!r} is of type {type(engine.config.get(adapter)).__name__}, which has no parameters "
                f"that tasks can share. Allowed: {', '.join(kind.__name__ for kind in sharing)}."
            )
    if name in engine.shared:
        raise AdapterNameError(f"There are shared parameters {name!r} already. Choose another name.")
    source = _shareable(engine, source_name)
    for adapter in names:
        own = _shareable(engine, adapter)
        if {key: p.shape for key, (_, p) in own.items()} != {key: p.shape for key, (_, p) in source.items()}:
            raise ConfigError(
                f"Adapters {source_name!r} and {adapter!r} cannot share parameters: they differ in their places, r or "
                "n_up_projection."
            )
    for adapter in names:
        for (path, parameter), (module, _) in _shareable(engine, adapter).items():
            module.register_parameter(parameter, source[path, parameter][1])
    engine.shared[name] = list(names)


def unshare(engine: Engine, name: str) -> None:
    """Give every adapter of the shared parameters `name` but the first a copy of its own.

    Adapters that were deleted meanwhile are passed over.

    Raises:
        AdapterNameError: there are no shared parameters of this name.
    """
    if name not in engine.shared:
        raise AdapterNameError(f"There are no shared parameters {name!r}. {choices(name, engine.shared)}")
    for adapter in engine.shared.pop(name)[1:]:
        if adapter in engine.parts:
            for (_, parameter), (module, old) in _shareable(engine, adapter).items():
                module.register_parameter(parameter, nn.Parameter(old.detach().clone(), old.requires_grad))


@torch.no_grad()
def set_shared(engine: Engine, given: Mapping[str, nn.Module]) -> None:
    """Copy the tensors of a module per adapter into what all its places read.

    Raises:
        AdapterNameError: an adapter is not there, or has nothing that all its places read.
        ConfigError: the tensors have other names or shapes.
    """
    pairs: list[tuple[Tensor, Tensor]] = []
    for name, module in given.items():
        engine.require(name)
        shared = [part.module for part in engine.parts[name] if part.hooked is None]
        if not shared:
            raise AdapterNameError(f"Adapter {name!r} has no parameters that all its places share.")
        own, new = dict(shared[0].named_parameters()), dict(module.named_parameters())
        shapes = [{key: tuple(p.shape) for key, p in tensors.items()} for tensors in (own, new)]
        if shapes[0] != shapes[1]:
            raise ConfigError(f"Shared parameters of adapter {name!r} are {shapes[0]}, but {shapes[1]} was given.")
        pairs += [(own[key], new[key]) for key in own]
    for target, source in pairs:
        target.copy_(source)


def _shareable(engine: Engine, name: str) -> dict[tuple[str, str], tuple[nn.Module, nn.Parameter]]:
    """(path, name) -> module and parameter, of all that an adapter can share."""
    modules: list[tuple[str, Any]] = [(part.path, part.module) for part in engine.parts[name]]
    return {
        (path, parameter): (module, getattr(module, parameter))
        for path, module in modules
        for parameter in getattr(module, "shareable", ())
    }
