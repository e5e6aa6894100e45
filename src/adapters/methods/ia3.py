"""IA3: a trained factor for each output of a linear layer."""

from __future__ import annotations

from dataclasses import dataclass, field

from adapters.methods.lora import LoRAConfig


@dataclass(eq=False)
class IA3Config(LoRAConfig):
    """Scales keys, values and the feed-forward block's inner activations by trained vectors.

        y = (W x + b) * s

    Paper: Liu et al. 2022, arXiv:2205.05638. Fields as in `LoRAConfig`; r stays 1 and dropout 0.
    """

    intermediate_lora: bool = True
    r: int = 1
    alpha: float = 1
    attn_matrices: list[str] = field(default_factory=lambda: ["k", "v"])
    composition_mode: str = "scale"
    init_weights: str = "ia3"
