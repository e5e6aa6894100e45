"""What trains: only what a set-up names. Nothing else of a model ever gets a gradient."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from adapters.methods.base import fixed_parameters
from adapters.runtime.engine import Engine
from adapters.runtime.owned import Owned
from adapters.runtime.parts import parameters_of

BASE_MODELS = frozenset(
    name
    for names in MODEL_MAPPING_NAMES.values()
    for name in ((names,) if isinstance(names, str) else names)
    if not re.search("For[A-Z]", name)
)
"""Classes that `AutoModel` of transformers opens, but for those with heads."""


def freeze_base(engine: Engine, freeze: bool = True) -> None:
    """Freeze or unfreeze the base model without what was added to it."""
    added = set(map(id, parameters_of(engine.added)))
    for parameter in _whole(engine).parameters():
        if id(parameter) not in added:
            parameter.requires_grad_(not freeze)


def train_adapters(engine: Engine, names: Iterable[str]) -> None:
    """Freeze everything below the base model but the adapters `names`."""
    names = list(names)
    _whole(engine).requires_grad_(False)
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


def _whole(engine: Engine) -> nn.Module:
    """The base model with all that is no head: some have their layers in a part of their own, which `base_model` is."""
    wholes = (module for module in engine.root.modules() if type(module).__name__ in BASE_MODELS)
    return next((whole for whole in wholes if any(part is engine.base for part in whole.modules())), engine.base)


def _unfreeze(module: nn.Module) -> None:
    """Let `module` train, but for the parameters that its method keeps fixed."""
    module.requires_grad_(True)
    for parameter in fixed_parameters(module):
        parameter.requires_grad_(False)
