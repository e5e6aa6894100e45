"""T5 and mT5: every sub-block is a layer of its own, with the norm before it."""

from __future__ import annotations

from adapters.sites.spec import AttentionSpec, Input, LayerSpec, ModelSpec, ResidualSpec


def _attention(layer: int, name: str, prefix: str, position_bias: str = "") -> AttentionSpec:
    return AttentionSpec(f"layer.{layer}.{name}", prefix, q="q", k="k", v="v", position_bias=position_bias)


def _residual(layer: int, place: str) -> ResidualSpec:
    path = f"layer.{layer}"
    return ResidualSpec(place, f"{path}.dropout", Input(f"{path}.layer_norm"), path)  # type: ignore[arg-type]


def _feed_forward(layer: int) -> dict[str, str]:
    path = f"layer.{layer}.DenseReluDense"
    return {"intermediate": f"{path}.wi|{path}.wi_1", "output": f"{path}.wo"}


T5 = ModelSpec(
    model_types=("t5", "mt5"),
    layers=(
        LayerSpec(
            path="encoder.block",
            attentions=(_attention(0, "SelfAttention", "encoder_prefix", "encoder.block.0.layer.0.SelfAttention"),),
            residuals=(_residual(0, "mh_adapter"), _residual(1, "output_adapter")),
            **_feed_forward(1),
            stack="encoder",
        ),
        LayerSpec(
            path="decoder.block",
            attentions=(
                _attention(0, "SelfAttention", "self_prefix", "decoder.block.0.layer.0.SelfAttention"),
                _attention(1, "EncDecAttention", "cross_prefix"),
            ),
            residuals=(
                _residual(0, "mh_adapter"),
                _residual(1, "cross_adapter"),
                _residual(2, "output_adapter"),
            ),
            **_feed_forward(2),
            stack="decoder",
        ),
    ),
    invertible=Input("encoder.block.0"),
)
