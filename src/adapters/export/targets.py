"""Engines that load LoRA, and what each of them accepts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from adapters.checkpoint.layout import PEFT
from adapters.checkpoint.peft.modules import short_names
from adapters.checkpoint.tensors import write_checkpoint
from adapters.errors import UnsupportedError
from adapters.export.gguf_file import above_base, write_gguf
from adapters.export.low_rank import LowRank
from adapters.runtime.engine import Engine
from adapters.sites.site import LinearSite


@dataclass(frozen=True)
class Target:
    """An engine.

    Attributes:
        title: Its name, for errors.
        write: Writes the files into a folder.
        max_rank: The highest rank that it loads; None for any.
    """

    title: str
    write: Callable[[Engine, LowRank, Path], None]
    max_rank: int | None = None


def check(engine: Engine, name: str, found: LowRank, target: Target) -> None:
    """Raise UnsupportedError if an engine cannot load what was found of the adapter `name`."""
    why = None
    outside = [site.path for site in found.maps if site.layer < 0]
    biased = [site.path for site, factors in found.maps.items() if factors.bias is not None]
    if target.max_rank is not None and found.rank > target.max_rank:
        why = f"its rank is {found.rank}, and {target.max_rank} is the highest there. Give a lower one: rank=..."
    elif biased:
        why = f"it changes the bias of {biased[0]}, and a LoRA there has none"
    elif outside:
        why = f"it changes {outside[0]}, and a LoRA there changes linear maps of the layers only"
    if why is not None:
        raise UnsupportedError(
            f"{target.title} cannot load {name!r}: {why}. "
            f"Or export the whole model with the adapter in its weights: target='merged'."
        )


def _tensors(engine: Engine, found: LowRank, a: str, b: str, start: str = "") -> dict[str, Tensor]:
    prefix = above_base(engine)
    result = {}
    for site, factors in found.maps.items():
        result[f"{start}{prefix}{site.path}.{a}"] = factors.a
        result[f"{start}{prefix}{site.path}.{b}"] = factors.b
    return result


def _base(engine: Engine) -> str | None:
    return getattr(engine.root.config, "name_or_path", None) or None


def _write_peft(engine: Engine, found: LowRank, folder: Path) -> None:
    """PEFT's files within the rules of vLLM and SGLang: one rank, one alpha, no pattern, no head, no bias, no DoRA."""
    prefix = above_base(engine)
    names = {f"{prefix}{site.path}" for site in found.maps}
    others = {f"{prefix}{name}" for name, _ in engine.base.named_modules()} - names
    options = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": _base(engine),
        "inference_mode": True,
        "r": found.rank,
        "lora_alpha": found.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_dora": False,
        "use_rslora": False,
        "modules_to_save": None,
        "target_modules": short_names(names, others),
    }
    tensors = _tensors(engine, found, "lora_A.weight", "lora_B.weight", "base_model.model.")
    write_checkpoint(folder, PEFT, options, tensors, use_safetensors=True)


def _write_mlx(engine: Engine, found: LowRank, folder: Path) -> None:
    """adapters.safetensors and adapter_config.json of mlx-lm, which multiplies x A B with A [I, r] and B [r, O]."""
    from safetensors.torch import save_file

    keys = sorted({_inside(site) for site in found.maps})
    layers = {site.layer for site in found.maps}
    depth = 1 + max(site.layer for site in engine.sites if isinstance(site, LinearSite))
    options = {
        "fine_tune_type": "lora",
        "model": _base(engine),
        "num_layers": depth - min(layers),
        "lora_parameters": {"rank": found.rank, "scale": 1.0, "dropout": 0.0, "keys": keys},
    }
    tensors = _tensors(engine, found, "lora_a", "lora_b")
    save_file({key: tensor.T.contiguous() for key, tensor in tensors.items()}, folder / "adapters.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(options, indent=2) + "\n", encoding="utf-8")


def _inside(site: LinearSite) -> str:
    """The path of a linear map inside of its layer."""
    parts = site.path.split(".")
    return ".".join(parts[parts.index(str(site.layer)) + 1 :]) if str(site.layer) in parts else site.path


TARGETS: Mapping[str, Target] = {
    "vllm": Target("vLLM", _write_peft, max_rank=512),
    "sglang": Target("SGLang", _write_peft),
    "llama.cpp": Target("llama.cpp", write_gguf),
    "mlx": Target("MLX", _write_mlx),
}
"""Name of a target -> the engine."""


MERGED = "merged"
"""Name of the target that is no engine: the whole model, with the adapter in its weights (`merged.py`)."""


def target_of(name: Any) -> Target:
    """The engine of this name. Raises UnsupportedError with the names there are."""
    if name not in TARGETS:
        raise UnsupportedError(
            f"target={name!r} is none of {', '.join((*TARGETS, MERGED))}. For PEFT use "
            "save_adapter(..., format='peft')."
        )
    return TARGETS[name]
