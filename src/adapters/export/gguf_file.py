"""LoRA in a GGUF file, as llama.cpp reads it (`--lora adapter.gguf`)."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from adapters.errors import UnsupportedError
from adapters.export.low_rank import LowRank
from adapters.runtime.engine import Engine
from adapters.sites.site import LinearSite

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "granite": "granite",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
    "gpt2": "gpt2",
    "starcoder2": "starcoder2",
}
"""Model type -> its architecture in llama.cpp."""

INTERLEAVED = ("llama", "granite")
"""Architectures whose rotary embedding turns neighbours there, where here the halves of a head are turned: so the rows
of q and k stand in another order in their files."""

FILE = "adapter.gguf"


def write_gguf(engine: Engine, found: LowRank, folder: Path) -> None:
    """Write `adapter.gguf`: tensors `blk.N.attn_q.weight.lora_a` [r, I] and `.lora_b` [O, r] in 32 bit, alpha = r.

    Raises:
        UnsupportedError: this model type, or one of its linear maps, has no name in llama.cpp that we know; or the
            package `gguf` is not installed.
    """
    try:
        gguf: Any = import_module("gguf")
    except ImportError:
        raise UnsupportedError("Files for llama.cpp need the package gguf: pip install gguf") from None
    config: Any = engine.root.config
    model_type: str = config.model_type
    if model_type not in ARCHITECTURES:
        raise UnsupportedError(
            f"We do not know how llama.cpp names the tensors of {model_type!r}. Known are: {', '.join(ARCHITECTURES)}. "
            "Or merge the adapter (merge_adapter), save the model and convert it with llama.cpp's own script."
        )
    architecture = ARCHITECTURES[model_type]
    key = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    names, start = gguf.get_tensor_name_map(key, config.num_hidden_layers), above_base(engine)
    tensors: dict[str, Tensor] = {}
    for site, factors in found.maps.items():
        name = names.get_name(f"{start}{site.path}")
        if name is None:
            raise UnsupportedError(f"llama.cpp has no name for {site.path} in models of type {model_type!r}.")
        b = _interleaved(engine, site, factors.b) if architecture in INTERLEAVED else factors.b
        tensors |= {f"{name}.weight.lora_a": factors.a, f"{name}.weight.lora_b": b}
    writer = gguf.GGUFWriter(folder / FILE, architecture)
    try:
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", float(found.rank))
        for name, tensor in tensors.items():
            writer.add_tensor(name, tensor.contiguous().cpu().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def above_base(engine: Engine) -> str:
    """What stands in front of the base model's paths in a causal language model, which is what engines load."""
    return f"{engine.base.base_model_prefix}."


def _interleaved(engine: Engine, site: LinearSite, b: Tensor) -> Tensor:
    """The rows of B [O, r] of q or k, those of a head (x_0 x_1 .. y_0 y_1 ..) as x_0 y_0 x_1 y_1 ..; B of others."""
    config: Any = engine.root.config
    heads = {"attn.q": config.num_attention_heads, "attn.k": config.num_key_value_heads}.get(site.role)
    return b if heads is None else b.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
