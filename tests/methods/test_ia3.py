"""(IA)^3 against (W x + b) * l, gated, fused and stacked."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapters import Average, IA3Config, Stack
from tests.methods.reference import adapted, close, dense, gate_of, states, weights
from tests.methods.test_lora import SITES, called
from tests.tiny import build, infer, inputs


def everywhere(**options: Any) -> IA3Config:
    return IA3Config(attn_matrices=["q", "k", "v"], output_lora=True, **options)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("name", "place"), SITES)
def test_one_projection(name: str, place: str, gated: bool) -> None:
    model = adapted(name, everywhere(alpha=3, use_gating=gated))
    weight, bias = dense(model.get_submodule(place))
    x, w = states(width=weight.shape[1]), weights(model, f"{place}.loras")
    factor = w["lora_B"].view(1, 1, -1) * (gate_of(w, x)[:, :, None] if gated else 3)
    close(called(model, place, x), (x @ weight.T + bias) * factor)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("matrices", [["q"], ["k", "v"], ["q", "v"], ["q", "k", "v"]], ids=str)
def test_a_fused_projection(matrices: list[str], gated: bool) -> None:
    model = adapted("gpt2", IA3Config(attn_matrices=matrices, use_gating=gated))
    weight, bias = dense(model.h[1].attn.c_attn)
    x, w = states(), weights(model, "h.1.attn.c_attn.loras")
    parts = list((x @ weight.T + bias).chunk(3, -1))
    for i, matrix in enumerate(m for m in "qkv" if m in matrices):
        factor = w["lora_B"][32 * i : 32 * i + 32].view(1, 1, -1)
        parts["qkv".index(matrix)] = parts["qkv".index(matrix)] * (
            factor * gate_of(w, x)[:, None, i : i + 1] if gated else factor
        )
    close(called(model, "h.1.attn.c_attn", x), torch.cat(parts, -1))


def test_a_stack_multiplies_and_an_average_averages() -> None:
    model, place, x = adapted("bert", everywhere(), everywhere()), "encoder.layer.0.attention.self.key", states()
    weight, bias = dense(model.get_submodule(place))
    one, two = (weights(model, f"{place}.loras", adapter)["lora_B"].view(1, 1, -1) for adapter in "ab")
    model.set_active_adapters(Stack("a", "b"))
    close(called(model, place, x), (x @ weight.T + bias) * one * two)
    model.set_active_adapters(Average("a", "b", weights=[1, 3]))
    close(called(model, place, x), (x @ weight.T + bias) * (one + 3 * two) / 4)


def test_starts_as_the_identity() -> None:
    model, given = build("t5"), inputs("t5")
    plain = infer(model, given)
    model.add_adapter("a", config="ia3", set_active=True)
    assert torch.equal(infer(model, given), plain)
