"""CLIP: a tower for text and one for images, together or each by itself."""

from __future__ import annotations

from adapters.sites.spec import At, LayerList, LayerSpec, Linear, ModelSpec, pre_norm, projections
from adapters.sites.specs.reasons import NO_TOKENS, ONE_VECTOR

LAYER = LayerSpec(
    {
        **projections("attn", "self_attn", "q_proj", "k_proj", "v_proj"),
        "attn.o": Linear("self_attn.out_proj"),
        **pre_norm("attn", "self_attn.out_proj", "layer_norm1"),
        "ffn.up": Linear("mlp.fc1"),
        "ffn.down": Linear("mlp.fc2"),
        **pre_norm("ffn", "mlp", "layer_norm2"),
    }
)
REFUSED = {"embed.prompt": ONE_VECTOR}
CLIP = ModelSpec(
    tuple(
        LayerList(f"{tower}.encoder.layers", LAYER, tower, optional=True) for tower in ("text_model", "vision_model")
    ),
    {"embed": At("text_model.embeddings")},
    REFUSED,
)
CLIP_TEXT = ModelSpec((LayerList("encoder.layers", LAYER),), {"embed": At("embeddings")}, REFUSED)
CLIP_VISION = ModelSpec((LayerList("encoder.layers", LAYER),), {}, {"embed": NO_TOKENS, **REFUSED})
