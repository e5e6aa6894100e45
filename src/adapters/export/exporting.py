"""An adapter as LoRA in this model, and in the files of other engines."""

from __future__ import annotations

import logging
from typing import Any

import torch

from adapters.checkpoint.full_model import is_replaced
from adapters.checkpoint.layout import PathLike
from adapters.checkpoint.together import saving_of
from adapters.errors import ConfigError, ShardingError
from adapters.export.low_rank import LowRank, low_rank
from adapters.export.merged import write_merged
from adapters.export.targets import MERGED, check, target_of
from adapters.methods.lora import LoRAConfig
from adapters.runtime.engine import Engine
from adapters.sharding import gathered, sharing

logger = logging.getLogger(__name__)


def to_lora(model: Any, name: str, new_name: str, rank: int | None = None) -> dict[str, float]:
    """Add what `low_rank` finds of the adapter `name` as the adapter `new_name`; its errors by path."""
    engine: Engine = model._engine
    found = low_rank(engine, name, rank)
    model.add_adapter(new_name, config=_config(found))
    with torch.no_grad():
        for part in engine.parts[new_name]:
            module: Any = part.module
            factors = found.maps[module.site]
            module.lora_A.copy_(factors.a)
            module.lora_B.copy_(factors.b)
            if module.bias is not None and factors.bias is not None:
                module.bias.copy_(factors.bias)
    return dict(found.errors)


def _config(found: LowRank) -> LoRAConfig:
    places = [f"{site.address}.whole" if site.parts else site.address for site in found.maps]
    biased = any(factors.bias is not None for factors in found.maps.values())
    return LoRAConfig(r=found.rank, alpha=found.rank, dropout=0.0, places=places, use_bias=biased)


def export_adapter(model: Any, folder: PathLike, name: str, target: str, rank: int | None = None) -> dict[str, float]:
    """Write the adapter `name` for an engine, or merged; the errors of its updates by path."""
    engine: Engine = model._engine
    if target == MERGED:
        if rank is not None:
            raise ConfigError(f"rank={rank!r} has no meaning for a merged model, which holds all of an adapter.")
        if sharing(model) is not None:
            raise ShardingError(
                "A model whose parameters are spread over processes is not exported as a whole. Save the adapter, and "
                "export it in one process."
            )
        with saving_of(model, folder, lambda path: is_replaced(path, None, False)) as path:
            write_merged(engine, name, path)
        return {}
    goal = target_of(target)
    with gathered(part.module for part in engine.parts[name]):
        found = low_rank(engine, name, rank)
    check(engine, name, found, goal)
    with saving_of(model, folder) as path:
        goal.write(engine, found, path)
    if not found.exact:
        worst = max(found.errors, key=found.errors.__getitem__)
        logger.warning(
            "%r is no LoRA of rank %d: at %s, the worst of %d linear maps, %.2g of its update is left out.",
            *(name, found.rank, worst, len(found.errors), found.errors[worst]),
        )
    return dict(found.errors)
