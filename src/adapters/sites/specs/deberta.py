"""DeBERTa: BERT's layers with an attention of its own, whose first version has one projection arranged by heads."""

from __future__ import annotations

from adapters.sites.spec import At, Attention, Columns, LayerList, LayerSpec, Linear, ModelSpec, Place, post_norm
from adapters.sites.spec import projections as separate

PATH = "attention.self"


def _deberta(projections: dict[str, Place]) -> ModelSpec:
    layer = LayerSpec(
        {
            **projections,
            "attn.o": Linear("attention.output.dense"),
            **post_norm(
                "attn", "attention.output.dropout", At("attention.output", "in", 1), "attention.output.LayerNorm"
            ),
            "ffn.up": Linear("intermediate.dense"),
            "ffn.down": Linear("output.dense"),
            **post_norm("ffn", "output.dropout", At("output", "in", 1), "output.LayerNorm"),
        }
    )
    embeddings = At("embeddings")
    # The embeddings are multiplied by a mask of the given length; with prompts it is the encoder's that is longer.
    layers = LayerList("encoder.layer", layer, stack="encoder")
    return ModelSpec((layers,), {"embed": embeddings, "embed.prompt": embeddings})


def _of_head(part: int) -> Columns:
    return Columns(part, part + 1, of=3, repeats=f"{PATH}.num_attention_heads")


DEBERTA = _deberta(
    {
        **{f"attn.{part}": Linear(f"{PATH}.in_proj", _of_head(i)) for i, part in enumerate("qkv")},
        "attn.core": Attention(PATH),
    }
)
DEBERTA_V2 = _deberta(separate("attn", PATH, "query_proj", "key_proj", "value_proj"))
