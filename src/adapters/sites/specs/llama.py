"""Llama and the decoders that share its module names."""

from __future__ import annotations

from dataclasses import replace

from adapters.sites.spec import At, LayerList, LayerSpec, Linear, ModelSpec, pre_norm, projections, prompts

LLAMA = ModelSpec(
    (
        LayerList(
            "layers",
            LayerSpec(
                {
                    **projections("attn", "self_attn", "q_proj", "k_proj", "v_proj"),
                    "attn.o": Linear("self_attn.o_proj"),
                    **pre_norm("attn", "self_attn.o_proj", "input_layernorm"),
                    "ffn.up": Linear("mlp.up_proj"),
                    "ffn.gate": Linear("mlp.gate_proj"),
                    "ffn.down": Linear("mlp.down_proj"),
                    **pre_norm("ffn", "mlp", "post_attention_layernorm"),
                }
            ),
        ),
    ),
    {"embed": At("embed_tokens"), **prompts()},
    causal=True,
)
QWEN = replace(LLAMA, static_inverse=True)
