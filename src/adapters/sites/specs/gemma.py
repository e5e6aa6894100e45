"""Gemma 2 and the text models of Gemma 3: a norm in front of every block and one behind it, before the sum."""

from __future__ import annotations

from adapters.sites.spec import (
    At,
    Branch,
    LayerList,
    LayerSpec,
    Linear,
    ModelSpec,
    Norm,
    Place,
    projections,
    prompts,
)


def _branch(role: str, h: str, before: str, behind: str, holder: str) -> dict[str, Place]:
    """Adapters stand in front of the second norm, and those that normalise their input do so with it."""
    branch = Branch(At(h), At(before, "in"), behind, norm_after=False, holder=holder, exact=False)
    return {role: branch, f"{role}.norm": Norm(before)}


GEMMA = ModelSpec(
    (
        LayerList(
            "layers",
            LayerSpec(
                {
                    **projections("attn", "self_attn", "q_proj", "k_proj", "v_proj"),
                    "attn.o": Linear("self_attn.o_proj"),
                    **_branch(
                        "attn",
                        "self_attn.o_proj",
                        "input_layernorm",
                        "post_attention_layernorm",
                        "attention_adapters",
                    ),
                    "ffn.up": Linear("mlp.up_proj"),
                    "ffn.gate": Linear("mlp.gate_proj"),
                    "ffn.down": Linear("mlp.down_proj"),
                    **_branch(
                        "ffn", "mlp", "pre_feedforward_layernorm", "post_feedforward_layernorm", "output_adapters"
                    ),
                }
            ),
        ),
    ),
    {"embed": At("embed_tokens"), **prompts()},
    causal=True,
    static_inverse=True,
    copies_inside=False,
)
