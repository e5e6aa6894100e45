"""AdapterFusion: attention over the outputs of several bottleneck adapters.

Paper: Pfeiffer et al. 2021, arXiv:2005.00247.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from adapters.call import CALL, record
from adapters.composition.fusion_config import AdapterFusionConfig
from adapters.errors import CompositionError
from adapters.methods.base import AdapterModule
from adapters.methods.parts import matched
from adapters.methods.state import ResidualState
from adapters.sites.resolve import ResidualSite


class AdapterFusion(nn.Module):
    """One fusion layer.

        scores_i = (W_q q + b_q) . (W_k u_i + b_k) / T      out = sum_i softmax(scores)_i W_v u_i + res

    q [B, S, D] is the hidden state, u [B, S, n, D] the adapters' contributions. There is no 1 / sqrt(D). T is 1, or
    with `temperature` falls from 50 to 1 by 0.05 per training step; it stays as it is in evaluation.

    Paper: Pfeiffer et al. 2021, arXiv:2005.00247.
    """

    START, STEP = 50.0, 0.05

    def __init__(self, config: AdapterFusionConfig, site: ResidualSite, name: str, dropout: float) -> None:
        super().__init__()
        self.config, self.site, self.name = config, site, name
        self.dense_size = width = site.width
        self.dropout = nn.Dropout(dropout if config.dropout_prob is None else config.dropout_prob)
        self.query = nn.Linear(width, width) if config.query else None
        self.key = nn.Linear(width, width) if config.key else None
        self.value = nn.Linear(width, width, bias=False) if config.value else None
        if not (config.query or config.key or config.value):
            self.dense = nn.Linear(width, 1)
        for linear in (self.query, self.key, self.value, getattr(self, "dense", None)):
            if linear is not None:
                nn.init.normal_(linear.weight, std=0.02)
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)
        if self.value is not None and config.value_initialized:
            with torch.no_grad():
                self.value.weight.fill_(1e-6).fill_diagonal_(1.0)
        self.temperature = self.used = self.START if config.temperature else 1.0

    def forward(self, query: Tensor, updates: Tensor, residual: Tensor) -> Tensor:
        """Combine `updates` [B, S, n, D], asked by `query` [B, S, D]; returns [B, S, D] with the residual added."""
        config, dtype, like = self.config, residual.dtype, next(self.parameters())
        query, updates, residual = (matched(t, like) for t in (query, updates, residual))
        keys = updates if self.key is None else self.key(updates)
        values = updates + residual[:, :, None] if config.residual_before else updates
        if self.value is not None and config.value_before_softmax:
            values = self.value(values)
        asked = query if self.query is None else self.query(query)
        scores = torch.einsum("bsd,bsnd->bsn", asked, keys) / self._next_temperature()
        attention = torch.softmax(self.dropout(scores), dim=-1)
        if (collected := CALL.now.fusion) is not None:
            record(collected, self.name, self.site.layer, self.site.location, attention)
        context = torch.einsum("bsn,bsnd->bsd", attention, values)
        if self.value is not None and not config.value_before_softmax:
            context = self.value(context)
        return (context if config.residual_before else context + residual).to(dtype)

    def _next_temperature(self) -> float:
        """The temperature of this call; a call that only repeats the last one for its backward has the same."""
        if not (self.config.temperature and self.training):
            return self.temperature
        if not CALL.now.replaying:
            self.used, self.temperature = self.temperature, max(self.temperature - self.STEP, 1.0)
        return self.used

    def regularization_loss(self) -> Tensor | float:
        """0.01 * ||I - W_v||^2, which keeps values near the adapters' own outputs; 0 without values."""
        if self.value is None or not self.value.weight.requires_grad:
            return 0.0
        weight = self.value.weight
        identity = torch.eye(weight.shape[0], dtype=weight.dtype, device=weight.device)
        return 0.01 * (identity - weight).pow(2).sum()


@dataclass(frozen=True)
class FusionLayer:
    """A fusion layer in the module tree, and its config."""

    module: nn.Module
    config: AdapterFusionConfig


@dataclass(frozen=True)
class FusionStep:
    """The step of a `Fuse` block: run the children from one state, then attend to what each contributed."""

    layer: FusionLayer
    children: tuple[tuple[str | None, Any], ...]
    last: AdapterModule[Any]

    def run(self, state: ResidualState) -> ResidualState:
        state = self.last.prepare(state)
        query = state.query if self.layer.config.query_before_ln or self.last.config.is_parallel else state.h
        updates = [child.run(state).up for _, child in self.children]
        residual = state.res
        assert query is not None and residual is not None
        h = self.layer.module(query, torch.stack(updates, dim=2), residual)
        return replace(state, h=h, up=h - residual, last=self.last)

    def inverse(self) -> Any:
        raise CompositionError("Fuse: what AdapterFusion computes cannot be inverted.")

    def leaves(self) -> Iterator[AdapterModule[Any]]:
        for _, child in self.children:
            yield from child.leaves()

    @property
    def extra_positions(self) -> int:
        return 0
