"""BART (norm after the sum) and mBART (norm before): the same modules in another order."""

from __future__ import annotations

from adapters.sites.spec import AttentionSpec, Input, LayerSpec, ModelSpec, ResidualSpec


def _layers(path: str, prefix: str, pre_norm: bool) -> LayerSpec:
    def residual(place: str, h: str, module: str, norm: str, owner: str) -> ResidualSpec:
        x = Input(norm) if pre_norm else Input(module)
        return ResidualSpec(place, h, x, owner, "" if pre_norm else norm)  # type: ignore[arg-type]

    projections = {"q": "q_proj", "k": "k_proj", "v": "v_proj"}
    return LayerSpec(
        path=f"{path}.layers",
        attentions=(
            AttentionSpec("self_attn", prefix, **projections),
            AttentionSpec("encoder_attn", "cross_prefix", **projections),
        ),
        residuals=(
            residual("mh_adapter", "self_attn.out_proj", "self_attn", "self_attn_layer_norm", "attention_adapters"),
            residual(
                "cross_adapter",
                "encoder_attn.out_proj",
                "encoder_attn",
                "encoder_attn_layer_norm",
                "cross_attention_adapters",
            ),
            residual("output_adapter", "fc2", "fc1", "final_layer_norm", "output_adapters"),
        ),
        intermediate="fc1",
        output="fc2",
        stack=path,
    )


BART, MBART = (
    ModelSpec(
        model_types=(model_type,),
        layers=(_layers("encoder", "encoder_prefix", pre_norm), _layers("decoder", "self_prefix", pre_norm)),
        invertible="encoder.layernorm_embedding",
    )
    for model_type, pre_norm in (("bart", False), ("mbart", True))
)
