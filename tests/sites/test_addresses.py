"""Addresses that no family of ours needs yet: one of several calls of a module, arguments that are given by name."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import adapters
from adapters import BnConfig, LoRAConfig
from adapters.errors import ConfigError, MergeError
from adapters.sites.spec import At, Branch, LayerSpec, Linear, ModelSpec, Norm, Place
from adapters.sites.specs import SPECS
from adapters.sites.specs.bert import bert
from tests.tiny import build, checkpoint, infer, inputs, output, perturb

BOTTLENECK = BnConfig(True, True, 8, "relu", is_parallel=True)


def with_places(monkeypatch: pytest.MonkeyPatch, places: dict[str, Place]) -> None:
    """Let layers of BERT have these addresses."""

    def spec(config: Any) -> ModelSpec:
        found = bert(config)
        layers = found.layers[0]
        assert isinstance(layers.layer, LayerSpec)
        return replace(found, layers=(replace(layers, layer=LayerSpec({**layers.layer.places, **places})),))

    monkeypatch.setitem(SPECS, "bert", spec)  # type: ignore[arg-type]


def adapt(usual: Any, model: Any, config: Any) -> None:
    """Give both models the same adapter "a"."""
    for one in (usual, model):
        one.add_adapter("a", config=config, set_active=True)
    perturb(usual, "a")
    for part, other in zip(model._engine.parts["a"], usual._engine.parts["a"], strict=True):
        part.module.load_state_dict(other.module.state_dict())


def shared_dropout(model: Any) -> Any:
    """`model`, in which both branches of a layer end in one module that is called twice, as in BEiT."""
    for layer in model.encoder.layer:
        layer.attention.output.dropout = layer.output.dropout
    return model


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_module_that_is_called_twice(monkeypatch: pytest.MonkeyPatch, checkpointed: bool) -> None:
    """Each branch adapts its own call, in copies, in training and when a layer is computed again."""
    usual, given = build("bert"), inputs("bert")
    path = "output.dropout"
    with_places(
        monkeypatch,
        {
            "attn": Branch(At(path, call=(0, 2)), At("attention.output", "in", 1), holder="attention.output"),
            "ffn": Branch(At(path, call=(1, 2)), At("output", "in", 1), holder="output"),
        },
    )
    model = adapters.init(shared_dropout(build("bert", adapted=False)))
    adapt(usual, model, BOTTLENECK)
    for twin in (model, copy.deepcopy(model)):
        for _ in range(2):
            assert torch.equal(infer(twin, given), infer(usual, given))
    gradients = []
    for one in (usual, model):
        one.train_adapter("a")
        if checkpointed:
            checkpoint(one)
        output(one, given).pow(2).sum().backward()
        gradients.append({key: p.grad for key, p in one.named_parameters() if p.requires_grad})
    torch.testing.assert_close(gradients[0], gradients[1])


class Twice(nn.Module):
    """A linear map whose output is read from its second call, as if it were computed for something else first."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        self.linear(x.flip(1)[:, :3])
        result: Tensor = self.linear(x)
        return result


def test_a_linear_map_that_is_called_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    usual, given = build("bert"), inputs("bert")
    with_places(monkeypatch, {"ffn.up": Linear("intermediate.dense.linear", call=(1, 2))})
    plain = build("bert", adapted=False)
    for layer in plain.encoder.layer:
        layer.intermediate.dense = Twice(layer.intermediate.dense)
    model = adapters.init(plain)
    config = LoRAConfig(r=2, places=["attn.q", "ffn.up"])
    adapt(usual, model, config)
    assert torch.equal(infer(model, given), infer(usual, given))
    with pytest.raises(MergeError, match="called 2 times in a layer"):
        model.merge_adapter("a")
    assert torch.equal(infer(model, given), infer(usual, given))


class Named(nn.Module):
    """Calls a module with names for its arguments."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        result: Tensor = self.module(hidden_states=hidden_states, input_tensor=input_tensor)
        return result


def test_a_residual_input_that_is_given_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    usual, given = build("bert"), inputs("bert")
    path = "output.module"
    with_places(
        monkeypatch,
        {
            "ffn": Branch(At(f"{path}.dropout"), At(path, "in", "input_tensor"), f"{path}.LayerNorm", holder="output"),
            "ffn.norm": Norm(f"{path}.LayerNorm"),
            "ffn.down": Linear(f"{path}.dense"),
        },
    )
    plain = build("bert", adapted=False)
    for layer in plain.encoder.layer:
        layer.output = Named(layer.output)
    model = adapters.init(plain)
    adapt(usual, model, BOTTLENECK)
    assert torch.equal(infer(model, given), infer(usual, given))


@pytest.mark.parametrize("call", [(2, 2), (-1, 2), (0, 0)])
def test_calls_are_counted_from_zero(call: Any) -> None:
    for address in (At, Linear):
        with pytest.raises(ConfigError, match="number of the call, from 0"):
            address("output", call=call)
