"""BEiT. Its two branches leave through one module, behind their dropout and their factors."""

from __future__ import annotations

from adapters.sites.spec import At, Branch, LayerList, LayerSpec, Linear, ModelSpec, Norm, projections
from adapters.sites.specs.reasons import NO_TOKENS

BEIT = ModelSpec(
    (
        LayerList(
            "layers",
            LayerSpec(
                {
                    **projections("attn", "attention", "q_proj", "k_proj", "v_proj"),
                    "attn.o": Linear("attention.o_proj"),
                    "attn": Branch(At("drop_path", call=(0, 2)), At("layernorm_before", "in")),
                    "attn.norm": Norm("layernorm_before"),
                    "ffn.up": Linear("mlp.fc1"),
                    "ffn.down": Linear("mlp.fc2"),
                    "ffn": Branch(At("drop_path", call=(1, 2)), At("layernorm_after", "in")),
                    "ffn.norm": Norm("layernorm_after"),
                }
            ),
        ),
    ),
    {"embed.prompt": At("embeddings")},
    {"embed": NO_TOKENS},
)
