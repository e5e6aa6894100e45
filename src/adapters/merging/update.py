"""What does LoRA add to a weight? A product of two narrow matrices, which can be added, cut and factorised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Update(NamedTuple):
    """D = up @ down, [O, I], for down [r, I] and up [O, r], which has the scaling in it."""

    down: Tensor
    up: Tensor

    def matrix(self) -> Tensor:
        """D."""
        return self.up @ self.down

    @classmethod
    def sum(cls, updates: Sequence[Update], weights: Sequence[float]) -> Update:
        """sum_i w_i D_i, exactly: the ranks add up."""
        ups = [weight * update.up for weight, update in zip(weights, updates, strict=True)]
        return cls(torch.cat([update.down for update in updates]), torch.cat(ups, 1))

    @classmethod
    def nearest(cls, matrix: Tensor, rank: int) -> Update:
        """The matrix of this rank that is nearest to D (Eckart and Young 1936), the singular values in `up`."""
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
        return cls(vt[:rank], u[:, :rank] * s[:rank]).filled(rank)

    def cut(self, rank: int) -> Update:
        """The update of this rank that is nearest to this one; by way of narrow matrices alone."""
        left, u, s, vt, right = self._spectrum()
        return Update(vt[:rank] @ right.T, left @ (u[:, :rank] * s[:rank])).filled(rank)

    def _spectrum(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Orthonormal P and Q and a small U S V^T, with D = P U S V^T Q^T."""
        (left, outer), (right, inner) = torch.linalg.qr(self.up), torch.linalg.qr(self.down.T)
        u, s, vt = torch.linalg.svd(outer @ inner.T, full_matrices=False)
        return left, u, s, vt, right

    def filled(self, rank: int) -> Update:
        """The same update as one of at least this rank."""
        missing = rank - len(self.down)
        if missing <= 0:
            return self
        down = torch.cat([self.down, self.down.new_zeros(missing, self.down.shape[1])])
        return Update(down, torch.cat([self.up, self.up.new_zeros(len(self.up), missing)], 1))
