"""Our side: models with adapters whose weights are random, so that "equal outputs" says something."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from transformers import PreTrainedModel

import adapters
from benchmarks.models import drawn

CONFIGS: dict[str, Any] = {
    "lora": "lora",
    "seq_bn": "seq_bn",
    "double_seq_bn": "double_seq_bn",
    "ia3": "ia3",
    "prefix": "prefix_tuning",
    "dora": "dora",
    "compacter": "compacter[reduction_factor=16]",
    "loreft": "loreft",
}
"""Name in the tables -> config, with defaults; only compacter's factor of 32 would leave the tiny model too little."""


def adapted(model: PreTrainedModel, method: Any, names: Iterable[str] = ("main",), **options: Any) -> Any:
    """`model` with adapters of one method, in evaluation mode, none of them active."""
    adapted: Any = adapters.init(model)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        for name in names:
            adapted.add_adapter(name, config=config(method, **options))
            randomise(adapted, name)
    return adapted.eval()


def config(method: Any, **options: Any) -> Any:
    """The config of a method, with changes."""
    return adapters.AdapterConfig.load(CONFIGS.get(method, method), **options)


@torch.no_grad()
def randomise(model: Any, name: str) -> None:
    """Replace initial values that make an adapter do nothing by random ones."""
    paths = {id(module): path for path, module in model.named_modules()}
    for part in model._engine.parts[name]:
        site = paths.get(id(part.hooked.site.module), "") if part.hooked else part.path
        for parameter_name, parameter in part.module.named_parameters():
            key = f"{name} {site} {parameter_name}"
            if parameter_name.startswith("lora_") and type(part.module).__name__ == "IA3":
                parameter.copy_(1 + drawn(key, parameter))
            elif parameter_name.startswith("lora_"):
                parameter.copy_(drawn(key, parameter))
            elif parameter.requires_grad and "parametrizations" not in parameter_name and parameter_name != "m.weight":
                parameter.add_(drawn(key, parameter, 0.02))


def tensor_bytes(model: Any, name: str) -> int:
    """Bytes of all tensors of an adapter."""
    tensors = {id(t): t for part in model._engine.parts[name] for t in part.module.state_dict(keep_vars=True).values()}
    return sum(t.numel() * t.element_size() for t in tensors.values())
