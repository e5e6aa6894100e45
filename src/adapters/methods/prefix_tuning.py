"""Prefix tuning: trained keys and values in front of those of the sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from adapters.methods.config import (
    AdapterConfig,
    Rule,
    activation,
    flag,
    integer,
    layer_numbers,
    probability,
    seed,
)


@dataclass(eq=False)
class PrefixTuningConfig(AdapterConfig):
    """Prepends trained vectors to the keys and values of each attention.

        out = Attention(q, [P_k; k], [P_v; v]),    P = W_up act(W_down e + b_down) + b_up, or P itself if flat

    Paper: Li and Liang 2021, arXiv:2101.00190.

    Args:
        encoder_prefix: Adapt the attention of an encoder.
        cross_prefix: Adapt the cross-attention.
        leave_out: Layers without prefix, counted from 0.
        flat: Train the vectors themselves instead of computing them from an embedding.
        prefix_length: Vectors per layer, at least 1.
        bottleneck_size: Width of the network that computes the vectors, at least 1.
        non_linearity: Activation in this network, by its name in Transformers.
        dropout: Probability in [0, 1], applied to the vectors.
        use_gating: Multiply the vectors by a learned gate between 0 and 1 per sequence.
        shared_gating: Use one gate for keys and values.
        init_weights_seed: Seed set before each module is initialised; None leaves the generator alone.
    Raises:
        ConfigError: a value is of another type or outside its range.
    """

    architecture: str | None = "prefix_tuning"
    encoder_prefix: bool = True
    cross_prefix: bool = True
    leave_out: list[int] = field(default_factory=list)
    flat: bool = False
    prefix_length: int = 30
    bottleneck_size: int = 512
    non_linearity: str = "tanh"
    dropout: float = 0.0
    use_gating: bool = False
    shared_gating: bool = True
    init_weights_seed: int | None = None

    rules: ClassVar[Mapping[str, Rule]] = {
        "encoder_prefix": flag,
        "cross_prefix": flag,
        "leave_out": layer_numbers,
        "flat": flag,
        "prefix_length": integer(1),
        "bottleneck_size": integer(1),
        "non_linearity": activation,
        "dropout": probability,
        "use_gating": flag,
        "shared_gating": flag,
        "init_weights_seed": seed,
    }
