"""GPT-2: one fused projection for queries, keys and values, stored transposed."""

from __future__ import annotations

from adapters.sites.spec import AttentionSpec, Input, LayerSpec, ModelSpec, ResidualSpec

GPT2 = ModelSpec(
    model_types=("gpt2",),
    layers=(
        LayerSpec(
            path="h",
            attentions=(AttentionSpec("attn", "self_prefix", qkv="c_attn"),),
            residuals=(
                ResidualSpec("mh_adapter", "attn.resid_dropout", Input("ln_1"), "attention_adapters"),
                ResidualSpec("output_adapter", "mlp.dropout", Input("ln_2"), "output_adapters"),
            ),
            intermediate="mlp.c_fc",
            output="mlp.c_proj",
        ),
    ),
    invertible="drop",
    causal=True,
)
