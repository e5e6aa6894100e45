"""What trains: only what a set-up names. Nothing else of a model ever gets a gradient."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from adapters.methods.base import fixed_parameters
from adapters.runtime.engine import Engine, Part


def freeze_base(engine: Engine, freeze: bool = True) -> None:
    """Freeze or unfreeze the base model without what was added to it."""
    added = {id(p) for part in _all_parts(engine) for p in part.module.parameters()}
    for parameter in engine.base.parameters():
        if id(parameter) not in added:
            parameter.requires_grad_(not freeze)


def train_adapters(engine: Engine, names: Iterable[str]) -> None:
    """Freeze everything below the base model but the adapters `names`."""
    names = list(names)
    engine.base.requires_grad_(False)
    engine.trained = frozenset(names)
    for name in names:
        for part in engine.parts[name]:
            _unfreeze(part.module)


def train_fusions(engine: Engine, fusions: Iterable[str], adapters: Iterable[str] = ()) -> None:
    """Freeze everything below the base model but the given fusions (and adapters)."""
    train_adapters(engine, adapters)
    for fusion in fusions:
        for part in engine.fusions[fusion]:
            part.module.requires_grad_(True)


def _unfreeze(module: nn.Module) -> None:
    """Let `module` train, but for the parameters that its method keeps fixed."""
    module.requires_grad_(True)
    for parameter in fixed_parameters(module):
        parameter.requires_grad_(False)


def _all_parts(engine: Engine) -> Iterable[Part]:
    for parts in (*engine.parts.values(), *engine.fusions.values()):
        yield from parts
