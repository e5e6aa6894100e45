"""Who asks for the files of a model? A Trainer, sentence-transformers, or a person: the calls under way say so.

Trainers call `save_pretrained` and `load_state_dict` as persons do, and have no other hook.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

SENTENCES = "sentence_transformers"


def saving_trainer(model: Any) -> Any:
    """The Trainer that is writing a checkpoint of this model; None if none is."""
    for trainer in (owner for owner, _ in _calls("_save") if _is_trainer(owner)):
        if is_trained_by(trainer, model) or sentence_module(model) is not None:
            return trainer
    return None


def loading_trainer() -> tuple[Any, str] | None:
    """The Trainer that is giving back the values of a checkpoint, and the folder; None if none is."""
    for trainer, frame in _calls("_load_from_checkpoint", "_load_best_model"):
        if _is_trainer(trainer):
            code = frame.f_code
            given = frame.f_locals[code.co_varnames[1]] if code.co_argcount > 1 else None
            folder = trainer.state.best_model_checkpoint if given is None else given
            return None if folder is None else (trainer, os.fspath(folder))
    return None


def sentence_module(model: Any) -> Any:
    """The module of sentence-transformers that holds this model and is saving it; None if none is."""
    for owner, _ in _calls("save"):
        libraries = {cls.__module__.partition(".")[0] for cls in type(owner).__mro__}
        if SENTENCES in libraries and getattr(owner, "model", None) is model:
            return owner
    return None


def is_trained_by(trainer: Any, model: Any) -> bool:
    """Whether a Trainer trains this model itself, in whatever wraps it for training."""
    return trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False) is model


def _is_trainer(owner: Any) -> bool:
    module = sys.modules.get("transformers.trainer")
    return module is not None and isinstance(owner, module.Trainer)


def _calls(*methods: str) -> Iterator[tuple[Any, FrameType]]:
    """The calls under way of methods of these names, the innermost first, and whose methods they are."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name in methods:
            yield frame.f_locals.get("self"), frame
        frame = frame.f_back
