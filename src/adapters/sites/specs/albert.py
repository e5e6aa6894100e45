"""ALBERT: groups of layers that are called again and again, so that one layer of the spec is many of the model."""

from __future__ import annotations

from typing import Any

from adapters.sites.spec import At, Branch, LayerList, LayerSpec, Linear, ModelSpec, Norm, post_norm, projections

LAYER = LayerSpec(
    {
        **projections("attn", "attention", "query", "key", "value"),
        "attn.o": Linear("attention.dense"),
        "attn.norm": Norm("attention.LayerNorm"),
        # Trained bottlenecks read the input of the attention, and its output is what stands beside them.
        "attn": Branch(
            At("attention.output_dropout"),
            At("attention", "in"),
            "attention.LayerNorm",
            holder="attention.attention_adapters",
            swapped=True,
        ),
        "ffn.up": Linear("ffn"),
        "ffn.down": Linear("ffn_output"),
        **post_norm("ffn", "ffn_output", At("ffn", "in"), "full_layer_layer_norm"),
    }
)


def albert(config: Any) -> ModelSpec:
    """The spec for a config, which says how many groups there are."""
    groups = (f"encoder.albert_layer_groups.{group}.albert_layers" for group in range(config.num_hidden_groups))
    embeddings = At("embeddings")
    return ModelSpec(
        tuple(LayerList(path, LAYER) for path in groups),
        {"embed": embeddings, "embed.prompt": embeddings},
        copies_inside=False,
    )
