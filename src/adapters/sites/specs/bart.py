"""BART (norm after the sum) and mBART (norm before): the same modules in another order."""

from __future__ import annotations

from adapters.sites.spec import (
    At,
    LayerList,
    LayerSpec,
    Linear,
    ModelSpec,
    Place,
    post_norm,
    pre_norm,
    projections,
    prompts,
)


def _branch(role: str, h: str, first: str, norm: str, norm_first: bool) -> dict[str, Place]:
    return pre_norm(role, h, norm) if norm_first else post_norm(role, h, At(first, "in"), norm)


def _attention(role: str, path: str, norm_first: bool) -> dict[str, Place]:
    output = f"{path}.out_proj"
    return {
        **projections(role, path, "q_proj", "k_proj", "v_proj"),
        f"{role}.o": Linear(output),
        **_branch(role, output, path, f"{path}_layer_norm", norm_first),
    }


def _model(norm_first: bool) -> ModelSpec:
    encoder = {
        **_attention("attn", "self_attn", norm_first),
        "ffn.up": Linear("fc1"),
        "ffn.down": Linear("fc2"),
        **_branch("ffn", "fc2", "fc1", "final_layer_norm", norm_first),
    }
    decoder = {**encoder, **_attention("cross", "encoder_attn", norm_first)}
    return ModelSpec(
        (
            LayerList("encoder.layers", LayerSpec(encoder), stack="encoder", optional=True),
            LayerList("decoder.layers", LayerSpec(decoder), stack="decoder"),
        ),
        {"embed": At("encoder.layernorm_embedding"), **prompts("encoder")},
    )


BART, MBART = _model(norm_first=False), _model(norm_first=True)
