"""(IA)^3 against (W x + b) * l, gated, fused and stacked."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapters import Average, IA3Config, Stack
from adapters.errors import ConfigError, MergeError
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


INWARD = [("bert", "encoder.layer.1.output.dense"), ("gpt2", "h.1.mlp.c_proj"), ("llama", "layers.0.mlp.down_proj")]


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("name", "place"), INWARD)
def test_the_input_of_the_feed_forward_as_in_the_paper(name: str, place: str, gated: bool) -> None:
    """y = W (l * x) + b; merged, l scales the columns of W."""
    model = adapted(name, IA3Config(alpha=3, use_gating=gated, places=["attn.k", "attn.v", "ffn.down.in"]))
    weight, bias = dense(model.get_submodule(place))
    x, w = states(width=weight.shape[1]), weights(model, f"{place}.loras")
    assert w["lora_B"].shape == (weight.shape[1], 1)
    factor = w["lora_B"].view(1, 1, -1) * (gate_of(w, x)[:, :, None] if gated else 3)
    expected = (x * factor) @ weight.T + (0 if bias is None else bias)
    close(called(model, place, x), expected)
    if gated:
        with pytest.raises(MergeError, match="depends on the input"):
            model.merge_adapter("a")
        return
    model.merge_adapter("a")
    close(called(model, place, x), expected)
    model.reset_adapter()
    assert torch.equal(dense(model.get_submodule(place))[0], weight)


def test_the_input_and_the_output_of_one_map() -> None:
    with pytest.raises(ConfigError, match=r"places, flags or leave_out keep them apart"):
        build("bert").add_adapter("a", config=IA3Config(places=["ffn.down", "ffn.down.in"]))


def test_stacks_and_averages_of_inputs() -> None:
    config = IA3Config(places=["ffn.down.in"])
    model, place, x = adapted("bert", config, config), "encoder.layer.0.output.dense", states(width=40)
    weight, bias = dense(model.get_submodule(place))
    one, two = (weights(model, f"{place}.loras", adapter)["lora_B"].view(1, 1, -1) for adapter in "ab")
    model.set_active_adapters(Stack("a", "b"))
    close(called(model, place, x), (x * one * two) @ weight.T + bias)
    model.set_active_adapters(Average("a", "b", weights=[1, 3]))
    close(called(model, place, x), (x * (one + 3 * two) / 4) @ weight.T + bias)


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
