"""Parameters that several adapters have in common: one tensor in memory, a copy in every file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from adapters.errors import AdapterNameError, choices
from adapters.methods.config import ConfigTypeError, MultiTaskConfig
from adapters.runtime.engine import Engine


def share(engine: Engine, names: Sequence[str], name: str, reference: str | None) -> None:
    """Let the adapters `names` use the shareable parameters of `reference` (by default the first of them)."""
    for adapter in names:
        engine.require(adapter)
        if not isinstance(engine.config.get(adapter), MultiTaskConfig):
            raise ConfigTypeError(
                f"Adapter {adapter!r} is of type {type(engine.config.get(adapter)).__name__}, which has no parameters "
                "that tasks can share. Use MTLLoRAConfig ('mtl_lora')."
            )
    if name in engine.shared:
        raise AdapterNameError(f"There are shared parameters {name!r} already. Choose another name.")
    source = _modules(engine, reference or names[0])
    for adapter in names:
        for path, module in _modules(engine, adapter).items():
            for parameter in module.shareable:
                module.register_parameter(parameter, getattr(source[path], parameter))
    engine.shared[name] = list(names)


def unshare(engine: Engine, name: str) -> None:
    """Give every adapter of the shared parameters `name` a copy of its own."""
    if name not in engine.shared:
        raise AdapterNameError(f"There are no shared parameters {name!r}. {choices(name, engine.shared)}")
    for adapter in engine.shared.pop(name)[1:]:
        for module in _modules(engine, adapter).values():
            for parameter in module.shareable:
                old = getattr(module, parameter)
                module.register_parameter(parameter, nn.Parameter(old.detach().clone(), old.requires_grad))


def _modules(engine: Engine, name: str) -> dict[str, Any]:
    return {part.path: part.module for part in engine.parts[name] if getattr(part.module, "shareable", ())}
