"""MTL-LoRA: LoRA whose projections several tasks can share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from adapters.methods.config import AdapterConfig, MultiTaskConfig, Rule, integer, number, one_of
from adapters.methods.derived import Derived
from adapters.methods.lora import LoRA, LoRAConfig, init_matrices
from adapters.methods.parts import Watching
from adapters.methods.weight_update import Factors


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


class TaskMatrix(nn.Module):
    """The matrix T of one task: its diagonal [r], or all of it [r, r]. Starts as the identity."""

    def __init__(self, config: MTLLoRAConfig) -> None:
        super().__init__()
        diagonal = config.task_specific_matrix_type == "singular_values"
        self.values = nn.Parameter(torch.ones(config.r) if diagonal else torch.eye(config.r))

    def forward(self, a: Tensor) -> Tensor:
        """T A for A [m, r, I]."""
        return self.values[:, None] * a if self.values.dim() == 1 else self.values.t() @ a


class MTLLoRA(LoRA):
    """LoRA for several tasks: a matrix of its own per task between A and B, and a mixture of several B.

        y = W x + b + (alpha / r) * sum_k w_k B_k T A x,    w = softmax(weights / weights_sharpness)

    A is [r, I], T [r, r], B [K, O, r]. `share_parameters` lets the adapters of several tasks use one A and one B.

    Paper: Yang et al. 2024, arXiv:2410.09437.
    """

    paper = "arXiv:2410.09437"
    titles: ClassVar[Mapping[str, str]] = {"mtl_lora": "MTL-LoRA"}
    config_class = MTLLoRAConfig
    presets: ClassVar[Mapping[str, AdapterConfig]] = {"mtl_lora": MTLLoRAConfig()}
    variant = "mtl_lora"
    shareable: ClassVar[tuple[str, ...]] = ("lora_A", "lora_B")
    per_expert = False
    looks_up = False

    def make_matrices(self) -> None:
        config: MTLLoRAConfig = self.config
        self.lora_A = nn.Parameter(torch.empty(config.r * len(self.columns), self.in_features))
        self.lora_B = nn.Parameter(torch.empty(config.n_up_projection, self.width, config.r))
        self.weights = nn.Parameter(torch.ones(config.n_up_projection))
        self.task_specific = TaskMatrix(config)
        init_matrices(self.lora_A, self.lora_B, config.init_weights)
        self._products = Derived(self._multiply, self)
        self._watching = Watching(self.task_specific)

    def factors(self) -> Factors:
        return self._multiply() if self._watching else self._products()

    def _multiply(self) -> Factors:
        a = self.task_specific(self.tensor("lora_A").view(len(self.columns), -1, self.in_features))
        mixture = torch.softmax(self.tensor("weights") / self.config.weights_sharpness, 0)
        return a.reshape(-1, self.in_features), torch.einsum("k,kor->or", mixture, self.tensor("lora_B"))
