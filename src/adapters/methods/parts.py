"""Calling the parts of an adapter: what is seen in the module is what runs, at little more than the cost of its maths.

A call of a module runs its forward and its hooks. Adapters are called at every layer, and their maps are so small that
calling takes longer than computing; so a call is left out where all that it would do is the forward of the class.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import torch.nn.modules.module as torch_module
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from adapters.call import CALL


def watched(module: nn.Module) -> bool:
    """Whether a call of `module`, a part of an adapter, does more than the forward of its class.

    It has hooks, or a forward of its own. While a model's call runs that has looked at all parts already, only the
    latter is asked for, since parts of other classes may be given one without a trace.
    """
    own = module.__dict__
    if CALL.now.unwatched:
        return "forward" in own
    return has_hooks(own)


def has_hooks(own: dict[str, Any]) -> bool:
    """As `watched`, from the dictionary of a module's attributes, whatever the running call knows."""
    return bool(
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
        or "_compiled_call_impl" in own
        or _ALL_FORWARD
        or _ALL_FORWARD_PRE
        or _ALL_BACKWARD
        or _ALL_BACKWARD_PRE
    )


# Hooks on all modules of the process, as profilers register them. Names of their own are read faster than a tuple.
_ALL_FORWARD, _ALL_FORWARD_PRE = torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks
_ALL_BACKWARD, _ALL_BACKWARD_PRE = torch_module._global_backward_hooks, torch_module._global_backward_pre_hooks


def matched(x: Tensor, weight: Tensor) -> Tensor:
    """x in the dtype of a weight that it meets. Autocast, where it is on, chooses one for both."""
    if x.dtype is weight.dtype or torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(weight.dtype)


def call(module: nn.Module, x: Tensor) -> Tensor:
    """`module(x)` for x in the dtype of its weight; of maps and chains that nobody watches only the maths."""
    own = module.__dict__
    weight = own["_parameters"].get("weight")
    if weight is not None and weight.dtype is not x.dtype:
        x = matched(x, weight)
    if not CALL.now.unwatched and (has_hooks(own) or torch.compiler.is_compiling()):
        return module(x)  # type: ignore[no-any-return]
    return forward(module, x)


def forward(module: nn.Module, x: Tensor) -> Tensor:
    """`module.forward(x)`, without torch's search for parameters, which takes longer than many an operation."""
    kind, own = type(module), module.__dict__
    if "forward" in own:
        return own["forward"](x)  # type: ignore[no-any-return]
    parameters = own["_parameters"]
    if kind is nn.Linear and "weight" in parameters:
        return F.linear(x, parameters["weight"], parameters["bias"])
    if kind is nn.LayerNorm and "weight" in parameters:
        return F.layer_norm(x, own["normalized_shape"], parameters["weight"], parameters["bias"], own["eps"])
    if kind is nn.Sequential:
        for part in own["_modules"].values():
            x = call(part, x)
        return x
    return module.forward(x)  # type: ignore[no-any-return]


def weights_of(module: nn.Module) -> tuple[Tensor, Tensor] | None:
    """(weight [O, I], bias [O]) of a linear map that has a bias and is nothing else; None for any other module."""
    own = module.__dict__
    if type(module) is not nn.Linear:
        plain = getattr(module, "plain_weights", None)
        return None if plain is None else plain()
    weight, bias = own["_parameters"].get("weight"), own["_parameters"].get("bias")
    return None if weight is None or bias is None or "forward" in own else (weight, bias)


def as_one(x: Tensor) -> Tensor:
    """x [B, S, D] as [1, B S, D], to be multiplied by matrices that all rows share; x itself where B is 1."""
    return x if x.dim() == 3 and x.shape[0] == 1 else x.reshape(1, -1, x.shape[-1])


class Watching:
    """Whether any of some modules, or what is below them, is watched: asked anew after any hook was registered."""

    def __init__(self, *modules: nn.Module) -> None:
        self.modules = modules
        self._seen: Any = None
        self._found = False

    def __bool__(self) -> bool:
        # every hook of every module gets the next number
        if self._seen != (seen := (RemovableHandle.next_id, PATCHES.count)):
            self._found = any(has_hooks(vars(part)) for module in self.modules for part in module.modules())
            self._seen = seen
        return self._found

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_seen": None}


class _Patches:
    """Counts how often a module of an adapter was given another forward."""

    count = 0


PATCHES = _Patches()
