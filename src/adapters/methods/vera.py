"""VeRA and DVoRA: low-rank updates whose random matrices are shared by all layers."""

from __future__ import annotations

from dataclasses import dataclass

from adapters.methods.lora import LoRAConfig


@dataclass(eq=False)
class VeraConfig(LoRAConfig):
    """LoRA with frozen random A and B for the whole model; each site trains only what scales them.

        y = W x + (alpha / r) * L_b B L_d A x

    Paper: Kopiczko et al. 2024, arXiv:2310.11454. We differ: L_b and L_d are full matrices that start
    diagonal, as in the checkpoints of the AdapterHub ecosystem. Fields as in `LoRAConfig`.
    """

    vera_d: float | None = 0.1
    vera_b: float | None = 0.0
    init_weights: str = "vera"


@dataclass(eq=False)
class DvoRAConfig(LoRAConfig):
    """DoRA whose direction is updated by VeRA.

        y = m / ||W + L_b B L_d A|| * (W x + b + (alpha / r) * L_b B L_d A x)

    Paper: Liu et al. 2024, arXiv:2402.09353, section 5.2. Fields as in `LoRAConfig`.
    """

    vera_d: float | None = 0.1
    vera_b: float | None = 0.0
    init_weights: str = "vera"
    use_dora: bool = True
