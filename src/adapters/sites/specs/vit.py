"""Vision Transformer. Adapter files keep the module names that transformers used up to 4.x."""

from __future__ import annotations

from adapters.sites.spec import AttentionSpec, Input, LayerSpec, ModelSpec, ResidualSpec

VIT = ModelSpec(
    model_types=("vit",),
    layers=(
        LayerSpec(
            path="layers",
            attentions=(AttentionSpec("attention", "self_prefix", q="q_proj", k="k_proj", v="v_proj"),),
            residuals=(
                ResidualSpec("mh_adapter", "attention.o_proj", Input("layernorm_before"), "attention_adapters"),
                ResidualSpec("output_adapter", "mlp", Input("layernorm_after"), "output.output_adapters"),
            ),
            intermediate="mlp.fc1",
            output="mlp.fc2",
        ),
    ),
    prompt="embeddings",
    disk=(
        ("layers.", "encoder.layer."),
        (".attention.q_proj", ".attention.attention.query"),
        (".attention.k_proj", ".attention.attention.key"),
        (".attention.v_proj", ".attention.attention.value"),
        (".attention.prefix_tuning", ".attention.attention.prefix_tuning"),
        (".mlp.fc1", ".intermediate.dense"),
        (".mlp.fc2", ".output.dense"),
    ),
)
