"""LoRA adapters are brought into one basis before they are merged there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from adapters.merging.algorithm import Random, Weights
from adapters.merging.ties import Ties
from adapters.merging.update import Update


@dataclass(frozen=True)
class Knots(Ties):
    """The updates side by side have one basis of outputs, and TIES merges what each does in it.

        [D_1, ..., D_n] = U [S V_1^T, ..., S V_n^T]    (SVD),    D = U TIES(S V_1^T, ..., S V_n^T)

    The rank is at most sum_i r_i, which it is by default, so that nothing more is lost.

    Paper: Stoica et al. 2024, arXiv:2410.19735.

    Args:
        density: The part of the entries of each S V_i^T that is kept, in (0, 1].
        majority: "total", or "frequency": whether entries vote with their size, or one vote each.
        svd_rank: Rank of the result.
    """

    strategy = "knots"
    paper = "arXiv:2410.19735"
    lora_only = True

    def combine_updates(self, updates: Sequence[Update], weights: Weights, rank: int, random: Random) -> Update:
        ups, ranks = torch.cat([update.up for update in updates], 1), [len(update.down) for update in updates]
        # [D_1, ..., D_n] = ups diag(A_1, ..., A_n), and A_i = R_i^T Q_i^T: the Q_i are orthonormal and can wait
        factors = [torch.linalg.qr(update.down.T) for update in updates]
        narrow = torch.block_diag(*(inner.T for _, inner in factors))
        basis, s, vt = torch.linalg.svd(ups @ narrow, full_matrices=False)
        own = (s[:, None] * vt).split([inner.shape[0] for _, inner in factors], 1)
        aligned = [part @ outer.T for part, (outer, _) in zip(own, factors, strict=True)]
        merged = Update(self.combine(aligned, weights, random), basis)
        assert len(merged.down) <= sum(ranks)
        return merged.filled(rank) if len(merged.down) <= rank else merged.cut(rank)

    def rank(self, ranks: Sequence[int]) -> int:
        return sum(ranks) if self.svd_rank is None else self.svd_rank
