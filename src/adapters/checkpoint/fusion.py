"""How is an AdapterFusion saved and loaded? Its layers alone; the adapters that it fuses have files of their own."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from adapters.checkpoint.layout import FUSION, description, make_folder, read_json, with_meta, write_json
from adapters.checkpoint.names import below_base, match, own_prefix, tensors_of
from adapters.checkpoint.tensors import read_tensors, write_tensors
from adapters.errors import AdapterNameError, CheckpointError, choices
from adapters.runtime.engine import Engine

logger = logging.getLogger(__name__)

CONTAINER = "adapter_fusion_layer"


def save_fusion(
    model: Any, folder: Any, name: str, meta: Mapping[str, Any] | None = None, use_safetensors: bool = True
) -> Path:
    """Write the config and the tensors of a fusion.

    Raises:
        AdapterNameError: there is no fusion of this name.
    """
    engine: Engine = model._engine
    if name not in engine.fusions:
        raise AdapterNameError(f"There is no fusion {name!r}. {choices(name, engine.fusions)}")
    config, names = engine.config.get_fusion(name)
    assert config is not None
    path = make_folder(folder)
    prefix = own_prefix(engine)
    tensors = {prefix + key: tensor for key, tensor in tensors_of(engine, engine.fusions[name], name).items()}
    write_tensors(path, FUSION, tensors, use_safetensors)
    data = {**description(model, name, config.to_dict()), "adapter_names": names}
    write_json(path / FUSION.config, with_meta(data, meta))
    return path


def load_fusion(
    model: Any,
    folder: Path,
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
        CheckpointError: tensors are missing, unexpected or of another shape; nothing has changed then.
    """
    engine: Engine = model._engine
    saved = read_json(folder / FUSION.config)
    found = read_tensors(folder, FUSION, use_safetensors)
    stored_name = saved.get("name")
    if not isinstance(stored_name, str) or not stored_name:
        raise CheckpointError(f"{folder / FUSION.config} does not say the fusion's name.")
    names = saved.get("adapter_names") or stored_name.split(",")
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise CheckpointError(f"{folder / FUSION.config} has adapter_names {names!r}. A list of names is needed.")
    name = load_as or stored_name
    exists = name in engine.fusions
    if exists:
        logger.warning("There is a fusion %r already. Its weights are replaced by those in %s.", name, folder)
    else:
        with torch.random.fork_rng(devices=[]):
            engine.add_fusion(names, saved.get("config"), None if name == ",".join(names) else name)
    try:
        expected = tensors_of(engine, engine.fusions[name], stored_name)
        below = below_base(engine, found, expected)
        result = match(expected, below, lambda key: is_other(key, stored_name))
        if loading_info is not None:
            loading_info["missing_keys"] = list(result.missing)
            loading_info["unexpected_keys"] = list(result.unexpected)
        result.check(f"Fusion {stored_name!r} in {folder}", strict)
        result.copy()
    except BaseException:
        if not exists:
            engine.delete_fusion(name)
        raise
    return name


def is_other(key: str, name: str) -> bool:
    """Whether a tensor belongs to another fusion, whose name starts like that of the stored one."""
    _, container, rest = f".{key}".partition(f".{CONTAINER}.")
    return bool(container) and rest.startswith(name) and not rest.startswith(f"{name}.")
