"""The module tree is the truth: adapters hooked in it, and whoever edits it by hand changes what runs."""

from __future__ import annotations

from typing import Any

from torch import nn


class Edits:
    """Counts the changes of all `AdapterDict`s of one model."""

    count = 0


class AdapterDict(nn.ModuleDict):
    """Holds adapters by name, and counts its changes. Every name is free: those of methods (`train`) too."""

    def __init__(self, edits: Edits) -> None:
        super().__init__()
        self.__dict__["edits"] = edits

    def add_module(self, name: str, module: nn.Module | None) -> None:
        self.edits.count += 1
        self._modules[name] = module  # type: ignore[assignment]

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, nn.Module):
            self.add_module(name, value)
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        self.edits.count += 1
        super().__delattr__(name)

    def __delitem__(self, key: str) -> None:
        self.edits.count += 1
        super().__delitem__(key)

    def clear(self) -> None:
        self.edits.count += 1
        super().clear()

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name)


def _inside(module: nn.Module) -> nn.Module:
    """The module itself, out of what torch wraps around layers to checkpoint them: their paths stay what they were."""
    inner = module._modules.get("_checkpoint_wrapped_module")
    return module if inner is None else inner


def find(base: nn.Module, path: str) -> nn.Module | None:
    """The module at `path` below `base`, None if there is none."""
    module = base
    for name in path.split("."):
        if (child := _inside(module)._modules.get(name)) is None:
            return None
        module = child
    return module


def container(base: nn.Module, path: str, edits: Edits) -> nn.Module:
    """The dictionary at `path` below `base`, made if it is not there."""
    module = base
    *holders, last = path.split(".")
    for name in holders:
        module = _inside(module)
        if name not in module._modules:
            module.add_module(name, nn.Module().train(module.training))
        module = module._modules[name]  # type: ignore[assignment]
    module = _inside(module)
    if last not in module._modules:
        module.add_module(last, AdapterDict(edits).train(module.training))
    return module._modules[last]  # type: ignore[return-value]


def discard(base: nn.Module, path: str, name: str) -> None:
    """Remove `name` from the dictionary at `path`, and every holder that this leaves empty."""
    names = path.split(".")
    chain: list[nn.Module] = [_inside(base)]
    for part in names:
        if (child := chain[-1]._modules.get(part)) is None:
            return
        chain.append(_inside(child))
    chain[-1]._modules.pop(name, None)
    for owner, child, part in reversed(list(zip(chain, chain[1:], names))):
        if child._modules or not (isinstance(child, nn.ModuleDict) or type(child) is nn.Module):
            break
        del owner._modules[part]
