"""An `init` that fails leaves the model as it was, whatever it had done by then."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

import adapters
from adapters import LoRAConfig, ModelAdaptersConfig
from adapters.errors import AdapterError
from tests.tiny import ENCODER, build, hooks, randomised


class Layers(nn.Module):
    """A module of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(2))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            states = states + layer(states)
        return states


def plain(kind: str) -> tuple[Any, dict[str, Any]]:
    if kind == "plain":
        return Layers(), {"example_inputs": {"states": torch.randn(2, 3, 8)}}
    if kind == "xmod":
        config = AutoConfig.for_model("xmod", **ENCODER, languages=["en_XX"], default_language="en_XX")
        return randomised(AutoModel.from_config(config)), {}
    return build(kind, "classification", adapted=False), {}


def snapshot(model: nn.Module) -> Any:
    names = [(name, type(module), sorted(vars(module))) for name, module in model.named_modules()]
    config = model.config.to_dict() if "config" in vars(model) else None  # type: ignore[operator,union-attr]
    return names, sorted(model.state_dict()), hooks(model), config


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("kind", ["bert", "t5", "xmod", "plain"])
def test_nothing_is_left_of_an_init_that_fails(kind: str, stored: bool) -> None:
    """The second adapter cannot be built: by then the first hangs in the model, and X-MOD's own have given way."""
    model, options = plain(kind)
    config = ModelAdaptersConfig()
    place = "layers.*.0" if kind == "plain" else "attn.q"
    config.add("good", LoRAConfig(places=place, r=2))
    config.add("bad", LoRAConfig(places="attn.nowhere"))
    if stored and kind != "plain":
        model.config.adapters = config.to_dict()
        config = None  # type: ignore[assignment]
    before = snapshot(model)
    with pytest.raises(AdapterError, match="nowhere"):
        adapters.init(model, config, **options)
    assert snapshot(model) == before
    if stored and kind != "plain":
        del model.config.adapters
    adapters.init(model, **options).add_adapter("good", config=LoRAConfig(places=place, r=2))
