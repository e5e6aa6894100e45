"""How are modules built whose values come from a file? Without memory and without initial values, in `Empty`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

MAKING = frozenset((torch.empty, torch.zeros, torch.ones, torch.full, torch.eye, torch.rand, torch.randn, torch.arange))
"""Functions that make tensors."""
FILLING = frozenset(
    (
        *(getattr(nn.init, name) for name in vars(nn.init) if name.endswith("_") and not name.startswith("_")),
        *(getattr(torch.Tensor, name) for name in ("fill_", "normal_", "uniform_", "zero_")),
    )
)
"""Functions that give their first argument its initial values."""


class Empty(TorchFunctionMode):
    """In this context new tensors are on `meta` and have no values, whatever their size; nothing is drawn at random."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in FILLING:
            tensor = args[0] if args else kwargs["tensor"]
            return tensor if tensor.is_meta else function(*args, **kwargs)
        if function in MAKING:
            kwargs = {**kwargs, "device": "meta"}
        return function(*args, **kwargs)
