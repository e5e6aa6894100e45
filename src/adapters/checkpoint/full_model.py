"""How do adapters travel in the folder of a whole model? In config.json, and among its tensors by their names on disk.

Transformers reads and writes its own tensors only: it renames keys between its versions, and ours keep their names.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME
from transformers.utils.hub import cached_file

from adapters.checkpoint import callers, trainers
from adapters.checkpoint.adapters import add_stored, match_adapter
from adapters.checkpoint.atomic import finish, saving
from adapters.checkpoint.folders import OTHER_WEIGHTS, load_folders
from adapters.checkpoint.heads import has_flexible_heads, static_head
from adapters.checkpoint.inner import write_inner_config
from adapters.checkpoint.layout import HEAD, INTERFACE_FILE, PathLike, read_json, write_interface
from adapters.checkpoint.names import (
    CONTAINERS,
    Match,
    base_path,
    below_base,
    match,
    own_prefix,
    owned,
    renamed,
    tensors_of,
)
from adapters.checkpoint.tensors import load_pickle, not_plain, read_safetensors
from adapters.errors import CheckpointError
from adapters.heads.model import HUB, load_config
from adapters.heads.static import CLASSES, convert_static_head, find_static_head
from adapters.methods.config import AdapterConfig
from adapters.methods.interface import AdapterModelInterface
from adapters.runtime import merging
from adapters.runtime.adapters_config import ModelAdaptersConfig, OwnedRegister
from adapters.runtime.engine import Engine
from adapters.runtime.parts import Part

logger = logging.getLogger(__name__)

OURS = tuple(rf"(^|\.){container}\." for container in CONTAINERS)
"""Patterns of tensors that Transformers need not know when it loads a model."""
UNCHAINED = "unchained"
"""Entry of "adapters" in config.json: names of those that act only where they come first in a `Stack`. Absent: all."""
MERGED = "merged"
"""Entry of "adapters" in config.json: names of the adapters that the stored base weights hold already."""
OLD_KEYS = ("adapter_fusion_models", "adapter_fusion")
"""Keys of config.json in which fusions were once described."""


# Saving


def save_pretrained(model: Any, parent: Callable[..., None], directory: PathLike, options: Mapping[str, Any]) -> None:
    """Save a model with its adapters and fusions; the folder changes as a whole.

    A Trainer that saves gets what trains alone, see `checkpoint/trainers.py`.

    Args:
        model: The model.
        parent: `save_pretrained` of Transformers.
        directory: Folder to save in; it is made.
        options: Arguments of `parent`.
    """
    options, engine = dict(options), cast(Engine, model._engine)
    trainer, holder = callers.saving_trainer(model), callers.sentence_module(model)
    if trainer is not None and not trainers.keeps_full_model(engine.root, trainer, directory):
        if options["is_main_process"]:
            trainers.save_trained(engine.root, directory, trainer)
    else:
        _save(model, parent, directory, options)
    if holder is not None and options["is_main_process"] and engine.parts:
        with described(model):
            write_inner_config(model, Path(directory), trainer)


def _save(model: Any, parent: Callable[..., None], directory: PathLike, options: dict[str, Any]) -> None:
    engine: Engine = model._engine
    if engine.parts:
        options["state_dict"] = complete_state(model, options["state_dict"], options["save_original_format"])
        options["save_original_format"] = False
    if not options["is_main_process"]:
        parent(directory, **options)
        return
    if options["push_to_hub"]:
        options.setdefault("repo_id", os.path.basename(os.path.normpath(directory)))
    has_interface, variant = engine.interface is not None, options["variant"]
    with saving(directory, lambda path: is_replaced(path, variant, has_interface)) as folder:
        write_interface(model, folder)
        with described(model):
            parent(folder, **options)


@contextmanager
def described(model: Any) -> Iterator[None]:
    """The model's config lists its adapters meanwhile."""
    config = model.config
    if not len(model.adapters_config):
        yield
        return
    engine: Engine = model._engine
    merged, unchained = list(engine.merged), [name for name in engine.parts if not engine.is_chained(name)]
    register = model.adapters_config.to_dict()
    config.adapters = {**register, UNCHAINED: unchained, **({MERGED: merged} if merged else {})}
    try:
        yield
    finally:
        del config.adapters


