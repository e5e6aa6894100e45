"""Llama and the decoders that share its module names.

In Llama and Mistral `intermediate` and `output` are swapped on purpose: adapters trained with `intermediate_lora` hold
weights for `down_proj`, those with `output_lora` for `up_proj`. In Qwen they are what their names say.
"""

from __future__ import annotations

from dataclasses import replace

from adapters.sites.spec import AttentionSpec, Input, LayerSpec, ModelSpec, ResidualSpec

LLAMA = ModelSpec(
    model_types=("llama", "mistral"),
    layers=(
        LayerSpec(
            path="layers",
            attentions=(AttentionSpec("self_attn", "self_prefix", q="q_proj", k="k_proj", v="v_proj"),),
            residuals=(
                ResidualSpec("mh_adapter", "self_attn.o_proj", Input("input_layernorm"), "attention_adapters"),
                ResidualSpec("output_adapter", "mlp", Input("post_attention_layernorm"), "output_adapters"),
            ),
            intermediate="mlp.down_proj",
            output="mlp.up_proj",
        ),
    ),
    invertible="embed_tokens",
    causal=True,
)

QWEN = replace(
    LLAMA,
    model_types=("qwen2", "qwen3"),
    layers=(replace(LLAMA.layers[0], intermediate="mlp.up_proj", output="mlp.down_proj"),),
    static_inverse=True,
)
