"""Adapters that a model has of its own, such as X-MOD's for languages, add nothing once it has ours."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adapters.runtime.arguments import UnknownArgument
from adapters.sites.spec import Natives


def silence(base: nn.Module, natives: Natives) -> None:
    """Let a model's own adapters give 0, for good; calls need not choose one of them, and may not.

    Their weights stay where they are, for files of the whole model.
    """
    for path, module in base.named_modules():
        if fnmatchcase(path, natives.modules):
            module.register_forward_hook(_nothing)
    base.register_forward_pre_hook(partial(_choose, natives.choice), with_kwargs=True)


def _nothing(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return torch.zeros_like(output)


def _choose(choice: str, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Choose the first one, as every row must have one."""
    if kwargs.get(choice) is not None:
        raise ChosenNative(
            f"{choice} chooses among the adapters that {type(base).__name__} has of its own. They add nothing where "
            f"there are those of this library: leave {choice} out, and activate an adapter for the language."
        )
    rows = next(given for given in (*args, *kwargs.values()) if isinstance(given, Tensor))
    return args, {**kwargs, choice: torch.zeros(len(rows), dtype=torch.long, device=rows.device)}


class ChosenNative(UnknownArgument, ValueError):
    """A call chose one of the model's own adapters."""
