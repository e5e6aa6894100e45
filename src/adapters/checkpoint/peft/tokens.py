"""TRAINABLE_TOKENS, and `trainable_token_indices` of LORA: rows of the embedding that take the place of the model's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from adapters.checkpoint.peft.modules import Found, Modules
from adapters.checkpoint.peft.options import Option, Options, token_numbers
from adapters.checkpoint.peft.translator import Member, Translator, Written
from adapters.errors import CheckpointError, UnsupportedError
from adapters.methods.trainable_tokens import TrainableTokens, TrainableTokensConfig
from adapters.runtime.engine import Engine
from adapters.sites.site import AffineSite, TableSite

ROWS, AT_ANOTHER = "trainable_tokens_delta", "token_adapter.trainable_tokens_delta"
"""Ends of the names of the rows: of the type's own, and beside an adapter of another type."""


class TrainableTokensTranslator(Translator):
    """y = R[i] for the token t_i = token_indices[i]; the rows serve the output embedding too if it is tied."""

    peft_type = "TRAINABLE_TOKENS"
    methods = (TrainableTokens,)
    site_type = TableSite
    options: ClassVar[Mapping[str, Option]] = {"token_indices": Option(token_numbers)}
    history: ClassVar[frozenset[str]] = frozenset(("init_weights",))
    parts: ClassVar[Mapping[str, str]] = {ROWS: ROWS}

    def read(self, options: Options, found: Sequence[Found], shared: Mapping[str, Tensor]) -> list[Member]:
        return []  # `read` below has taken the rows

    def write(self, modules: Sequence[Any]) -> Written:
        tokens = self.common(modules, "token_indices", lambda module: module.config.token_indices)
        if any(module.common is not modules[0].common for module in modules):
            raise UnsupportedError(f"PEFT trains tokens of one table, and {modules[0].name!r} does so of several.")
        return Written({"token_indices": tokens, "init_weights": True}, {modules[0].site: {ROWS: modules[0].rows}})


def take_out(
    modules: Mapping[str, dict[str, Tensor]],
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """The rows by the paths of their modules, and the tensors of all modules without them."""
    rows = {path: own[ROWS] for path, own in modules.items() if ROWS in own}
    rest = {path: {name: tensor for name, tensor in own.items() if name != ROWS} for path, own in modules.items()}
    return rows, {path: own for path, own in rest.items() if own}


def read(known: Modules, start: str, options: Options, rows: Mapping[str, Tensor]) -> list[Member]:
    """The members for rows that stand at the modules of these paths.

    Raises:
        CheckpointError: they do not fit the numbers in the config or the model, or are of a module that is no table of
            embeddings.
    """
    tables = {path: own for path, own in rows.items() if known.has(path, start)}
    members: list[Member] = []
    for path, own in rows.items():
        if path not in tables:
            if any(own.shape == other.shape and torch.equal(own, other) for other in tables.values()):
                continue  # the output embedding that is tied to it
            raise CheckpointError(
                f"{options.what} trains tokens of {path}, which is no table of embeddings of the base model. Those of "
                "an output embedding can be loaded if it is tied to the input's (tie_word_embeddings)."
            )
        site: Any = known.site(path, start, options.what)
        if any(_shares(site, other) for member in members for other in member.tensors):
            continue  # one of several tables that have the same weights, of which PEFT repeats the rows
        tokens = _tokens(options, path)
        if own.dim() != 2 or own.shape != (len(tokens), site.out_features):
            raise CheckpointError(
                f"{options.what}: the rows of {path} are {tuple(own.shape)}, but its config names {len(tokens)} "
                f"tokens, and the embeddings of this model are {site.out_features} wide."
            )
        if tokens and max(tokens) >= site.in_features:
            raise CheckpointError(
                f"{options.what} trains the token {max(tokens)}, but {path} has {site.in_features} rows here. Call "
                f"model.resize_token_embeddings({max(tokens) + 1}) or with more, as it was done for the training."
            )
        sites: dict[Any, dict[str, Any]] = {other: {} for other in _same(known.engine, site)}
        members.append(Member(TrainableTokensConfig(token_indices=tokens), sites, {"rows": own}))
    return members


def _tokens(options: Options, path: str) -> list[int]:
    given = options["trainable_token_indices"] if "trainable_token_indices" in options else options["token_indices"]
    if isinstance(given, Mapping):
        given = next((own for name, own in given.items() if path == name or path.endswith(f".{name}")), None)
    if given is None:
        raise CheckpointError(f"{options.what} has rows of tokens at {path}, but its config does not say of which.")
    return list(given)


def _shares(one: Any, other: Any) -> bool:
    """Whether two tables have the same weights."""
    return one.module.weight is other.module.weight


def _same(engine: Engine, site: TableSite) -> list[AffineSite]:
    """The tables of tokens that have the weights of this one: PEFT's rows serve all of them."""
    tables = [hooked.site for hooked in engine.hooked if isinstance(hooked.site, TableSite) and hooked.site.role]
    return [table for table in tables if _shares(table, site)] or [site]


def beside(engine: Engine, modules: Sequence[Any]) -> tuple[dict[str, list[int]], dict[AffineSite, Tensor]]:
    """`trainable_token_indices` by name of the module, and the rows, of an adapter that has another method too."""
    indices: dict[str, list[int]] = {}
    rows: dict[AffineSite, Tensor] = {}
    for module in modules:
        site = holder(engine, module.site)
        rows[site] = module.rows
        indices[site.path] = list(module.config.token_indices)
    return indices, rows


def holder(engine: Engine, site: AffineSite) -> AffineSite:
    """The place at which PEFT keeps the rows: the input embedding, as the model names it, if it has these weights."""
    try:
        named = engine.root.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return site
    if named.weight is not site.module.weight:
        return site
    found = (hooked.site for hooked in engine.hooked if hooked.site.module is named)
    return next((own for own in found if isinstance(own, TableSite)), site)
