"""MTL-LoRA: LoRA whose projections several tasks can share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from adapters.methods.config import MultiTaskConfig, Rule, integer, number, one_of
from adapters.methods.lora import LoRAConfig

__all__ = ["MTLLoRAConfig", "MultiTaskConfig"]


@dataclass(eq=False)
class MTLLoRAConfig(LoRAConfig, MultiTaskConfig):
    """LoRA with a matrix per task between A and B, and a learned mixture of several B.

        y = W x + (alpha / r) * sum_k w_k B_k T A x,    w = softmax(weights / weights_sharpness)

    Paper: Yang et al. 2024, arXiv:2410.09437. Other fields as in `LoRAConfig`.

    Args:
        n_up_projection: Number of up projections B_k, at least 1.
        task_specific_matrix_type: T is a diagonal ("singular_values") or a full matrix ("linear").
        weights_sharpness: Temperature of the mixture, above 0; small values choose one B_k.
    Raises:
        ConfigError: a value is of another type or outside its range.
    """

    architecture: str | None = "mtl_lora"
    n_up_projection: int = 1
    task_specific_matrix_type: str = "singular_values"
    weights_sharpness: float = 0.05

    rules: ClassVar[Mapping[str, Rule]] = {
        "n_up_projection": integer(1),
        "task_specific_matrix_type": one_of("singular_values", "linear"),
        "weights_sharpness": number(0, above=True),
    }
