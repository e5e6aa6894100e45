"""What does transformers' Trainer keep of a model with adapters? What trains, where PEFT's adapters would be kept.

A Trainer asks its model to write and to read checkpoints: `save_pretrained`, `load_state_dict`. These ask here whether
it is a Trainer that calls them. So no class of transformers is changed, and a person gets the whole model as ever.

    checkpoint-500/
        <adapter>/, <fusion>/, <head>/     what save_adapter, save_adapter_fusion, ..., save_head write
        other_weights.safetensors          what else is trained, such as embeddings; only if there is any
        model.safetensors                  no tensor: a Trainer looks for this file, and gives back what is in it
        training_args.bin, trainer_state.json, optimizer.pt, ...
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.trainer_utils import HubStrategy
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from adapters.checkpoint.atomic import saving
from adapters.checkpoint.folders import FULL_MODEL, OTHER_WEIGHTS, other_weights, save_folders
from adapters.checkpoint.heads import has_flexible_heads
from adapters.checkpoint.layout import PathLike
from adapters.runtime.engine import Engine

HOLDS = {"format": "pt", "holds": "nothing of the base model, only what trained: see the folders beside this file"}
"""Metadata of the `model.safetensors` of a checkpoint that holds adapters, fusions and heads."""


def trainer_that_saves(model: Any) -> Any:
    """The Trainer that is writing this model, or one that holds it; None if none is."""
    found = _caller(model, "_save")
    return found[0] if found else None


def checkpoint_being_read(model: Any) -> str | None:
    """The folder from which a Trainer is giving back what trained, of this model; None if none is."""
    found = _caller(model, "_load_from_checkpoint", "_load_best_model")
    if found is None:
        return None
    trainer, frame = found
    code = frame.f_code
    argument = frame.f_locals[code.co_varnames[1]] if code.co_argcount > 1 else None
    folder = argument if argument is not None else trainer.state.best_model_checkpoint
    return folder if folder is not None and holds_what_trained(folder) else None


def _caller(model: Any, *methods: str) -> tuple[Any, FrameType] | None:
    """The Trainer that this call comes from, and the call of one of these methods of its."""
    module = sys.modules.get("transformers.trainer")
    frame = sys._getframe(1) if module is not None else None
    while frame is not None:
        if frame.f_code.co_name in methods:
            trainer = frame.f_locals.get("self")
            if isinstance(trainer, module.Trainer) and any(part is model for part in trainer.model.modules()):
                return trainer, frame
        frame = frame.f_back
    return None


def keeps_full_model(model: Any, trainer: Any, folder: PathLike) -> bool:
    """Whether a Trainer writes all of a model: on request, or if the base model trains, is sharded or lies here."""
    engine: Engine = model._engine
    ours = len(engine.parts) or (has_flexible_heads(model) and len(model.heads))
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    is_source = os.path.realpath(folder) == os.path.realpath(model.config.name_or_path or os.devnull)
    trains = not model.model_frozen and bool(other_weights(model))
    return not ours or sharded or is_source or trains or model.full_checkpoints


def save_trained(model: Any, folder: PathLike, trainer: Any) -> None:
    """Write what trains of a model; also into the folder that the Trainer pushes after a checkpoint, if it does."""
    _write(model, folder)
    arguments = trainer.args
    pushes = arguments.push_to_hub and arguments.hub_strategy != HubStrategy.END
    if pushes and os.path.realpath(arguments.output_dir) != os.path.realpath(folder):
        _write(model, arguments.output_dir)


def _write(model: Any, folder: PathLike) -> None:
    with saving(folder, _is_of_model) as path:
        save_folders(model, path)
        save_file({}, path / SAFE_WEIGHTS_NAME, metadata=HOLDS)


def _is_of_model(path: str) -> bool:
    """Whether a file in the folder is of a model that was saved there before."""
    return path in (OTHER_WEIGHTS, CONFIG_NAME, *FULL_MODEL) or bool(
        re.fullmatch(r"model-\d+-of-\d+\.safetensors", path)
    )


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
