"""LoRA, gated and fused, alone and stacked, against W x + b + (alpha / r) B A x."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from adapters import Average, BatchSplit, LoRAConfig, Parallel, Stack
from tests.methods.reference import adapted, close, dense, gate_of, states, weights
from tests.tiny import build, infer, inputs

PLACES = {
    "bert": (
        "encoder.layer.0.attention.self.query",
        "encoder.layer.1.intermediate.dense",
        "encoder.layer.1.output.dense",
    ),
    "llama": ("layers.0.self_attn.v_proj", "layers.1.mlp.down_proj", "layers.1.mlp.up_proj"),
    "gpt2": ("h.1.mlp.c_fc", "h.0.mlp.c_proj"),
    "t5-gated": ("decoder.block.1.layer.1.EncDecAttention.q", "encoder.block.0.layer.1.DenseReluDense.wi_1"),
    "bart": ("decoder.layers.0.encoder_attn.q_proj", "encoder.layers.1.fc1", "decoder.layers.1.fc2"),
    "vit": ("layers.0.attention.q_proj", "layers.1.mlp.fc1"),
}
SITES = [pytest.param(name, place, id=f"{name}-{place}") for name, places in PLACES.items() for place in places]


def everywhere(**options: Any) -> LoRAConfig:
    return LoRAConfig(intermediate_lora=True, output_lora=True, **{"r": 3, "alpha": 5, **options})


@torch.no_grad()
def called(model: Any, place: str, x: Tensor) -> Tensor:
    return model.get_submodule(place)(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("name", "place"), SITES)
def test_one_projection(name: str, place: str, gated: bool) -> None:
    model = adapted(name, everywhere(use_gating=gated))
    weight, bias = dense(model.get_submodule(place))
    x, w = states(width=weight.shape[1]), weights(model, f"{place}.loras")
    update = x @ w["lora_A"].T @ w["lora_B"].T
    update = update * gate_of(w, x)[:, :, None] if gated else update * 5 / 3
    close(called(model, place, x), x @ weight.T + bias + update)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("matrices", [["q"], ["k", "v"], ["q", "v"], ["q", "k", "v"]], ids=str)
def test_a_fused_projection(matrices: list[str], gated: bool) -> None:
    """A and B hold one block for each adapted third of the output; the other thirds stay."""
    model = adapted("gpt2", LoRAConfig(r=3, alpha=5, attn_matrices=matrices, use_gating=gated))
    weight, bias = dense(model.h[0].attn.c_attn)
    x, w = states(), weights(model, "h.0.attn.c_attn.loras")
    expected = list((x @ weight.T + bias).chunk(3, -1))
    gates = gate_of(w, x) if gated else None
    for i, matrix in enumerate(m for m in "qkv" if m in matrices):
        a, b = w["lora_A"][3 * i : 3 * i + 3], w["lora_B"][32 * i : 32 * i + 32]
        factor = gates[:, i, None, None] if gates is not None else 5 / 3
        expected["qkv".index(matrix)] = expected["qkv".index(matrix)] + x @ a.T @ b.T * factor
    close(called(model, "h.0.attn.c_attn", x), torch.cat(expected, -1))


def test_a_stack_is_a_chain() -> None:
    """The second adapter reads the update of the first, not x, and only its update is added."""
    model = adapted("bert", LoRAConfig(r=3, alpha=5), LoRAConfig(r=2, alpha=4))
    model.set_active_adapters(Stack("a", "b"))
    place = "encoder.layer.0.attention.self.query"
    (weight, bias), x = dense(model.get_submodule(place)), states()
    one, two = (weights(model, f"{place}.loras", adapter) for adapter in "ab")
    first = x @ one["lora_A"].T @ one["lora_B"].T * 5 / 3
    close(called(model, place, x), x @ weight.T + bias + first @ two["lora_A"].T @ two["lora_B"].T * 2)


def test_an_average_is_that_of_the_updates() -> None:
    model = adapted("bert", LoRAConfig(r=3, alpha=5), LoRAConfig(r=2, alpha=4))
    model.set_active_adapters(Average("a", "b", weights=[3, 1]))
    place = "encoder.layer.0.attention.self.query"
    (weight, bias), x = dense(model.get_submodule(place)), states()
    one, two = (weights(model, f"{place}.loras", adapter) for adapter in "ab")
    updates = (one["lora_B"] @ one["lora_A"] * 5 / 3, two["lora_B"] @ two["lora_A"] * 2)
    close(called(model, place, x), x @ (weight + 0.75 * updates[0] + 0.25 * updates[1]).T + bias)


@pytest.mark.parametrize("sizes", [[2, 1], [1, 2]])
@pytest.mark.parametrize("options", [{}, {"alpha": 7}, {"use_gating": True}, {"r": 2}], ids=str)
def test_rows_of_different_adapters(options: Any, sizes: list[int]) -> None:
    """Equally shaped adapters run as one batched product, others in a loop: the same result."""
    model = adapted("gpt2", everywhere(), everywhere(**options))
    for place in ("h.0.attn.c_attn", "h.1.mlp.c_fc"):
        x, results = states(), {}
        for adapter in "ab":
            model.set_active_adapters(adapter)
            results[adapter] = called(model, place, x)
        model.set_active_adapters(BatchSplit("a", "b", batch_sizes=sizes))
        close(called(model, place, x), torch.cat([results["a"][: sizes[0]], results["b"][sizes[0] :]]))
        model.set_active_adapters(Parallel("b", "a"))
        close(called(model, place, torch.cat([x, x])), torch.cat([results["b"], results["a"]]))


def test_dropout_acts_on_the_input_in_training() -> None:
    model = adapted("bert", LoRAConfig(r=3, dropout=0.5))
    place = "encoder.layer.0.attention.self.query"
    x = states()
    assert torch.equal(called(model, place, x), called(model, place, x))
    model.train()
    plain = x @ dense(model.get_submodule(place))[0].T + dense(model.get_submodule(place))[1]
    torch.manual_seed(0)
    found = called(model, place, x)
    torch.manual_seed(0)
    w = weights(model, f"{place}.loras")
    close(found, plain + torch.dropout(x, 0.5, True) @ w["lora_A"].T @ w["lora_B"].T * 8 / 3)


@pytest.mark.parametrize("scheme", ["lora", "bert"])
def test_initial_weights(scheme: str) -> None:
    model, given = build("bert"), inputs("bert")
    plain = infer(model, given)
    model.add_adapter("a", config=LoRAConfig(init_weights=scheme), set_active=True)
    w = weights(model, "encoder.layer.0.attention.self.query.loras")
    if scheme == "lora":
        assert w["lora_B"].abs().max() == 0
        assert 0.9 / 32**0.5 < w["lora_A"].abs().max() <= 1 / 32**0.5
        assert torch.equal(infer(model, given), plain)
    else:
        assert 0.015 < w["lora_B"].std() < 0.025 and 0.015 < w["lora_A"].std() < 0.025


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"query", "value"}),
        ({"attn_matrices": ["k"]}, {"key"}),
        ({"selfattn_lora": False, "intermediate_lora": True}, {"intermediate"}),
        ({"output_lora": True, "attn_matrices": ["q"]}, {"query", "output"}),
    ],
)
def test_flags_choose_places(options: Any, expected: set[str]) -> None:
    model = adapted("bert", LoRAConfig(**options))
    owners = {
        key.split(".loras.")[0].removesuffix(".dense").rpartition(".")[2] for key in model.state_dict() if ".a." in key
    }
    assert owners == expected


def test_unknown_matrices_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="adapt nothing"):
        LoRAConfig(attn_matrices=["q", "x"])
