"""PEFT's side: the same methods with the same weights, where it has the method."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.models import Shape, drawn

warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
warnings.filterwarnings("ignore", message="Adapter name .* should not be contained in the prefix")

TARGETS = {
    "bert": {"q": "query", "k": "key", "v": "value", "intermediate": "intermediate.dense"},
    "llama": {"q": "q_proj", "k": "k_proj", "v": "v_proj", "intermediate": "down_proj"},
}
METHODS = ("lora", "ia3", "dora", "prefix")
SAME_OUTPUT = ("lora", "ia3", "dora")
"""Prefix tuning differs by design: PEFT's prefix sits in the cache, and moves the positions that follow."""


def config(method: str, shape: Shape, layers: list[int] | None = None) -> Any:
    """PEFT's config that means what our default means."""
    import peft

    t = TARGETS[shape.family]
    options: dict[str, Any] = {} if layers is None else {"layers_to_transform": layers}
    if method in ("lora", "dora"):
        return peft.LoraConfig(r=8, lora_alpha=8, target_modules=[t["q"], t["v"]], use_dora=method == "dora", **options)
    if method == "ia3":
        return peft.IA3Config(target_modules=[t["k"], t["v"], t["intermediate"]], feedforward_modules=[])
    task = "FEATURE_EXTRACTION" if shape.family == "bert" else "CAUSAL_LM"
    return peft.PrefixTuningConfig(num_virtual_tokens=30, task_type=task)


def adapted(
    model: PreTrainedModel, method: str, shape: Shape, names: Iterable[str] = ("main",), layers: list[int] | None = None
) -> Any:
    """A PEFT model with adapters of one method, in evaluation mode; the first is active."""
    import peft

    first, *others = names
    found = peft.get_peft_model(model, config(method, shape, layers), adapter_name=first)
    for name in others:
        found.add_adapter(name, config(method, shape, layers))
    for name in (first, *others):
        randomise(found, name)
    found.set_adapter(first)
    return found.eval()


@torch.no_grad()
def randomise(model: Any, name: str) -> None:
    """The random weights that `ours.randomise` gives an adapter of the same name."""
    for path, parameter in model.get_base_model().named_parameters():
        for kind, ending in (("lora_A", f".{name}.weight"), ("lora_B", f".{name}.weight"), ("ia3_l", f".{name}")):
            site, found, rest = path.partition(f".{kind}")
            if found and rest == ending:
                role = "lora_B" if kind == "ia3_l" else kind
                values = drawn(f"{name} {site} {role}", parameter)
                parameter.copy_(1 + values if kind == "ia3_l" else values)
