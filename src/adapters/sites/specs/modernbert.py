"""ModernBERT. The residual input of its adapters is read behind the norm of the block, as those in files read it."""

from __future__ import annotations

from typing import Any

from adapters.sites.spec import At, Attention, Branch, Columns, LayerList, LayerSpec, Linear, ModelSpec, Norm, Place

QKV: dict[str, Place] = {f"attn.{part}": Linear("attn.Wqkv", Columns(i, i + 1, of=3)) for i, part in enumerate("qkv")}
LAYER: dict[str, Place] = {
    **QKV,
    "attn.core": Attention("attn"),
    "attn.o": Linear("attn.Wo"),
    "attn": Branch(
        At("attn.out_drop"), At("attn", "in"), "mlp_norm", norm_after=False, holder="attention_adapters", exact=False
    ),
    "attn.norm": Norm("attn_norm"),
    "ffn.up": Linear("mlp.Wi"),
    "ffn.down": Linear("mlp.Wo"),
    "ffn": Branch(At("mlp"), At("mlp", "in"), holder="output_adapters", exact=False),
    "ffn.norm": Norm("mlp_norm"),
}


def modernbert(config: Any) -> ModelSpec:
    """The spec for a config. The first layer has no norm in front of its attention: the embeddings have one."""
    first = LayerSpec({role: place for role, place in LAYER.items() if role != "attn.norm"})
    layers = (first, *[LayerSpec(LAYER)] * (config.num_hidden_layers - 1))
    embeddings = At("embeddings")
    return ModelSpec(
        (LayerList("layers", layers),),
        {"embed": embeddings, "embed.prompt": embeddings},
        static_inverse=True,
        copies_inside=False,
    )
