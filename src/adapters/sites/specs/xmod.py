"""X-MOD: as BERT, with a norm and language adapters of its own behind the feed-forward block, which ours replace."""

from __future__ import annotations

from typing import Any

from adapters.sites.spec import At, Branch, LayerList, LayerSpec, Linear, ModelSpec, Natives, Norm, Place, projections


def _attention(role: str, path: str) -> dict[str, Place]:
    output = f"{path}.output"
    return {
        **projections(role, f"{path}.self", "query", "key", "value"),
        f"{role}.o": Linear(f"{output}.dense"),
        role: Branch(At(f"{output}.dropout"), At(output, "in", 1), holder=output),
        f"{role}.norm": Norm(f"{output}.LayerNorm"),
    }


def _norm_of_adapters(config: Any) -> dict[str, Any]:
    """The norm of the sum in front of the language adapters, unless they alone read what it gives."""
    if not config.ln_before_adapter:
        return {}
    if config.adapter_layer_norm:
        return {"norm": "output.adapter_layer_norm"}
    if config.adapter_reuse_layer_norm:
        return {"norm": "output.LayerNorm", "norm_call": (1 if config.pre_norm else 0, 2)}
    return {}


def xmod(config: Any) -> ModelSpec:
    """The spec for a config."""
    x = At("output", "in", 1)
    layer = LayerSpec(
        {
            **_attention("attn", "attention"),
            **(_attention("cross", "crossattention") if config.add_cross_attention else {}),
            "ffn.up": Linear("intermediate.dense"),
            "ffn.down": Linear("output.dense"),
            "ffn": Branch(At("output.dropout", call=(0, 2)), x, holder="output", **_norm_of_adapters(config)),
            "ffn.norm": Norm("output.LayerNorm"),
        }
    )
    embeddings = At("embeddings")
    return ModelSpec(
        (LayerList("encoder.layer", layer),),
        {"embed": embeddings, "embed.prompt": embeddings},
        copies_inside=False,
        natives=Natives("encoder.layer.*.output.adapter_modules.*", "lang_ids"),
    )
