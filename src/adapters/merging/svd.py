"""The sum of what LoRA adapters do, in a low rank."""

from __future__ import annotations

from dataclasses import dataclass

from adapters.merging.task_arithmetic import TaskArithmetic


@dataclass(frozen=True)
class SVD(TaskArithmetic):
    """The best approximation of a rank to what LoRA adapters do together.

        B A = the largest `svd_rank` singular values of sum_i w_i (alpha_i / r_i) B_i A_i

    Args:
        svd_rank: Rank of the result, whose alpha is the same number.
    """

    strategy = "lora_delta_w_svd"
    paper = ""
    lora_only = True

    def __post_init__(self) -> None:
        if self.svd_rank is None:
            raise self.wrong("svd_rank", "an integer of at least 1")
        super().__post_init__()


@dataclass(frozen=True)
class UnscaledSVD(SVD):
    """The numbers of older versions: of B_i A_i without alpha / r, used with the old alpha and the new rank.

        B A = the largest `svd_rank` singular values of sum_i w_i B_i A_i

    Args:
        svd_rank: Rank of the result.
    """

    strategy = "lora_delta_w_svd_unscaled"
    scaled = False
