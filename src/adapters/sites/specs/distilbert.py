"""DistilBERT."""

from __future__ import annotations

from adapters.sites.spec import At, LayerList, LayerSpec, Linear, ModelSpec, post_norm, projections

DISTILBERT = ModelSpec(
    (
        LayerList(
            "transformer.layer",
            LayerSpec(
                {
                    **projections("attn", "attention", "q_lin", "k_lin", "v_lin"),
                    "attn.o": Linear("attention.out_lin"),
                    **post_norm("attn", "attention.out_lin", At("attention", "in"), "sa_layer_norm"),
                    "ffn.up": Linear("ffn.lin1"),
                    "ffn.down": Linear("ffn.lin2"),
                    **post_norm("ffn", "ffn", At("ffn", "in"), "output_layer_norm"),
                }
            ),
        ),
    ),
    {"embed": At("embeddings"), "embed.prompt": At("embeddings")},
)
