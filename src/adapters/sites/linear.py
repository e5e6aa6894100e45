"""The one place that knows how a linear map stores its weight: `nn.Linear`, transformers' `Conv1D`, quantised ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from adapters.errors import MergeError


def is_linear(module: nn.Module) -> bool:
    """Whether `module` is a linear map that adapters can act on; not one whose weights others read without a call."""
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return False
    return isinstance(module, (nn.Linear, Conv1D)) or {"in_features", "out_features"} <= set(vars(module))


def features(module: nn.Module) -> tuple[int, int]:
    """Widths (I, O) of a linear map, read from the module itself."""
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]


def weight_of(module: nn.Module) -> Tensor:
    """The weight as [O, I], whatever way the module stores it. Raises MergeError for packed (quantised) weights."""
    weight = module.weight
    if not isinstance(weight, Tensor) or not weight.dtype.is_floating_point or weight.dim() != 2:
        raise MergeError(
            f"{type(module).__name__} stores its weight in a packed form, which has no [O, I] matrix to read. "
            "Use a method that only needs the layer's input and output, or load the base model in "
            "16 or 32 bit."
        )
    return weight.t() if isinstance(module, Conv1D) else weight


def as_stored(module: nn.Module, weight: Tensor) -> Tensor:
    """A weight [O, I] in the form in which `module` stores its own."""
    return weight.t() if isinstance(module, Conv1D) else weight


@torch.no_grad()
def assign(module: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    """Overwrite weight ([O, I], of norms [O]) and bias ([O]) of a linear map or norm in place."""
    module.weight.copy_(as_stored(module, weight))  # type: ignore[operator]
    if bias is not None and module.bias is not None:
        module.bias.copy_(bias)  # type: ignore[operator]
