"""What trains: only what a set-up names. Nothing else of a model ever gets a gradient."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from adapters.methods.base import fixed_parameters
from adapters.runtime.engine import Engine
from adapters.runtime.owned import Owned
from adapters.runtime.parts import parameters_of


def freeze_base(engine: Engine, freeze: bool = True) -> None:
    """Freeze or unfreeze the base model without what was added to it."""
    added = set(map(id, parameters_of(engine.added)))
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


def train_owned(engine: Engine, owned: Owned, names: Iterable[str], adapters: Iterable[str] = ()) -> None:
    """Freeze everything below the base model but what blocks own under `names`, and the given adapters."""
    names = list(names)
    train_adapters(engine, adapters)
    assert engine.trained is not None
    engine.trained |= {owned.key(name) for name in names}
    for name in names:
        for part in owned[name]:
            part.module.requires_grad_(True)


def _unfreeze(module: nn.Module) -> None:
    """Let `module` train, but for the parameters that its method keeps fixed."""
    module.requires_grad_(True)
    for parameter in fixed_parameters(module):
        parameter.requires_grad_(False)
