"""How do the gates of a `Route` block learn? Their config and the presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from adapters.composition.block_config import BlockConfig
from adapters.methods.config import Rule, integer, nothing, number, one_of


@dataclass(eq=False)
class RoutingConfig(BlockConfig):
    """Hyperparameters of the gates of one `Route` block.

        g = softmax over the top_k largest of W x + b

    Papers: Shazeer et al. 2017, arXiv:1701.06538 (top-k gates); Fedus et al. 2021, arXiv:2101.03961 (balance).

    Args:
        by: What gets gates of its own: a "token", or a "sequence", whose x is the mean over its attended positions.
        top_k: How many adapters a token or sequence may use, a count; None for all. For set-ups that are made from this
            config; a `Route` block that is given says so itself.
        balance: Weight of the loss that spreads tokens (sequences) over the adapters, at least 0; 0 leaves it out. See
            `get_routing_balance_loss`.
    Raises:
        ConfigError: a value is of another type or outside its range.
    """

    by: str = "token"
    top_k: int | None = None
    balance: float = 0.0

    noun: ClassVar[str] = "routing"
    rules: ClassVar[Mapping[str, Rule]] = {
        "by": one_of("token", "sequence"),
        "top_k": nothing | integer(1),
        "balance": number(0),
    }

    @classmethod
    def load(cls, config: Any = None, **kwargs: Any) -> RoutingConfig:
        """Finds a config by whatever names it.

        Args:
            config: A RoutingConfig, its dict, "token" or "sequence"; by default "token".
            kwargs: Fields to change in the config; those that are None are ignored.
        Raises:
            ConfigError: nothing is known under this name, or a value is not allowed.
        """
        return RoutingConfig.found(config, ROUTING_CONFIG_MAP, DEFAULT_ROUTING_CONFIG, kwargs)


ROUTING_CONFIG_MAP: dict[str, RoutingConfig] = {
    "token": RoutingConfig(),
    "sequence": RoutingConfig(by="sequence"),
}
DEFAULT_ROUTING_CONFIG = "token"
