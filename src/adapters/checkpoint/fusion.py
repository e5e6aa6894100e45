"""How is an AdapterFusion saved and loaded? Its layers alone; the adapters that it fuses have files of their own."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from adapters.checkpoint.atomic import reading
from adapters.checkpoint.fingerprint import ENTRY, sample, warn_if_other
from adapters.checkpoint.layout import FUSION, description
from adapters.checkpoint.names import below_base, match, own_prefix, tensors_of
from adapters.checkpoint.tensors import read_checkpoint, write_checkpoint
from adapters.checkpoint.undo import Before
from adapters.composition.fusion_config import AdapterFusionConfig
from adapters.errors import CheckpointError
from adapters.runtime.engine import Engine

logger = logging.getLogger(__name__)

CONTAINER = "adapter_fusion_layer"


def write_fusion(
    model: Any, folder: Path, name: str, meta: Mapping[str, Any] | None = None, use_safetensors: bool = True
) -> None:
    """Write the config and the tensors of a fusion into an existing folder.

    Raises:
        AdapterNameError: there is no fusion of this name.
    """
    engine: Engine = model._engine
    engine.require_fusion(name)
    config, names = engine.config.get_fusion(name)
    assert config is not None
    prefix = own_prefix(engine)
    tensors = {prefix + key: tensor for key, tensor in tensors_of(engine, engine.fusions[name], name).items()}
    data = {**description(model, name, config.to_dict()), "adapter_names": names, ENTRY: sample(engine)}
    write_checkpoint(folder, FUSION, data, tensors, meta, use_safetensors)


def load_fusion(
    model: Any,
    folder: Path,
    before: Before,
    load_as: str | None = None,
    use_safetensors: bool = True,
    strict: bool = True,
    loading_info: dict[str, Any] | None = None,
) -> str:
    """Add the fusion that lies in a folder; the adapters it fuses must have been added before.

    Returns:
        Its name in the model.
    Raises:
        AdapterNameError: an adapter that it fuses is not there.
        CheckpointError: tensors are missing, unexpected or of another shape, or the model has a fusion of this name
            that fuses other adapters or has another config. The caller's `before` brings the model back.
    """
    engine: Engine = model._engine
    with reading(folder):
        saved, found = read_checkpoint(folder, FUSION, use_safetensors)
    stored_name = saved.get("name")
    if not isinstance(stored_name, str) or not stored_name:
        raise CheckpointError(f"{folder / FUSION.config} does not say the fusion's name.")
    names = saved.get("adapter_names") or stored_name.split(",")
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise CheckpointError(f"{folder / FUSION.config} has adapter_names {names!r}. A list of names is needed.")
    name = load_as or stored_name
    what = f"Fusion {stored_name!r} in {folder}"
    if name in engine.fusions:
        _check_equal(engine, name, names, AdapterFusionConfig.load(saved.get("config")), what)
        logger.warning("There is a fusion %r already. Its weights are replaced by those in %s.", name, folder)
    else:
        with torch.random.fork_rng(devices=[]):
            engine.add_fusion(names, saved.get("config"), None if name == ",".join(names) else name)
    expected = tensors_of(engine, engine.fusions[name], stored_name)
    below = below_base(engine, found, expected)
    result = match(expected, below, lambda key: is_other(key, stored_name))
    result.check(what, strict, loading_info=loading_info)
    before.keep(target for target, _ in result.pairs.values())
    result.copy()
    warn_if_other(engine, saved, what)
    return name


def _check_equal(engine: Engine, name: str, names: list[str], config: AdapterFusionConfig, what: str) -> None:
    """Raise CheckpointError unless the model's fusion `name` fuses these adapters, by this config."""
    own_config, own_names = engine.config.get_fusion(name)
    if sorted(own_names or ()) != sorted(names):
        raise CheckpointError(
            f"{what} fuses {', '.join(names)}, but the fusion {name!r} of this model {', '.join(own_names or ())}. "
            "Give it another name by load_as, or delete the fusion first."
        )
    if own_config != config:
        raise CheckpointError(
            f"{what} has another config than the fusion {name!r} of this model. Give it another name by load_as, or "
            "delete the fusion first."
        )


def is_other(key: str, name: str) -> bool:
    """Whether a tensor belongs to another fusion, whose name starts like that of the stored one."""
    _, container, rest = f".{key}".partition(f".{CONTAINER}.")
    return bool(container) and rest.startswith(name) and not rest.startswith(f"{name}.")