def complete_state(model: Any, state: Mapping[str, Tensor] | None, original_names: bool) -> dict[str, Tensor]:
    """All tensors of a model, those of adapters and fusions by their names on disk, each tensor once per adapter.

    Args:
        model: The model.
        state: Its state dict, if the caller has gathered it.
        original_names: Whether the base model's tensors get the names that Transformers uses in files.
    """
    engine: Engine = model._engine
    if state is None:
        state = model.state_dict()
    ours = _in_memory_names(model)
    base = {name: tensor for name, tensor in state.items() if name not in ours}
    base = remove_tied_weights_from_state_dict(base, model)
    if original_names:
        base = revert_weight_conversion(model, base)
    prefix = own_prefix(engine, model)
    owners: dict[int, set[str]] = {}
    for memory, (disk, tensor, owner) in ours.items():
        if memory in state and owner not in (before := owners.setdefault(id(tensor), set())):
            base[prefix + disk] = state[memory].clone() if before else state[memory]
            before.add(owner)
    return base


def load_trained(model: Any) -> bool:
    """Whether it is a Trainer that asks for values of what trained; they are given back then."""
    folder = trainers.checkpoint_being_read(model)
    if folder is not None:
        load_folders(model._engine.root, folder)
    return folder is not None


def with_module_names(model: Any, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """`state` with the names of modules, if it has those that `complete_state` gives to the tensors in files."""
    own = model.state_dict()
    if own.keys() >= state.keys():
        return state
    if has_flexible_heads(model):
        state = _of_flexible(model, own, state)
    memory = {id(tensor): name for name, tensor in own.items()}
    files = complete_state(model, own, True)
    names = {name: memory[id(tensor)] for name, tensor in files.items() if id(tensor) in memory}
    prefix = own_prefix(model._engine, model)
    names |= {prefix + disk: name for name, (disk, _, _) in _in_memory_names(model).items()}
    return renamed(state, lambda name: names.get(name, name))


def _of_flexible(model: Any, own: Mapping[str, Any], state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Tensors of the plain class of a model's type, as they are called in the one with flexible heads.

    The base model of some classes is spread over the class (T5's encoder and decoder). The class's own head becomes the
    active one, if that is of its kind.
    """
    start = f"{model.base_model_prefix}."
    if not any(key.startswith(start) for key in state):
        state = renamed(state, lambda name: start + name if start + name in own else name)
    model_type, name = model.config.model_type, model.active_head
    kind = model.heads[name].head_type if isinstance(name, str) else None
    head = {key: tensor for key, tensor in state.items() if key not in own}
    for static in (static for static, task in CLASSES.items() if task == (kind, model_type)):
        parts = filter(None, find_static_head(static, model.config).modules)
        if all(_has(head, part) for part in parts):
            _, converted = convert_static_head(static, head, model.config, name)
            return {**{key: tensor for key, tensor in state.items() if key in own}, **converted}
    return state


def _has(state: Iterable[str], module: str) -> bool:
    return any(key.startswith(f"{module}.") for key in state)


def _in_memory_names(model: Any) -> dict[str, tuple[str, Tensor, str]]:
    """Name in the model's state dict -> name on disk below the base model, tensor and owner, of all that is ours."""
    engine: Engine = model._engine
    start = base_path(engine, model)
    names: dict[str, tuple[str, Tensor, str]] = {}
    for group in engine.added:
        for name, parts in group.items():
            for part in parts:
                for inner, tensor in part.module.state_dict(keep_vars=True).items():
                    disk = engine.names.tensor(part.path, name, inner)
                    names[f"{start}{part.path}.{name}.{inner}"] = disk, tensor, name
    return names


def is_replaced(path: str, variant: str | None, has_interface: bool) -> bool:
    """Whether a file in the folder of a whole model goes if it is not saved anew: weights, in whatever parts."""
    if path == INTERFACE_FILE:
        return not has_interface
    name = rf"model{re.escape(f'.{variant}' if variant else '')}"
    index = rf"model\.safetensors\.index{re.escape(f'.{variant}' if variant else '')}\.json"
    return re.fullmatch(rf"{name}(-\d+-of-\d+)?\.safetensors|{index}", path) is not None


# Loading


def from_pretrained(
    model_class: Any, parent: Callable[..., Any], path: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Load a model, then add the adapters that its config.json lists and read their tensors.

    Args:
        model_class: Class of the model.
        parent: `from_pretrained` of Transformers.
        path: Folder or repository.
        args: Arguments of the class.
        kwargs: Arguments of `parent`; `interface` describes the model's sites.
    Raises:
        CheckpointError: tensors of an adapter are missing or of another shape.
    """
    if path is not None:
        finish(path)
    state = kwargs.get("state_dict")
    interface = kwargs.pop("interface", None)
    if path is not None:
        interface = interface or _stored_interface(path, kwargs)
        config, kwargs = load_config(model_class.config_class, path, kwargs)
        kwargs["config"] = config
    else:
        config = kwargs["config"] = copy.deepcopy(kwargs.get("config"))
    stored, unchained, merged, old = _taken_adapters(config)
    result = parent(path, *args, **kwargs)
    model = result[0] if isinstance(result, tuple) else result
    if "_engine" not in vars(model):
        model._init_adapters(ModelAdaptersConfig(), interface)
    if stored is not None:
        wanted = [*stored, *(name for register in stored.owned.values() for name in register.configs)]
        found = _chosen(state, wanted, "state_dict") if state is not None else _read(path, wanted, kwargs)
        restore(model, stored, found, f"{path}", old)
        for name in unchained:
            model._engine.act_first_only(name)
        for name in merged:
            merging.assume_merged(model._engine, name)
    return result


def is_old(data: Mapping[str, Any]) -> bool:
    """Whether version 1 of the library wrote what config.json says of adapters."""
    return UNCHAINED not in data


def _taken_adapters(config: Any) -> tuple[ModelAdaptersConfig | None, list[str], list[str], bool]:
    """The register that a model's config is left without; the names under `UNCHAINED`, under `MERGED`; `is_old`."""
    if config is None or not (data := getattr(config, "adapters", None)):
        return None, [], [], False
    names = list(data.get("adapters") or ())
    unchained = [name for name in data.get(UNCHAINED, names) or () if name in names]
    merged = [name for name in data.get(MERGED) or () if name in names]
    register = {key: value for key, value in data.items() if key not in (UNCHAINED, MERGED)}
    old = {key: getattr(config, key, None) for key in OLD_KEYS}
    for key in ("adapters", *OLD_KEYS):
        if hasattr(config, key):
            delattr(config, key)
    stored = ModelAdaptersConfig.from_dict(register, old["adapter_fusion_models"], old["adapter_fusion"])
    return stored, unchained, merged, is_old(data)


def restore(model: Any, stored: ModelAdaptersConfig, found: Mapping[str, Tensor], source: str, old: bool) -> None:
    """Add all adapters of a register to a model, and what blocks own, with the values of a file; see `is_old`."""
    engine: Engine = model._engine
    for name in stored:
        own = {key: found[key] for key in sorted(owned(found, name))}
        config = cast(AdapterConfig, stored.get(name))
        read = _reader(engine, name, own, config)
        add_stored(engine, name, config, read, f"Adapter {name!r} of the model in {source}")
    for noun, register in stored.owned.items():
        modules = engine.owned[noun]
        for name in register.configs:
            add_registered(engine, register, name, old)
            expected = tensors_of(engine, modules[name], name)
            own = below_base(engine, {key: found[key] for key in sorted(owned(found, name))}, expected)
            result = match(expected, own, lambda key: True)
            result.check(f"{noun.capitalize()} {name!r} of the model in {source}")
            result.copy()


def add_trained(model: Any, register: Mapping[str, Any], folder: Path, setup: Any) -> None:
    """Add to a base model what config.json lists, with the values that `trainers.save_trained` wrote, and activate it.

    Args:
        model: A base model without adapters.
        register: The entry "adapters" of config.json.
        folder: Where they lie.
        setup: The block to activate, or None.
    """
    engine: Engine = model._engine
    stored, unchained, _, old = _taken_adapters(SimpleNamespace(adapters=register))
    assert stored is not None
    with torch.random.fork_rng(devices=[]):
        for name in stored:
            engine.add(name, cast(AdapterConfig, stored.get(name)))
        for owned_register in stored.owned.values():
            for name in owned_register.configs:
                add_registered(engine, owned_register, name, old)
    for name in unchained:
        engine.act_first_only(name)
    model.set_active_adapters(setup)
    model.freeze_model(True)
    for head in sorted(folder.glob(f"*/{HEAD.config}")):
        if has_flexible_heads(model):
            model.load_head(str(head.parent), set_active=False)
        for tensor in static_head(model).values():
            tensor.requires_grad_(True)
    trained = read_safetensors(folder / OTHER_WEIGHTS) if (folder / OTHER_WEIGHTS).exists() else {}
    for name, parameter in model.named_parameters():
        if name in trained:
            parameter.requires_grad_(True)
    load_folders(model, folder)


def add_registered(engine: Engine, register: OwnedRegister, name: str, old: bool) -> None:
    """Add what a block owns by its entry in a register; see `is_old`."""
    own_name = name if name in register.name_map else None
    with torch.random.fork_rng(devices=[]):
        engine.owned[register.kind.noun].add(register.adapters_of(name), register.config_of(name), own_name, old=old)


def _reader(
    engine: Engine, name: str, own: Mapping[str, Tensor], config: AdapterConfig
) -> Callable[[Sequence[Part]], Match]:
    return lambda parts: match_adapter(engine, parts, own, name, config)


def _stored_interface(path: Any, kwargs: Mapping[str, Any]) -> AdapterModelInterface | None:
    """The interface that lies in the folder of a model."""
    hub = {key: kwargs[key] for key in HUB if key in kwargs}
    file = _cached(path, INTERFACE_FILE, hub)
    if file is None:
        return None
    fields = read_json(file).get("interface")
    try:
        return AdapterModelInterface(**fields)  # type: ignore[arg-type]
    except TypeError as error:
        raise CheckpointError(f"{file} does not hold an interface: {error}") from None


def _chosen(state: Mapping[str, Tensor], names: Iterable[str], source: str) -> dict[str, Tensor]:
    keys = set().union(*(owned(state, name) for name in names))
    found = {key: tensor for key, tensor in state.items() if key in keys}
    for key, tensor in found.items():
        if problem := not_plain(tensor):
            raise CheckpointError(f"{source} holds {type(tensor).__name__} under {key!r}, which is {problem}.")
    return found


def _read(path: Any, names: list[str], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of some adapters and fusions in the files of a whole model."""
    hub = {key: kwargs[key] for key in HUB if key in kwargs}
    hub["local_files_only"] = True
    variant = kwargs.get("variant")
    safe = ((SAFE_WEIGHTS_NAME, False), (SAFE_WEIGHTS_INDEX_NAME, True))
    pickled = ((WEIGHTS_NAME, False), (WEIGHTS_INDEX_NAME, True))
    order = (*pickled, *safe) if kwargs.get("use_safetensors") is False else (*safe, *pickled)
    for name, is_index in order:
        file = _cached(path, _with_variant(name, variant), hub)
        if file is None:
            continue
        if not is_index:
            return _read_file(file, names)
        shards = _shards(file, names)
        found: dict[str, Tensor] = {}
        for shard in shards:
            part = _cached(path, shard, hub)
            if part is None:
                raise CheckpointError(f"{file} names the file {shard}, which is not there.")
            found |= _read_file(part, names)
        return found
    raise CheckpointError(f"{path} has no weights: none of {', '.join(name for name, _ in order)}.")


def _cached(path: Any, name: str, hub: Mapping[str, Any]) -> Path | None:
    found = cached_file(path, name, _raise_exceptions_for_missing_entries=False, **hub)
    return None if found is None else Path(found)


def _with_variant(name: str, variant: str | None) -> str:
    if not variant:
        return name
    stem, _, rest = name.partition(".")
    *middle, last = rest.split(".")
    return ".".join([stem, *middle, variant, last])


def _shards(index: Path, names: list[str]) -> list[str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        keys = set().union(*(owned(weight_map, name) for name in names))
        return sorted({str(weight_map[key]) for key in keys})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index} is not a readable index of a model's files: {error}") from None


def _read_file(path: Path, names: list[str]) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        return _chosen(load_pickle(path), names, str(path))
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            keys = set().union(*(owned(file.keys(), name) for name in names))
            return {key: file.get_tensor(key) for key in sorted(keys)}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from None
