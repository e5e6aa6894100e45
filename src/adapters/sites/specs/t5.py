"""T5 and mT5: every sub-block is a layer of its own, with the norm before it."""

from __future__ import annotations

from typing import Any

from adapters.sites.spec import (
    At,
    Attention,
    LayerList,
    LayerSpec,
    Linear,
    ModelSpec,
    Place,
    pre_norm,
    projections,
    prompts,
)


def _attention(role: str, number: int, name: str, position_bias: str = "") -> dict[str, Place]:
    layer = f"layer.{number}"
    path = f"{layer}.{name}"
    return {
        **projections(role, path, "q", "k", "v"),
        f"{role}.core": Attention(path, position_bias),
        f"{role}.o": Linear(f"{path}.o"),
        **pre_norm(role, f"{layer}.dropout", f"{layer}.layer_norm"),
    }


def _feed_forward(number: int, gated: bool) -> dict[str, Place]:
    layer = f"layer.{number}"
    names = {"gate": "wi_0", "up": "wi_1", "down": "wo"} if gated else {"up": "wi", "down": "wo"}
    linears = {f"ffn.{part}": Linear(f"{layer}.DenseReluDense.{name}") for part, name in names.items()}
    return {**linears, **pre_norm("ffn", f"{layer}.dropout", f"{layer}.layer_norm")}


def t5(config: Any) -> ModelSpec:
    """The spec for a config: its feed-forward blocks may be gated."""
    attention = {
        stack: _attention("attn", 0, "SelfAttention", f"{stack}.block.0.layer.0.SelfAttention")
        for stack in ("encoder", "decoder")
    }
    encoder = {**attention["encoder"], **_feed_forward(1, config.is_gated_act)}
    cross = _attention("cross", 1, "EncDecAttention")
    decoder = {**attention["decoder"], **cross, **_feed_forward(2, config.is_gated_act)}
    return ModelSpec(
        (
            LayerList("encoder.block", LayerSpec(encoder), stack="encoder"),
            LayerList("decoder.block", LayerSpec(decoder), stack="decoder", optional=True),
        ),
        {"embed": At("encoder.block.0", "in"), **prompts("encoder")},
    )
