"""VeRA and DVoRA against W x + b + (alpha / r) V_B B V_D A x with matrices that all sites share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adapters import DvoRAConfig, VeraConfig
from tests.methods.reference import adapted, close, dense, gate_of, states, weights
from tests.methods.test_lora import called
from tests.tiny import build

PLACES = ("encoder.layer.0.attention.self.query", "encoder.layer.1.intermediate.dense", "encoder.layer.1.output.dense")


def product(model: torch.nn.Module, place: str) -> tuple[Tensor, Tensor]:
    """V_D A and V_B B at a place: a site that is narrower than others takes the first rows and columns."""
    w, shared = weights(model, f"{place}.loras"), weights(model, "shared_parameters")
    wide, narrow = dense(model.get_submodule(place))[0].shape
    return w["vera_D"] @ shared["lora_A"][:, :narrow], w["vera_B"] @ shared["lora_B"][:wide]


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_vera(place: str, gated: bool) -> None:
    model = adapted("bert", VeraConfig(r=3, alpha=5, intermediate_lora=True, output_lora=True, use_gating=gated))
    (weight, bias), (down, up) = dense(model.get_submodule(place)), product(model, place)
    x = states(width=weight.shape[1])
    factor = gate_of(weights(model, f"{place}.loras"), x)[:, :, None] if gated else 5 / 3
    close(called(model, place, x), x @ weight.T + bias + x @ down.T @ up.T * factor)


@pytest.mark.parametrize("place", PLACES)
def test_dvora(place: str) -> None:
    model = adapted("bert", DvoRAConfig(r=3, alpha=5, intermediate_lora=True, output_lora=True))
    (weight, bias), (down, up) = dense(model.get_submodule(place)), product(model, place)
    x, m = states(width=weight.shape[1]), weights(model, f"{place}.loras")["m.weight"].squeeze(1)
    length = m / torch.linalg.vector_norm(weight + up @ down, dim=1)
    close(called(model, place, x), length * (x @ weight.T + bias + x @ down.T @ up.T * 5 / 3))


def test_initial_weights() -> None:
    model = build("bert")
    model.add_adapter("a", config=VeraConfig(vera_d=0.3, vera_b=0.2, r=3))
    w = weights(model, "encoder.layer.0.attention.self.query.loras")
    close(w["vera_D"], 0.3 * torch.eye(3))
    close(w["vera_B"], 0.2 * torch.eye(32))
    shared = [key for key in model.state_dict() if "shared_parameters" in key]
    assert shared == ["shared_parameters.a.lora_A", "shared_parameters.a.lora_B"]
