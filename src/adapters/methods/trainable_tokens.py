"""Trainable tokens: some rows of the embedding, trained in place of the model's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.errors import ConfigError, UnsupportedError
from adapters.methods.base import LinearAdapter, MethodModule
from adapters.methods.config import AdapterConfig, PlacedConfig, Rule, integer, list_of
from adapters.methods.state import LinearState
from adapters.sites.linear import weight_of
from adapters.sites.site import TableSite


@dataclass(eq=False)
class TrainableTokensConfig(PlacedConfig):
    """Trains the embeddings of some tokens, such as new ones of a tokenizer, and leaves all others as they are.

        y = R[i] if the token is t_i, else W[token]

    Paper: Gal et al. 2022 (textual inversion), arXiv:2208.01618. Fields as in `PlacedConfig`.

    Args:
        token_indices: Numbers t of the tokens, each once, below the size of the vocabulary; at least one.
    Raises:
        ConfigError: a value is of another type, or a token is named twice.
    """

    architecture: str | None = "trainable_tokens"
    places: str | list[str] = field(default_factory=lambda: ["embed"])
    token_indices: list[int] = field(default_factory=list)

    rules: ClassVar[Mapping[str, Rule]] = {**PlacedConfig.rules, "token_indices": list_of(integer(0))}

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.token_indices)) != len(self.token_indices):
            raise self._error("token_indices", "Name each token once.")


class Rows(MethodModule):
    """R [n, D]: the embeddings of the tokens, which start as those of the model; one for all tables of its weights."""

    def __init__(self, site: TableSite, tokens: list[int]) -> None:
        super().__init__()
        self.site, self.tokens = site, tokens
        self.rows = nn.Parameter(torch.empty(len(tokens), site.out_features))
        if not self.rows.is_meta:
            with torch.no_grad():
                self.rows.copy_(self.resting_value("rows"))

    def resting_value(self, name: str) -> Tensor:
        return weight_of(self.site.module).t()[self.tokens]


class TrainableTokens(LinearAdapter):
    """Embeddings of some tokens in place of those of the model.

        y = c * R[i] if the token is t_i, else c * W[token]         logits of t_i = R[i] h + b

    R is [n, D]; c is what the table multiplies by. The second formula holds where the output embedding has the weights
    of the table (tied). In a `Stack` the last adapter with a row for a token counts.

    Paper: Gal et al. 2022 (textual inversion), arXiv:2208.01618.
    """

    paper = "arXiv:2208.01618"
    config_class = TrainableTokensConfig
    titles: ClassVar[Mapping[str, str]] = {"trainable_tokens": "Trainable tokens"}
    presets: ClassVar[Mapping[str, AdapterConfig]] = {"trainable_tokens": TrainableTokensConfig()}
    site_type = TableSite
    container = "trainable_tokens"
    shared_container = "trainable_token_rows"
    looks_up = acts_tied = True
    directed = False
    unmixable = "acts at a table of embeddings, which reads numbers that say nothing of a mixture"
    site: TableSite

    def __init__(self, config: TrainableTokensConfig, site: TableSite, name: str) -> None:
        super().__init__(config, site, name)
        if (highest := max(config.token_indices, default=0)) >= site.in_features:
            raise ConfigError(
                f"token_indices has {highest}, but {site.path} has {site.in_features} rows. Allowed: 0 to "
                f"{site.in_features - 1}. Call resize_token_embeddings first if the tokens are new."
            )

    @classmethod
    def check_new(cls, config: TrainableTokensConfig, site: TableSite) -> None:
        if not config.token_indices:
            raise ConfigError(
                "token_indices names no token. Give the numbers of those that are to be trained: "
                "TrainableTokensConfig(token_indices=[32000, 32001])."
            )

    @classmethod
    def shared(cls, config: TrainableTokensConfig, sites: list[TableSite]) -> nn.Module:
        first = sites[0]
        if other := next((site for site in sites if site.module.weight is not first.module.weight), None):
            raise UnsupportedError(
                f"{other.path} and {first.path} have weights of their own, and trained tokens have one row in all "
                "tables. Give each its own config in a union."
            )
        return Rows(first, [t for t in config.token_indices if t < first.in_features])

    @property
    def rows(self) -> Tensor:
        """R."""
        common: Any = self.common
        return common.tensor("rows")  # type: ignore[no-any-return]

    def run(self, state: LinearState) -> LinearState:
        return state.replaced(self(state.x, state.result(), state.y))

    def forward(self, x: Tensor, y: Tensor, before: Tensor | None = None) -> Tensor:
        """The embeddings y [B, S, D] of the tokens x [B, S, 1]; or the logits y [B, S, V] of hidden states x.

        `before` are the logits of the model alone, where they are not y.
        """
        tokens = torch.tensor(self.config.token_indices, device=x.device)
        if x.is_floating_point():
            change = self.rows - self.site.module.get_parameter("weight")[tokens]
            logits = (y if before is None else before)[..., tokens] + F.linear(x, change.to(x.dtype))
            return y.index_copy(-1, tokens, logits.to(y.dtype))
        chosen = x == tokens
        rows = chosen.to(self.rows.dtype) @ self.rows * self.site.factor  # one 1 a row at most: nothing is rounded
        return torch.where(chosen.any(-1, keepdim=True), rows.to(y.dtype), y)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        tokens = torch.tensor(self.config.token_indices, device=weight.device)
        return weight.index_copy(1, tokens, self.rows.t().to(weight)), bias
