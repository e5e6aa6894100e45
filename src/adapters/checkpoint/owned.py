"""How is what a block owns saved and loaded? Its modules alone; the adapters that it combines have their own files."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from adapters.checkpoint.atomic import reading
from adapters.checkpoint.fingerprint import ENTRY, sample, warn_if_other
from adapters.checkpoint.layout import OWNED, Files, description, version_numbers
from adapters.checkpoint.names import below_base, match, own_prefix, tensors_of
from adapters.checkpoint.tensors import read_checkpoint, write_checkpoint
from adapters.checkpoint.undo import Before
from adapters.errors import CheckpointError
from adapters.runtime.engine import Engine
from adapters.runtime.owned import Owned
from adapters.sharding import present

logger = logging.getLogger(__name__)


def write_owned(
    model: Any, noun: str, folder: Path, name: str, meta: Mapping[str, Any] | None = None, use_safetensors: Files = True
) -> None:
    """Write the config and the tensors of what a block owns into an existing folder.

    Args:
        model: The model.
        noun: Of its kind.
        folder: Where to.
        name: Its name.
        meta: More entries for the config file.
        use_safetensors: Write safetensors (True), a pickle file (False), or "both".
    Raises:
        AdapterNameError: there is none of this name.
    """
    engine: Engine = model._engine
    owned = engine.owned[noun]
    owned.require(name)
    config, names = owned.register.config_of(name), owned.register.adapters_of(name)
    prefix = own_prefix(engine)
    own = present(engine.root, tensors_of(engine, owned[name], name))
    tensors = {prefix + key: tensor for key, tensor in own.items()}
    data = {**description(model, name, config.to_dict()), "adapter_names": names, ENTRY: sample(engine)}
    write_checkpoint(folder, OWNED[noun], data, tensors, meta, use_safetensors)


def load_owned(
    model: Any,
    noun: str,
    folder: Path,
    before: Before,
    load_as: str | None = None,
    use_safetensors: bool = True,
    strict: bool = True,
    loading_info: dict[str, Any] | None = None,
) -> str:
    """Add what a block owns and lies in a folder; the adapters that it combines must have been added before.

    Returns:
        Its name in the model.
    Raises:
        AdapterNameError: an adapter that it combines is not there.
        CheckpointError: tensors are missing, unexpected or of another shape, or the model has one of this name that
            combines other adapters or has another config. The caller's `before` brings the model back.
    """
    engine: Engine = model._engine
    owned, layout = engine.owned[noun], OWNED[noun]
    with reading(folder):
        saved, found = read_checkpoint(folder, layout, use_safetensors)
    stored_name = saved.get("name")
    if not isinstance(stored_name, str) or not stored_name:
        raise CheckpointError(f"{folder / layout.config} does not say the {noun}'s name.")
    names = saved.get("adapter_names") or stored_name.split(",")
    if not isinstance(names, list) or not all(n is None or isinstance(n, str) for n in names):
        raise CheckpointError(f"{folder / layout.config} has adapter_names {names!r}. A list of names is needed.")
    name = load_as or stored_name
    what = f"{noun.capitalize()} {stored_name!r} in {folder}"
    if name in owned:
        _check_equal(owned, name, names, owned.kind.load_config(saved.get("config")), what)
        logger.warning("There is a %s %r already. Its weights are replaced by those in %s.", noun, name, folder)
    else:
        own_name = None if name == owned.register.name_of(names, None) else name
        with torch.random.fork_rng(devices=[]):
            owned.add(names, saved.get("config"), own_name, old=_is_old(saved))
    expected = tensors_of(engine, owned[name], stored_name)
    below = below_base(engine, found, expected)
    result = match(expected, below, lambda key: is_other(key, owned.kind.container(), stored_name))
    result.check(what, strict, loading_info=loading_info)
    before.keep(target for target, _ in result.pairs.values())
    result.copy()
    warn_if_other(engine, saved, what)
    return name


def _is_old(saved: Mapping[str, Any]) -> bool:
    """Whether version 1 of the library wrote a file: see `BlockModule.stands`."""
    library, _, numbers = str(saved.get("version")).partition(".")
    return library != "adapters" or version_numbers(numbers) < (2, 0, 0)


def _check_equal(owned: Owned, name: str, names: list[Any], config: Any, what: str) -> None:
    """Raise CheckpointError unless what the model has under `name` combines these adapters, by this config."""
    own_names, noun = owned.register.adapters_of(name), owned.kind.noun
    if own_names != names if owned.kind.ordered else {*own_names} != {*names}:
        raise CheckpointError(
            f"{what} combines {', '.join(map(str, names))}, but the {noun} {name!r} of this model "
            f"{', '.join(map(str, own_names))}. Give it another name by load_as, or delete the {noun} first."
        )
    if owned.register.config_of(name) != config:
        raise CheckpointError(
            f"{what} has another config than the {noun} {name!r} of this model. Give it another name by load_as, or "
            f"delete the {noun} first."
        )


def is_other(key: str, container: str, name: str) -> bool:
    """Whether a tensor belongs to another one, whose name starts like that of the stored one."""
    _, found, rest = f".{key}".partition(f".{container}.")
    return bool(found) and rest.startswith(name) and not rest.startswith(f"{name}.")
