"""BERT and the encoders that share its module names."""

from __future__ import annotations

from adapters.sites.spec import AttentionSpec, Input, LayerSpec, ModelSpec, ResidualSpec

BERT = ModelSpec(
    model_types=("bert", "roberta", "xlm-roberta", "electra"),
    layers=(
        LayerSpec(
            path="encoder.layer",
            attentions=(
                AttentionSpec("attention.self", "self_prefix", q="query", k="key", v="value"),
                AttentionSpec("crossattention.self", "cross_prefix", q="query", k="key", v="value"),
            ),
            residuals=(
                ResidualSpec(
                    place="mh_adapter",
                    h="attention.output.dropout",
                    x=Input("attention.output", 1),
                    owner="attention.output",
                    norm="attention.output.LayerNorm",
                ),
                ResidualSpec(
                    place="mh_adapter",
                    h="crossattention.output.dropout",
                    x=Input("crossattention.output", 1),
                    owner="crossattention.output",
                    norm="crossattention.output.LayerNorm",
                ),
                ResidualSpec(
                    place="output_adapter",
                    h="output.dropout",
                    x=Input("output", 1),
                    owner="output",
                    norm="output.LayerNorm",
                ),
            ),
            intermediate="intermediate.dense",
            output="output.dense",
        ),
    ),
    invertible="embeddings",
    prompt="embeddings",
)
