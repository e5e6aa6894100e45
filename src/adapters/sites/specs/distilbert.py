"""DistilBERT."""

from __future__ import annotations

from adapters.sites.spec import AttentionSpec, Input, LayerSpec, ModelSpec, ResidualSpec

DISTILBERT = ModelSpec(
    model_types=("distilbert",),
    layers=(
        LayerSpec(
            path="transformer.layer",
            attentions=(AttentionSpec("attention", "self", q="q_lin", k="k_lin", v="v_lin"),),
            residuals=(
                ResidualSpec(
                    "mh_adapter",
                    "attention.out_lin",
                    Input("attention"),
                    "attention_adapters",
                    "sa_layer_norm",
                ),
                ResidualSpec("output_adapter", "ffn", Input("ffn"), "output_adapters", "output_layer_norm"),
            ),
            intermediate="ffn.lin1",
            output="ffn.lin2",
        ),
    ),
    invertible="embeddings",
    prompt="embeddings",
)
