"""AdapterFusion: attention over the outputs of several adapters.

Paper: Pfeiffer et al. 2021, arXiv:2005.00247.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adapters.call import CALL
from adapters.composition.blocks import Fuse
from adapters.composition.fusion_config import (
    ADAPTERFUSION_CONFIG_MAP,
    DEFAULT_ADAPTERFUSION_CONFIG,
    AdapterFusionConfig,
)
from adapters.composition.owned import Acting, BlockModule, Children, OwnedLayer, widths
from adapters.composition.steps import Step
from adapters.errors import CompositionError
from adapters.methods.base import AdapterModule
from adapters.methods.parts import matched
from adapters.methods.state import ResidualState, State
from adapters.sites.site import Site


class AdapterFusion(BlockModule):
    """One fusion layer.

        scores_i = (W_q q + b_q) . (W_k u_i + b_k) / T      out = sum_i softmax(scores)_i W_v u_i + res

    q [B, S, D] is the hidden state, u [B, S, n, D] the adapters' contributions. There is no 1 / sqrt(D). T is 1, or
    with `temperature` falls from 50 to 1 by 0.05 per training step; it stays as it is in evaluation.

    Behind a residual branch u_i is what bottlenecks add and res what they add it to. Everywhere else q = res = y, what
    leaves the place without the fused adapters, and u_i = out_i - y.

    Paper: Pfeiffer et al. 2021, arXiv:2005.00247.
    """

    block = Fuse
    config_class = AdapterFusionConfig
    presets: ClassVar[Mapping[str, AdapterFusionConfig]] = ADAPTERFUSION_CONFIG_MAP
    default = DEFAULT_ADAPTERFUSION_CONFIG
    ordered = False
    prepares = True
    undecayed = ("value.weight",)
    START, STEP = 50.0, 0.05

    def __init__(self, config: AdapterFusionConfig, site: Site, tap: str, name: str, dropout: float) -> None:
        super().__init__()
        self.config, self.site, self.tap, self.name = config, site, tap, name
        self.dense_size = width = widths(site, tap)[1]
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

    @classmethod
    def load_config(cls, config: Any, block: Any = None) -> AdapterFusionConfig:
        return AdapterFusionConfig.load(config)

    @classmethod
    def block_of(cls, names: Sequence[str | None], config: Any, name: str | None) -> Fuse:
        return Fuse(*names, name=name)

    @classmethod
    def stands(cls, acting: Acting, old: bool) -> bool:
        return all(one is not None and not one.unmixable and (one.fused_before or not old) for one in acting)

    @classmethod
    def refusal(cls, acting: Acting) -> str | None:
        there = [one for one in acting if one is not None]
        if there[-1].fuses_as_first:
            return None
        if len(there) < len(acting):
            return f"only {', '.join(repr(one.name) for one in there)} of them acts there"
        return next((f"{one.name!r} {one.unmixable}" for one in there if one.unmixable), None)

    @classmethod
    def build(cls, config: AdapterFusionConfig, acting: Acting, name: str, model_config: Any) -> AdapterFusion:
        first = next(one for one in acting if one is not None)
        dropout = float(getattr(model_config, "attention_probs_dropout_prob", 0.0) or 0.0)
        return cls(config, first.site, first.tap, name, dropout)

    @classmethod
    def step(cls, block: Any, children: Children, layer: OwnedLayer | None, masked: bool) -> Step | None:
        kept = tuple(child for child in children if child is not None)
        last = [leaf for child in kept for leaf in child.leaves()][-1]
        if layer is not None:
            return FusionStep(layer, kept, last)
        if last.fuses_as_first:
            return children[0]
        raise CompositionError(
            f"{block!r}: there is no fusion layer {block.name!r} at {last.site.role or last.site.path} of layer "
            f"{last.site.layer}, where adapter {last.name!r} ({type(last).__name__}) acts. "
            + (
                f"None can be there: it {last.unmixable}."
                if last.unmixable
                else "AdapterFusion has layers where all fused adapters act: add it anew with add_adapter_fusion"
                + (", to all adapters." if len(kept) == len(block) else ", of adapters that act at the same places.")
            )
            + " Or use Stack, Average, Parallel or BatchSplit."
        )

    def forward(self, query: Tensor, updates: Tensor, residual: Tensor) -> Tensor:
        """Combine `updates` [..., n, D], asked by `query` [..., D]; returns [..., D] with the residual added."""
        config, dtype, like = self.config, residual.dtype, next(self.parameters())
        query, updates, residual = (matched(t, like) for t in (query, updates, residual))
        keys = updates if self.key is None else self.key(updates)
        values = updates + residual[..., None, :] if config.residual_before else updates
        if self.value is not None and config.value_before_softmax:
            values = self.value(values)
        asked = query if self.query is None else self.query(query)
        scores = torch.einsum("...d,...nd->...n", asked, keys) / self._next_temperature()
        attention = torch.softmax(self.dropout(scores), dim=-1)
        self.record(self.name, self.site, self.tap, attention)
        context = torch.einsum("...n,...nd->...d", attention, values)
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

    def auxiliary_loss(self) -> Tensor | float:
        """0.01 * ||I - W_v||^2, which keeps values near the adapters' own outputs; 0 without values."""
        if self.value is None or not self.value.weight.requires_grad:
            return 0.0
        weight = self.value.weight
        identity = torch.eye(weight.shape[0], dtype=weight.dtype, device=weight.device)
        return 0.01 * (identity - weight).pow(2).sum()


@dataclass(frozen=True)
class FusionStep:
    """The step of a `Fuse` block: run the children from one state, then attend to what each contributed."""

    layer: OwnedLayer
    children: tuple[Step, ...]
    last: AdapterModule[Any]

    def run(self, state: Any) -> Any:
        state = self.last.prepare(state)
        parts = [child.run(state) for child in self.children]
        return self._branch(state, parts) if isinstance(state, ResidualState) else self._place(state, parts)

    def _branch(self, state: ResidualState, parts: Sequence[ResidualState]) -> ResidualState:
        """Behind a residual branch: what bottlenecks add, before dropout, gate and residual."""
        query = state.query if self.layer.config.query_before_ln or self.last.config.is_parallel else state.h
        residual = state.res
        assert query is not None and residual is not None
        h = self.layer.module(query, torch.stack([part.up for part in parts], dim=-2), residual)  # type: ignore[misc]
        return replace(state, h=h, up=h - residual, last=self.last)

    def _place(self, state: State, parts: Sequence[State]) -> State:
        """Everywhere else: what leaves the place, compared with what leaves it without them."""
        before = state.output
        updates = torch.stack([part.output - before for part in parts], dim=-2)
        return state.with_output(self.layer.module(before, updates, before), parts)

    def inverse(self) -> Any:
        raise CompositionError("Fuse: what AdapterFusion computes cannot be inverted.")

    def leaves(self) -> Iterator[AdapterModule[Any]]:
        for child in self.children:
            yield from child.leaves()

    @property
    def extra_positions(self) -> int:
        return 0

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(child.needs for child in self.children))
