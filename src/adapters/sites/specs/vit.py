"""Vision Transformer."""

from __future__ import annotations

from adapters.sites.spec import At, Branch, LayerList, LayerSpec, Linear, ModelSpec, Norm, pre_norm, projections
from adapters.sites.specs.reasons import NO_TOKENS

VIT = ModelSpec(
    (
        LayerList(
            "layers",
            LayerSpec(
                {
                    **projections("attn", "attention", "q_proj", "k_proj", "v_proj"),
                    "attn.o": Linear("attention.o_proj"),
                    **pre_norm("attn", "attention.o_proj", "layernorm_before"),
                    "ffn.up": Linear("mlp.fc1"),
                    "ffn.down": Linear("mlp.fc2"),
                    "ffn": Branch(At("mlp"), At("layernorm_after", "in"), holder="output.output_adapters"),
                    "ffn.norm": Norm("layernorm_after"),
                }
            ),
        ),
    ),
    {"embed.prompt": At("embeddings")},
    {"embed": NO_TOKENS},
)
