"""The process behind `load_check`: reads a folder, builds a random model, loads the adapter, prints one line of JSON.

    python -m adapterhub.checks.load_worker FOLDER BYTES SECONDS

It is the only module of the hub that imports torch, and does so after its limits are set.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..content.safetensors import header_length, parse_header
from ..facts.configs import find_named
from .tensors import Header, hidden_sizes, shared_keys

__all__ = ["main"]

_FEW = 2  # layers are enough to see whether tensors have their places
_VOCABULARY = 1024
_DEPTHS = ("num_hidden_layers", "encoder_layers", "decoder_layers", "num_layers", "num_decoder_layers")
_HEADS = ("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads", "num_heads")
_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")


def main(arguments: list[str]) -> None:
    """Sets the limits, tries, and prints what came of it."""
    folder, memory, seconds = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    for limit, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 1 << 20),
    ):
        resource.setrlimit(limit, (value, value))
    print(json.dumps(_try(folder)), flush=True)


def _try(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "adapter_config.json").read_text())
    model_type = config.get("model_type")
    if config.get("peft_type") or not isinstance(model_type, str):
        return {"skipped": "the config does not tell the model's architecture."}
    tensors = _header(folder / "adapter.safetensors")
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    try:
        model_config = AutoConfig.for_model(model_type)
        known = type(model_config) in MODEL_MAPPING
    except ValueError:
        known = False
    if not known:
        return {"skipped": f"the architecture {model_type[:40]!r} is not known here."}
    _shrink(model_config, config, tensors)
    return _load(folder, model_config)


def _header(path: Path) -> Header:
    with open(path, "rb") as file:
        first = file.read(8)
        prefix = first + file.read(header_length(first) - 8)
    return {key: (info.dtype, info.shape) for key, info in parse_header(prefix, path.stat().st_size).items()}


def _shrink(model: Any, config: Mapping[str, Any], tensors: Header) -> None:
    """Makes the model as wide as the adapter's and as small as possible otherwise."""
    inner = config["config"]
    inner = find_named(inner) or {} if isinstance(inner, str) else inner
    widths = hidden_sizes(inner, tensors, config.get("name"))
    width = config.get("hidden_size") or (min(widths) if widths else None)
    # Prefixes for all layers are one tensor: then there must be as many layers as the model had.
    keys = shared_keys(inner, tensors, config.get("name"))
    layers = _FEW if keys is None else keys // (2 * width) if width else None
    if layers is not None:
        for name in _DEPTHS:
            if hasattr(model, name):
                setattr(model, name, layers)
    if width:
        name = "d_model" if hasattr(model, "d_model") and not hasattr(model, "hidden_size") else "hidden_size"
        setattr(model, name, width)
        for name in _HEADS:
            heads = getattr(model, name, None)
            if isinstance(heads, int) and width % heads:
                setattr(model, name, max(n for n in range(1, heads + 1) if width % n == 0))
    if isinstance(getattr(model, "vocab_size", None), int):
        model.vocab_size = min(model.vocab_size, _VOCABULARY)
        for name in _IDS:
            number = getattr(model, name, None)
            if isinstance(number, int) and number >= model.vocab_size:
                setattr(model, name, 0)


def _load(folder: Path, model_config: Any) -> dict[str, Any]:
    import torch
    from transformers import AutoModel

    import adapters
    from adapters.errors import AdapterError

    torch.manual_seed(0)
    model = AutoModel.from_config(model_config)
    adapters.init(model)
    info: dict[str, Any] = {}
    try:
        # The model is shallow, so that tensors of deeper layers are left over.
        model.load_adapter(str(folder), source="local", with_head=False, strict=False, loading_info=info)
    except (AdapterError, RuntimeError) as error:
        text = str(error).replace(str(folder), "the folder")[:500]
        if "  does not fit: " in text:
            # The adapter does not tell other sizes of the model, such as that of the feed-forward layer.
            return {"skipped": f"a model of this size cannot be built from what the config tells. {text}"}
        return {"problem": text}
    return {"missing": list(info.get("missing_keys", ()))[:20]}


if __name__ == "__main__":
    main(sys.argv[1:])
