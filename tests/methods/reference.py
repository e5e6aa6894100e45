"""Shared by the tests of single methods: one site of a tiny model, its weights by name, and the gate's formula."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tests.tiny import WIDTH, build, perturb

CLOSE: dict[str, Any] = {"atol": 2e-5, "rtol": 1e-4}


def close(one: Tensor, two: Tensor) -> None:
    torch.testing.assert_close(one, two, **CLOSE)


def adapted(name: str, *configs: Any, **kwargs: Any) -> Any:
    """A tiny model with trained-looking adapters a, b, c; a is active."""
    model = build(name, **kwargs)
    for i, config in enumerate(configs):
        adapter = "abc"[i]
        torch.manual_seed(i)
        model.add_adapter(adapter, config=config)
        perturb(model, adapter, seed=i)
    model.set_active_adapters("a")
    return model


def weights(model: Any, place: str, adapter: str = "a") -> dict[str, Tensor]:
    """The tensors of an adapter at one place: name inside the adapter -> value."""
    found = {}
    for key, value in model.state_dict().items():
        before, _, after = key.partition(f".{adapter}.")
        if after and before == place:
            found[after] = value
    assert found, f"nothing of {adapter} at {place}"
    return found


def states(rows: int = 3, length: int = 5, width: int = WIDTH, seed: int = 0) -> Tensor:
    """Random hidden states."""
    return torch.randn(rows, length, width, generator=torch.Generator().manual_seed(seed))


def dense(linear: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight [O, I] and bias [O] of a linear map, also of a transposed one."""
    weight: Any = linear.weight
    bias: Any = linear.bias
    weight = weight.t() if isinstance(linear, Conv1D) else weight
    return weight.detach(), torch.zeros(len(weight)) if bias is None else bias.detach()


def gate_of(w: dict[str, Tensor], x: Tensor, name: str = "gate.", mask: Tensor | None = None) -> Tensor:
    """mean over (attended) positions of sigmoid(W x + b), [B, n]."""
    opened = torch.sigmoid(x @ w[f"{name}weight"].T + w[f"{name}bias"])
    if mask is None:
        return opened.mean(1)
    return torch.stack([row[own.bool()].mean(0) for row, own in zip(opened, mask)])
