"""Routing: gates that choose among adapters, learned or made of the adapters themselves.

Papers: Shazeer et al. 2017, arXiv:1701.06538; Fedus et al. 2021, arXiv:2101.03961; Ostapenko et al. 2024,
arXiv:2405.11157 (Arrow).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adapters.call import CALL, attended, attended_mean
from adapters.composition.blocks import Route
from adapters.composition.owned import Acting, BlockModule, Children, OwnedLayer, widths
from adapters.composition.routing_config import DEFAULT_ROUTING_CONFIG, ROUTING_CONFIG_MAP, RoutingConfig
from adapters.composition.steps import Adapter, Mixed
from adapters.errors import CompositionError, ConfigError
from adapters.methods.base import AdapterModule, once_per_prompt
from adapters.methods.derived import Derived
from adapters.methods.parts import call, matched
from adapters.methods.state import State
from adapters.sites.site import Site, TableSite


class AdapterRouting(BlockModule):
    """The gates of a `Route` block at one place, before the softmax.

        by token: W x + b                     by sequence: W mean(x) + b, over the attended positions of x

    W [n, D], b [n], for n children; x [B, S, D] is what the adapters read there: the input of a linear map or of a
    residual branch, hidden states, the input of an attention. W starts from N(0, 0.02), b from 0. Gates by sequence are
    computed once for a prompt while generating.
    """

    block = Route
    config_class = RoutingConfig
    presets: ClassVar[Mapping[str, RoutingConfig]] = ROUTING_CONFIG_MAP
    default = DEFAULT_ROUTING_CONFIG
    optional = True
    loss_of_call = True

    def __init__(self, config: RoutingConfig, site: Site, tap: str, name: str, children: int) -> None:
        super().__init__()
        self.config, self.site, self.tap, self.name = config, site, tap, name
        self.gate = nn.Linear(widths(site, tap)[0], children)
        nn.init.normal_(self.gate.weight, std=0.02)
        nn.init.zeros_(self.gate.bias)

    @classmethod
    def load_config(cls, config: Any, block: Any = None) -> RoutingConfig:
        if block is None:
            return RoutingConfig.load(config)
        if block.owned_name is None:
            raise ConfigError(f"{block!r} has by={block.by!r}, which has no weights. Activate it as it is.")
        if isinstance(config, Mapping) and not isinstance(config, RoutingConfig):
            config = {"by": block.by, **config}
        found = RoutingConfig.load(config)
        if config and found.by != block.by:
            raise ConfigError(f"{block!r} has by={block.by!r}, but the config {config!r} says {found.by!r}.")
        return found.replace(by=block.by, top_k=block.top_k)

    @classmethod
    def block_of(cls, names: Sequence[str | None], config: Any, name: str | None) -> Route:
        return Route(*names, by=config.by, top_k=config.top_k, name=name)

    @classmethod
    def check_block(cls, block: Any, config: Any) -> None:
        if block.by != config.by:
            raise CompositionError(
                f"{block!r} has by={block.by!r}, but the routing {block.name!r} was made with by={config.by!r}."
            )

    @classmethod
    def stands(cls, acting: Acting, old: bool) -> bool:
        return not any(isinstance(one.site, TableSite) for one in acting if one is not None)

    @classmethod
    def build(cls, config: RoutingConfig, acting: Acting, name: str, model_config: Any) -> AdapterRouting:
        first = next(one for one in acting if one is not None)
        return cls(config, first.site, first.tap, name, len(acting))

    @classmethod
    def step(cls, block: Any, children: Children, layer: OwnedLayer | None, masked: bool) -> Routed:
        first = next(leaf for child in children if child is not None for leaf in child.leaves())
        where = f"{first.site.role or first.site.path} of layer {first.site.layer}"
        if block.by == "arrow":
            return Routed(block, children, masked, Arrow(members_of(block, children, where)), first)
        if block.by == "token" and any(child.extra_positions for child in children if child is not None):
            raise CompositionError(
                f"{block!r} gives every token its gates, but {first.name!r} puts positions of its own in front of the "
                "sequence. Use by='sequence'."
            )
        if layer is None and isinstance(first.site, TableSite):
            raise CompositionError(
                f"{block!r} has no gates at {first.site.path}, where {first.name!r} acts: a table of embeddings reads "
                "numbers of tokens, which say nothing to gates. Use Average, Parallel or BatchSplit, or adapters that "
                "leave the table out (places)."
            )
        if layer is None:
            raise CompositionError(
                f"{block!r}: the routing {block.name!r} has no gates at {where}, where {first.name!r} acts. Gates are "
                "added where the last adapters of its children act: add it anew with overwrite_ok=True if they act at "
                "other places now."
            )
        return Routed(block, children, masked, layer.module, first)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(["mask"]) if self.config.by == "sequence" or self.config.balance else frozenset()

    def forward(self, x: Tensor) -> Tensor:
        """The gates before the softmax, [B, S, n] or by sequence [B, 1, n], for x [B, S, D]."""
        if self.config.by == "sequence":
            return once_per_prompt(self, x, self._of_sequence)
        return call(self.gate, matched(x, self.gate.weight))

    def _of_sequence(self, x: Tensor) -> Tensor:
        return call(self.gate, attended_mean(matched(x, self.gate.weight)))

    def adds_loss(self) -> bool:
        return bool(self.config.balance) and any(p.requires_grad for p in self.parameters())

    def auxiliary_loss(self) -> Tensor | float:
        """balance * n * sum_i f_i P_i of the last call, once for each time the gates were used in it."""
        losses = [loss for module, loss in CALL.now.losses if module is self]
        return sum(losses, 0.0)


@dataclass(frozen=True)
class Routed(Mixed):
    """The mean of what the children compute, weighted by gates that depend on the input."""

    gates: Callable[[Tensor], Tensor]
    first: AdapterModule[Any]
    backwards: bool = False
    """Whether this is the inverse, in front of the output embedding: its gates are no choice of their own."""

    def run(self, state: State) -> State:
        block: Any = self.block
        logits = self.gates(state.entrance)
        gates = top_k_softmax(logits, block.top_k)
        if not self.backwards:
            AdapterRouting.record(block.name, self.first.site, self.first.tap, gates)
            if (module := self._balanced()) is not None and torch.is_grad_enabled():
                CALL.now.losses.append((module, module.config.balance * balance_loss(logits, block.top_k)))
        weights = gates.to(state.carrier.dtype).split(1, dim=-1)
        return type(state).mean(self.apply([state] * len(self.children)), weights)

    def inverse(self) -> Routed:
        inverted = super().inverse()
        assert isinstance(inverted, Routed)
        return dataclasses.replace(inverted, backwards=True)

    def _balanced(self) -> AdapterRouting | None:
        """The gates, if they are in training with a loss of their own."""
        gates = self.gates
        return gates if isinstance(gates, AdapterRouting) and gates.training and gates.config.balance else None

    @property
    def needs(self) -> frozenset[str]:
        own: frozenset[str] = getattr(self.gates, "needs", frozenset())
        return super().needs | own | {"hidden"}


def top_k_softmax(logits: Tensor, top_k: int | None) -> Tensor:
    """softmax over the k largest of logits [..., n], 0 elsewhere; over all of them without k."""
    if top_k is None or top_k >= logits.shape[-1]:
        return logits.softmax(-1)
    largest, index = logits.topk(top_k, dim=-1)
    return torch.full_like(logits, float("-inf")).scatter(-1, index, largest).softmax(-1)


def balance_loss(logits: Tensor, top_k: int | None) -> Tensor:
    """n * sum_i f_i P_i over attended tokens (sequences): 1 where adapters are used alike, n where one is for all.

    f_i is the share of choices that fall on adapter i, of the k adapters with the largest gates (1 without k), P_i the
    mean of softmax(logits)_i. Paper: Fedus et al. 2021, arXiv:2101.03961, equation 4.

    Args:
        logits: Gates before the softmax, [B, S, ..., n].
        top_k: k.
    """
    n = logits.shape[-1]
    k = min(top_k or 1, n)
    shares = logits.softmax(-1)
    chosen = torch.zeros_like(shares).scatter(-1, logits.topk(k, dim=-1).indices, 1 / k)
    if logits.dim() > 3:
        chosen, shares = (t.flatten(2, -2).mean(2) for t in (chosen, shares))
    mask = attended(*logits.shape[:2]) if logits.shape[1] > 1 else None
    if mask is None:
        f, p = chosen.mean((0, 1)), shares.mean((0, 1))
    else:
        counted = mask[..., None].to(shares.dtype)
        f, p = ((t * counted).sum((0, 1)) / counted.sum().clamp(min=1) for t in (chosen, shares))
    return n * (f * p).sum()


class Arrow:
    """Scores |x . v_i|, where v_i is the direction of inputs that the update of adapter i enlarges most.

    v_i [I] is the first right singular vector of its matrix. Nothing is learned.

    Paper: Ostapenko et al. 2024, arXiv:2405.11157.
    """

    def __init__(self, members: Sequence[AdapterModule[Any]]) -> None:
        self.members = tuple(members)
        self._directions = Derived(self._compute, *(source for m in members for source in m.sources()))

    def __call__(self, x: Tensor) -> Tensor:
        """[B, S, n] for x [B, S, I]."""
        directions: Tensor = self._directions()
        return (matched(x, directions) @ directions.t()).abs()

    def _compute(self) -> Tensor:
        return torch.stack([member.direction() for member in self.members])


def members_of(block: Route, children: Children, where: str) -> list[AdapterModule[Any]]:
    """The adapters of a block by="arrow" at one place. Raises CompositionError if one of them has no direction."""
    members = []
    for name, child in zip(block, children):
        if not isinstance(child, Adapter) or not child.module.directed:
            raise CompositionError(
                f"{block!r} compares inputs with the weight updates of all its adapters, but at {where} {name!r} has "
                "none. Use adapters that update the same linear maps, such as LoRA, or by='token'."
            )
        members.append(child.module)
    return members
