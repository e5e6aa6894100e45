"""The one place that knows how a linear map stores its weight: `nn.Linear`, transformers' `Conv1D`, quantised ones.

A table of embeddings is one too: that of vectors with a single 1, whose number is all that it is given.
"""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from adapters.errors import MergeError
from adapters.sharding import assign as write
from adapters.sharding import brought, whole
from adapters.sites.quantised import PLAIN, packing_of

TRANSPOSED = (Conv1D, nn.Embedding)
"""Classes that store [I, O]."""


def is_linear(module: nn.Module) -> bool:
    """Whether `module` is a linear map that adapters can act on; not one whose weights others read without a call."""
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return False
    return isinstance(module, (nn.Linear, Conv1D)) or {"in_features", "out_features"} <= set(vars(module))


def is_table(module: nn.Module) -> bool:
    """Whether `module` is a table of embeddings that is called with numbers of its rows, and nothing else."""
    return isinstance(module, nn.Embedding) and len(signature(type(module).forward).parameters) == 2


def features(module: nn.Module) -> tuple[int, int]:
    """Widths (I, O) of a linear map, read from the module itself."""
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    if isinstance(module, nn.Embedding):
        rows, columns = module.weight.shape
        return rows, columns
    return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]


def weight_of(module: nn.Module) -> Tensor:
    """The weight as [O, I], whatever way the module stores it; of quantised ones the rounded values, as a copy.

    Raises:
        MergeError: it is packed in a way that cannot be read (`sites/quantised.py` has those that can).
    """
    if (packing := packing_of(module)) is not None:
        with torch.no_grad():
            return packing.dense(module)
    weight = module.weight
    if isinstance(weight, Tensor) and (type(weight) not in PLAIN or weight.dim() != 2):
        weight = whole(weight)
    if isinstance(weight, Tensor) and weight.is_meta:
        weight = brought(module, weight)
    if not isinstance(weight, Tensor) or not weight.dtype.is_floating_point or weight.dim() != 2:
        raise MergeError(
            f"{type(module).__name__} stores its weight in a packed form, which has no [O, I] matrix to read. "
            "Use a method that only needs the layer's input and output, or load the base model in "
            "16 or 32 bit."
        )
    return weight.t() if isinstance(module, TRANSPOSED) else weight


def is_packed(module: nn.Module) -> bool:
    """Whether `module` rounds the weights that it is given, because it stores them quantised."""
    return packing_of(module) is not None


def as_stored(module: nn.Module, weight: Tensor) -> Any:
    """A weight [O, I] in the form in which `module` stores its own: what `assign` takes.

    Raises:
        MergeError: `module` is quantised, and its weights can be read, but others cannot be packed so.
    """
    packing = packing_of(module)
    if packing is None:
        return weight.t() if isinstance(module, TRANSPOSED) else weight
    why = "its library packs whole models only"
    if packing.packed is not None:
        try:
            with torch.no_grad():
                return packing.packed(module, weight)
        except (NotImplementedError, TypeError, ValueError, RuntimeError, AssertionError) as error:
            why = f"{type(error).__name__}: {error}"
    kind = type(getattr(module, "weight", None) if isinstance(module, nn.Linear) else module).__name__
    raise MergeError(
        f"Another weight cannot be packed as {kind} ({why}). Keep the adapter as it is, or load the base model in "
        "16 or 32 bit, merge there, and quantise the result."
    )


def stored_weight(module: nn.Module) -> Any:
    """What `assign` brings back bit for bit: a copy of the weight; of quantised ones what they hold."""
    packing = packing_of(module)
    if packing is None:
        return module.weight.detach().clone()  # type: ignore[operator]
    return tuple(getattr(module, name, None) for name in packing.replaces)


@torch.no_grad()
def assign(module: nn.Module, weight: Any, bias: Tensor | None) -> None:
    """Overwrite weight, as it is stored, and bias ([O]) of a linear map or norm; plain ones in place."""
    packing = packing_of(module)
    if packing is None:
        write(module.weight, weight)  # type: ignore[arg-type]
    else:
        for name, value in zip(packing.replaces, weight):
            setattr(module, name, value)
    if bias is not None and module.bias is not None:
        write(module.bias, bias)  # type: ignore[arg-type]
