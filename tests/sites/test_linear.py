"""The one file that knows how linear maps store their weight."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from adapters.errors import MergeError
from adapters.sites.linear import as_stored, assign, features, is_linear, weight_of

MAPS = [nn.Linear(3, 5), nn.Linear(3, 5, bias=False), Conv1D(5, 3)]


@pytest.mark.parametrize("module", MAPS, ids=str)
def test_widths_weight_and_assignment(module: nn.Module) -> None:
    assert is_linear(module) and features(module) == (3, 5)
    x, bias = torch.randn(2, 3), module.bias
    weight = weight_of(module)
    assert weight.shape == (5, 3)
    torch.testing.assert_close(module(x), x @ weight.T + (0 if bias is None else bias))
    new, new_bias = torch.randn(5, 3), torch.randn(5)
    identity = id(module.weight)
    assign(module, as_stored(module, new), new_bias)
    assert id(module.weight) == identity and module.weight.requires_grad
    torch.testing.assert_close(module(x), x @ new.T + (0 if bias is None else new_bias))
    assert torch.equal(weight_of(module), new)


def test_other_modules_are_no_linear_maps() -> None:
    assert not is_linear(nn.LayerNorm(3)) and not is_linear(nn.Embedding(3, 5))


@pytest.mark.parametrize("weight", [torch.zeros(5, 3, dtype=torch.int8), torch.zeros(15, 1, 1), None])
def test_a_packed_weight_is_not_read(weight: torch.Tensor | None) -> None:
    module = nn.Linear(3, 5)
    del module.weight
    module.weight = weight  # type: ignore[assignment]
    with pytest.raises(MergeError, match="packed"):
        weight_of(module)
