"""BERT and the encoders that share its module names. With `add_cross_attention` they are decoders."""

from __future__ import annotations

from typing import Any

from adapters.sites.spec import At, LayerList, LayerSpec, Linear, ModelSpec, Place, post_norm, projections


def _attention(role: str, path: str) -> dict[str, Place]:
    output = f"{path}.output"
    return {
        **projections(role, f"{path}.self", "query", "key", "value"),
        f"{role}.o": Linear(f"{output}.dense"),
        **post_norm(role, f"{output}.dropout", At(output, "in", 1), f"{output}.LayerNorm"),
    }


def bert(config: Any) -> ModelSpec:
    """The spec for a config."""
    crossed = getattr(config, "add_cross_attention", False)
    layer = LayerSpec(
        {
            **_attention("attn", "attention"),
            **(_attention("cross", "crossattention") if crossed else {}),
            "ffn.up": Linear("intermediate.dense"),
            "ffn.down": Linear("output.dense"),
            **post_norm("ffn", "output.dropout", At("output", "in", 1), "output.LayerNorm"),
        }
    )
    embeddings = At("embeddings")
    return ModelSpec((LayerList("encoder.layer", layer),), {"embed": embeddings, "embed.prompt": embeddings})
