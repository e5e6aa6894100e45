"""Specs that were found once, in a folder: one file each, whole or not there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import constants
from torch import nn

from adapters.sites.discovery.trace import plain_class
from adapters.sites.spec import (
    At,
    Attention,
    Branch,
    Columns,
    Experts,
    LayerList,
    LayerSpec,
    Linear,
    ModelSpec,
    Natives,
    Norm,
)

FORMAT = 6
"""Increased when discovery finds more, or specs are written otherwise: files of other formats are not read."""

FOLDER = "ADAPTERS_SPEC_CACHE"
"""Environment variable: the folder; empty for none."""

KINDS = {
    kind.__name__: kind
    for kind in (At, Attention, Branch, Columns, Experts, LayerList, LayerSpec, Linear, ModelSpec, Natives, Norm)
}
VOLATILE = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "architectures", "_attn_implementation")
"""What a config says that changes nothing about where things are."""


def folder() -> Path | None:
    """Where specs are kept: beside what the hub's client keeps, unless the environment says otherwise."""
    named = os.environ.get(FOLDER)
    if named is None:
        return Path(constants.HF_HOME) / "adapters" / "specs"
    return Path(named) if named else None


def key(model: nn.Module) -> str:
    """What a spec depends on: the class and config of the model, the version of transformers, and our own."""
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_dict"):
        return ""
    kind = plain_class(model)
    fields = {name: value for name, value in config.to_dict().items() if name not in (*VOLATILE, "adapters")}
    whole = [FORMAT, transformers.__version__, kind.__module__, kind.__qualname__, fields]
    return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()[:32]


def load(name: str) -> ModelSpec | None:
    """The spec that is kept under a key. What is damaged is as if it were not there."""
    if not name or (where := folder()) is None:
        return None
    try:
        found = from_data(json.loads((where / f"{name}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return found if isinstance(found, ModelSpec) else None


def store(name: str, spec: ModelSpec) -> None:
    """Keep a spec under a key; where the folder cannot be written, it is found again next time."""
    if not name or (where := folder()) is None:
        return
    try:
        where.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=where, prefix=f".{name}")
        try:
            with open(handle, "w", encoding="utf-8") as file:
                json.dump(as_data(spec), file, indent=1)
            os.replace(temporary, where / f"{name}.json")
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError:
        return


def as_data(value: Any) -> Any:
    """A spec as lists, mappings, texts and numbers."""
    if dataclasses.is_dataclass(value):
        fields = {field.name: as_data(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"is": type(value).__name__, **fields}
    if isinstance(value, (list, tuple)):
        return [as_data(entry) for entry in value]
    if isinstance(value, dict):
        return {name: as_data(entry) for name, entry in value.items()}
    return value


def from_data(data: Any) -> Any:
    """The inverse of `as_data`. Raises KeyError, TypeError or ConfigError (a ValueError) for what is no spec."""
    if isinstance(data, list):
        return tuple(map(from_data, data))
    if not isinstance(data, dict):
        return data
    values = {name: from_data(entry) for name, entry in data.items() if name != "is"}
    return KINDS[data["is"]](**values) if "is" in data else values
