"""GPT-2: one fused projection for queries, keys and values, stored transposed."""

from __future__ import annotations

from adapters.sites.spec import At, Attention, Columns, LayerList, LayerSpec, Linear, ModelSpec, pre_norm, prompts

GPT2 = ModelSpec(
    (
        LayerList(
            "h",
            LayerSpec(
                {
                    **{f"attn.{part}": Linear("attn.c_attn", Columns(i, i + 1, of=3)) for i, part in enumerate("qkv")},
                    "attn.core": Attention("attn"),
                    "attn.o": Linear("attn.c_proj"),
                    **pre_norm("attn", "attn.resid_dropout", "ln_1"),
                    "ffn.up": Linear("mlp.c_fc"),
                    "ffn.down": Linear("mlp.c_proj"),
                    **pre_norm("ffn", "mlp.dropout", "ln_2"),
                }
            ),
        ),
    ),
    {"embed": At("drop"), **prompts()},
    causal=True,
)
