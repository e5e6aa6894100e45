"""Phi: attention and feed-forward block side by side; adapters of the second were trained without x."""

from __future__ import annotations

from adapters.sites.spec import (
    At,
    Branch,
    LayerList,
    LayerSpec,
    Linear,
    ModelSpec,
    Norm,
    pre_norm,
    projections,
    prompts,
)

PHI = ModelSpec(
    (
        LayerList(
            "layers",
            LayerSpec(
                {
                    **projections("attn", "self_attn", "q_proj", "k_proj", "v_proj"),
                    "attn.o": Linear("self_attn.dense"),
                    **pre_norm("attn", "self_attn.dense", "input_layernorm"),
                    "ffn.up": Linear("mlp.fc1"),
                    "ffn.down": Linear("mlp.fc2"),
                    "ffn": Branch(At("mlp"), At("input_layernorm", "in"), alone=True),
                    "ffn.norm": Norm("input_layernorm"),
                }
            ),
        ),
    ),
    {"embed": At("embed_tokens"), **prompts()},
    causal=True,
    static_inverse=True,
    copies_inside=False,
)
