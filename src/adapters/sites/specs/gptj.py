"""GPT-J: attention and feed-forward block read one norm, side by side. Adapters see the second behind the first."""

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

GPTJ = ModelSpec(
    (
        LayerList(
            "h",
            LayerSpec(
                {
                    **projections("attn", "attn", "q_proj", "k_proj", "v_proj"),
                    "attn.o": Linear("attn.out_proj"),
                    **pre_norm("attn", "attn.resid_dropout", "ln_1"),
                    "ffn.up": Linear("mlp.fc_in"),
                    "ffn.down": Linear("mlp.fc_out"),
                    "ffn": Branch(At("mlp"), At("ln_1", "in"), beside=At("attn.resid_dropout")),
                    "ffn.norm": Norm("ln_1"),
                }
            ),
        ),
    ),
    {"embed": At("drop"), **prompts()},
    causal=True,
    copies_inside=False,
)
