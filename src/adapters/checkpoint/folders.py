"""What of a model does a trainer's checkpoint hold, and how does it get back? Its adapters, fusions and heads.

Loading puts values into the modules that are there, so optimizers keep their parameters. It is all or nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from adapters.checkpoint.adapters import stored_adapter_config
from adapters.checkpoint.atomic import reading
from adapters.checkpoint.heads import has_flexible_heads, static_head
from adapters.checkpoint.layout import ADAPTER, HEAD, OWNED, CheckpointKind, subfolder
from adapters.checkpoint.names import Match, added_tensors, below_base, is_repeated, match, tensors_of
from adapters.checkpoint.tensors import read_checkpoint, read_safetensors
from adapters.checkpoint.together import saving_of
from adapters.checkpoint.undo import Before
from adapters.errors import CheckpointError, CheckpointNotFound
from adapters.runtime.engine import Engine
from adapters.sharding import whole

FULL_MODEL = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Files by which a checkpoint of the stock Trainer is known."""

OTHER_WEIGHTS = "other_weights.safetensors"
"""What else changes in training than adapters, fusions and heads: embeddings, or whatever was unfrozen; and what batch
norms count, also frozen ones (checkpoints of earlier versions have no counts)."""


def save_folders(model: Any, folder: str | os.PathLike[str]) -> None:
    """Write all adapters, fusions and heads of a model, each into its folder, and what else is trained.

    The head of a plain class lies beside the active adapters, where `load_adapter` finds it; it is left out if no part
    of it is trained.
    """
    engine: Engine = model._engine
    with saving_of(model, folder, lambda path: path == OTHER_WEIGHTS) as path:
        for name in engine.parts:
            model.save_adapter(str(subfolder(path, name)), name, with_head=False)
        for owned in engine.owned.values():
            for name in owned:
                getattr(model, f"save_{owned.kind.stem}")(str(subfolder(path, name)), name)
        if has_flexible_heads(model):
            for name in model.heads:
                model.save_head(str(subfolder(path, name)), name)
        elif _trains(static_head(model)):
            for name in _active(engine):
                model.save_head(str(subfolder(path, name)))
        if other := other_weights(model) | running_statistics(model):
            save_file({name: whole(t).detach().cpu().contiguous() for name, t in other.items()}, path / OTHER_WEIGHTS)


def load_folders(model: Any, folder: str | os.PathLike[str]) -> None:
    """Give the adapters, fusions and heads of a model the values that `save_folders` wrote.

    Raises:
        CheckpointNotFound: the checkpoint lacks one of them.
        CheckpointError: one of them has another config or other tensors; nothing has changed then.
    """
    path = Path(folder)
    if not path.is_dir():
        raise CheckpointNotFound(f"There is no checkpoint {path}. Give the folder that the trainer has written.")
    with reading(path), Before(model) as before:
        found = list(_matches(model, path))
        for what, result in found:
            result.check(what)
        before.keep(target for _, result in found for target, _ in result.pairs.values())
        for _, result in found:
            result.copy()


def _matches(model: Any, path: Path) -> Iterator[tuple[str, Match]]:
    engine: Engine = model._engine
    for name in engine.parts:
        part = _existing(path, name, ADAPTER)
        saved, found = _read(part, ADAPTER)
        if stored_adapter_config(saved, found) != engine.config.get(name):
            raise CheckpointError(
                f"Adapter {name!r} in {path} has another config than the one of this model. Add it with the config in "
                "its adapter_config.json."
            )
        expected = tensors_of(engine, engine.parts[name], name)
        yield f"Adapter {name!r} in {path}", match(expected, below_base(engine, found, expected), is_repeated)
    for noun, owned in engine.owned.items():
        for name in owned:
            found = _read(_existing(path, name, OWNED[noun]), OWNED[noun])[1]
            expected = tensors_of(engine, owned[name], name)
            yield f"{noun.capitalize()} {name!r} in {path}", match(expected, below_base(engine, found, expected), _none)
    if has_flexible_heads(model):
        for name, head in model.heads.items():
            expected = {f"heads.{name}.{key}": t for key, t in head.state_dict(keep_vars=True).items()}
            found = _read(_existing(path, name, HEAD), HEAD)[1]
            yield f"Head {name!r} in {path}", match(expected, found, _none)
    elif _trains(expected := static_head(model)):
        name = _active(engine)[0]
        yield f"The head in {path / name}", match(expected, _read(_existing(path, name, HEAD), HEAD)[1], _none)
    file = path / OTHER_WEIGHTS
    found = read_safetensors(file) if file.exists() else {}
    expected = other_weights(model)
    expected |= {name: tensor for name, tensor in running_statistics(model).items() if name in found}
    if expected or found:
        yield str(file), match(expected, found, _none)


def _none(name: str) -> bool:
    return False


def _read(folder: Path, kind: CheckpointKind) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with reading(folder):
        return read_checkpoint(folder, kind)


def _existing(path: Path, name: str, kind: CheckpointKind) -> Path:
    part = subfolder(path, name)
    if not part.is_dir():
        there = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
        raise CheckpointNotFound(
            f"{path} has no folder for {kind.noun} {name!r} of this model. It has: {', '.join(there) or 'none'}. "
            "Resume with the adapters, fusions and heads that were trained."
        )
    return part


def _active(engine: Engine) -> list[str]:
    """The adapters beside which the head of a plain class lies: the active ones, or all."""
    setup = engine.config.active_setup
    return sorted(setup.flatten()) if setup is not None else sorted(engine.parts)


def _trains(tensors: dict[str, Tensor]) -> bool:
    return any(tensor.requires_grad for tensor in tensors.values())


def other_weights(model: Any) -> dict[str, Tensor]:
    """Name -> trained tensor, of those that lie in no folder."""
    heads = model.heads.parameters() if has_flexible_heads(model) else static_head(model).values()
    own = {id(tensor) for tensor in heads} | added_tensors(model._engine)
    return {name: p for name, p in model.named_parameters() if p.requires_grad and id(p) not in own}


def running_statistics(model: Any) -> dict[str, Tensor]:
    """Name -> mean, variance or count of batches, of every batch norm: they follow the inputs, whatever is frozen."""
    return {
        f"{path}.{name}": tensor
        for path, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        for name, tensor in module.named_buffers(recurse=False)
    }
