"""What trains: only what a set-up names. Nothing else of a model ever gets a gradient."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from adapters.runtime.engine import Engine, Part


def freeze_base(engine: Engine, freeze: bool = True) -> None:
    """Freeze or unfreeze the base model without what was added to it."""
    added = {id(p) for part in _all_parts(engine) for p in part.module.parameters()}
    for parameter in engine.base.parameters():
        if id(parameter) not in added:
            parameter.requires_grad_(not freeze)


def train_adapters(engine: Engine, names: Iterable[str]) -> None:
    """Freeze everything below the base model but the adapters `names`."""
    engine.base.requires_grad_(False)
    for name in names:
        for part in engine.parts[name]:
            part.module.requires_grad_(True)
            _keep_fixed_rules(part.module)


def train_fusions(engine: Engine, fusions: Iterable[str], adapters: Iterable[str] = ()) -> None:
    """Freeze everything below the base model but the given fusions (and adapters)."""
    train_adapters(engine, adapters)
    for fusion in fusions:
        for part in engine.fusions[fusion]:
            part.module.requires_grad_(True)


def _keep_fixed_rules(module: nn.Module) -> None:
    """`learn_phm=False` holds while the rest of a compacter trains."""
    for owner in module.modules():
        if not getattr(owner, "learn_phm", True):
            for name, parameter in owner.named_parameters():
                if name.startswith("phm_rule"):
                    parameter.requires_grad_(False)


def _all_parts(engine: Engine) -> Iterable[Part]:
    for parts in (*engine.parts.values(), *engine.fusions.values()):
        yield from parts
