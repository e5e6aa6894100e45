"""BEiT. Its two branches leave through one module, behind their dropout and their factors."""

from __future__ import annotations

from typing import Any

from adapters.sites.spec import At, Branch, LayerList, LayerSpec, Linear, ModelSpec, Norm, projections
from adapters.sites.specs.reasons import NO_TOKENS

LAYER = LayerSpec(
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
)
BIASED = "its attention has one bias for each pair of patches, and none for prompts"


def beit(config: Any) -> ModelSpec:
    """The spec for a config: relative positions are those of the patches alone."""
    biased = config.use_relative_position_bias or config.use_shared_relative_position_bias
    return ModelSpec(
        (LayerList("layers", LAYER),),
        {} if biased else {"embed.prompt": At("embeddings")},
        {"embed": NO_TOKENS, **({"embed.prompt": BIASED} if biased else {})},
    )
