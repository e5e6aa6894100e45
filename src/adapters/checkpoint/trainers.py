"""What does transformers' Trainer keep of a model with adapters? What trains, where PEFT's adapters would be kept.

A Trainer has its model write and read checkpoints: `save_pretrained`, `load_state_dict`. These ask whether it is one
that calls (`callers.py`). So no class of transformers is changed, and a person gets the whole model as ever.

    checkpoint-500/
        <adapter>/, <fusion>/, <head>/     what save_adapter, save_adapter_fusion, ..., save_head write
        other_weights.safetensors          what else is trained, such as embeddings; only if there is any
        model.safetensors                  no tensor: a Trainer looks for this file, and gives back what is in it
        training_args.bin, trainer_state.json, optimizer.pt, ...
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from adapters.checkpoint.atomic import saving
from adapters.checkpoint.callers import is_trained_by, loading_trainer
from adapters.checkpoint.folders import FULL_MODEL, OTHER_WEIGHTS, other_weights, save_folders
from adapters.checkpoint.heads import has_flexible_heads
from adapters.checkpoint.layout import PathLike
from adapters.runtime.engine import Engine

HOLDS = {"format": "pt", "holds": "nothing of the base model, only what trained: see the folders beside this file"}
"""Metadata of the `model.safetensors` of a checkpoint that holds adapters, fusions and heads."""


def checkpoint_being_read(model: Any) -> str | None:
    """The folder from which a Trainer is giving back what trained, of this model; None if none is."""
    loading = loading_trainer()
    if loading is None or not is_trained_by(loading[0], model) or not holds_what_trained(loading[1]):
        return None
    return loading[1]


def keeps_full_model(model: Any, trainer: Any, folder: PathLike) -> bool:
    """Whether a Trainer writes all of a model: on request, or if the base model trains, has merged adapters, is
    sharded, or came from this folder."""
    engine: Engine = model._engine
    ours = len(engine.parts) or (has_flexible_heads(model) and len(model.heads))
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    is_source = os.path.realpath(folder) == os.path.realpath(model.config.name_or_path or os.devnull)
    trains = not model.model_frozen and bool(other_weights(model))
    return not ours or sharded or is_source or trains or model.full_checkpoints or bool(engine.merged)


def save_trained(model: Any, folder: PathLike, trainer: Any) -> None:
    """Write what trains of a model; also into the folder that the Trainer pushes after a checkpoint, if it does."""
    _write(model, folder)
    arguments = trainer.args
    pushes = arguments.push_to_hub and arguments.hub_strategy != "end"
    if pushes and os.path.realpath(arguments.output_dir) != os.path.realpath(folder):
        _write(model, arguments.output_dir)


def _write(model: Any, folder: PathLike) -> None:
    with saving(folder, _is_of_model) as path:
        save_folders(model, path)
        save_file({}, path / SAFE_WEIGHTS_NAME, metadata=HOLDS)


def _is_of_model(path: str) -> bool:
    """Whether a file in the folder is of a model that was saved there before."""
    is_shard = re.fullmatch(r"model-\d+-of-\d+\.safetensors", path) is not None
    return is_shard or path in (OTHER_WEIGHTS, CONFIG_NAME, *FULL_MODEL)


def holds_what_trained(folder: PathLike) -> bool:
    """Whether a folder is a checkpoint of adapters, fusions and heads, and not of a whole model."""
    file = Path(folder, SAFE_WEIGHTS_NAME)
    try:
        with safe_open(file, framework="pt") as opened:
            found: Mapping[str, str] = opened.metadata() or {}
    except (SafetensorError, OSError):
        return False
    return "holds" in found


def holds_full_model(folder: PathLike) -> bool:
    """Whether a folder is a checkpoint of a whole model."""
    return any(Path(folder, name).exists() for name in FULL_MODEL) and not holds_what_trained(folder)
