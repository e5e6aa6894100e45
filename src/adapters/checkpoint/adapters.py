"""How is one adapter saved and loaded? Whole or not at all: a file that does not fit leaves the model as it was."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapters.checkpoint.atomic import reading
from adapters.checkpoint.fingerprint import ENTRY, sample, warn_if_other
from adapters.checkpoint.layout import ADAPTER, Files, description, version_numbers, write_interface
from adapters.checkpoint.names import Match, below_base, converted, is_repeated, match, own_prefix, tensors_of
from adapters.checkpoint.tensors import read_checkpoint, write_checkpoint
from adapters.checkpoint.undo import Before
from adapters.errors import AdapterError, CheckpointError
from adapters.methods import METHODS
from adapters.methods.config import AdapterConfig, members_of
from adapters.methods.places import selects
from adapters.methods.presets import load as load_config
from adapters.runtime import merging
from adapters.runtime.adapters_config import check_name
from adapters.runtime.empty import Empty
from adapters.runtime.engine import Engine
from adapters.runtime.parts import Part
from adapters.sharding import present
from adapters.sites.layers import layers_of, require_layers

logger = logging.getLogger(__name__)

CHAINED = "chained"
"""Entry of adapter_config.json: whether all of the adapter acts where others come before it in a `Stack`."""

OLD_ACTIVATIONS = {"gelu": "gelu_new", "gelu_orig": "gelu"}
"""What activations were called before files had a version."""


def write_adapter(
    model: Any, folder: Path, name: str, meta: Mapping[str, Any] | None = None, use_safetensors: Files = True
) -> None:
    """Write the config and the tensors of an adapter into an existing folder.

    Raises:
        AdapterNameError: there is no adapter of this name.
    """
    engine: Engine = model._engine
    engine.require(name)
    config = engine.config.get(name)
    assert config is not None
    prefix = own_prefix(engine)
    own = present(engine.root, tensors_of(engine, engine.parts[name], name))
    tensors = {prefix + key: tensor for key, tensor in own.items()}
    data = {**description(model, name, config.to_dict()), ENTRY: sample(engine)}
    if not engine.is_chained(name):
        data[CHAINED] = False
    write_checkpoint(folder, ADAPTER, data, tensors, meta, use_safetensors)
    write_interface(model, folder)


def load_adapter(
    model: Any,
    folder: Path,
    before: Before,
    load_as: str | None = None,
    leave_out: Iterable[int] | None = None,
    use_safetensors: bool = True,
    strict: bool = True,
    loading_info: dict[str, Any] | None = None,
) -> str:
    """Add the adapter that lies in a folder, or give its weights to the one of the same name and config.

    Returns:
        Its name in the model.
    Raises:
        CheckpointError: tensors are missing, unexpected or of another shape; nothing has changed then.
    """
    engine: Engine = model._engine
    with reading(folder):
        saved, found = read_checkpoint(folder, ADAPTER, use_safetensors)
    stored_name = saved.get("name") or load_as
    if not isinstance(stored_name, str):
        raise CheckpointError(f"{folder / ADAPTER.config} does not say the adapter's name. Pass load_as.")
    name = load_as or _legal(stored_name)
    stored_config = stored_adapter_config(saved, found)
    require_layers(given := list(leave_out or ()), engine.sites, "leave_out")
    left_out = set(given)
    config = stored_config.without_layers(left_out, layers_of(engine.sites)) if left_out else stored_config
    hint = _origin(saved, model)

    def read(parts: Sequence[Part]) -> Match:
        return match_adapter(engine, parts, found, stored_name, stored_config, left_out)

    what = f"Adapter {stored_name!r} in {folder}"
    if name not in engine.config:
        check_name(name)
        add_stored(engine, name, config, read, what, strict, hint, loading_info)
        if not _is_chained(saved):
            engine.act_first_only(name)
        warn_if_other(engine, saved, what)
        return name
    logger.warning("There is an adapter %r already. Its weights are replaced by those in %s.", name, folder)
    if config != engine.config.get(name):
        raise CheckpointError(
            f"{what} has another config than the adapter {name!r} of this model. Give it another name by load_as, "
            "or delete the adapter first."
        )
    result = read(engine.parts[name])
    result.check(what, strict, hint, loading_info)
    before.keep(target for target, _ in result.pairs.values())
    if name in engine.merged:
        merging.unmerge(engine, name)
    result.copy()
    warn_if_other(engine, saved, what)
    return name


def _legal(name: str) -> str:
    """A stored name as it can be here: version 1 of the library takes commas, which fusions have in their names."""
    if "," not in name:
        return name
    legal = name.replace(",", "_")
    logger.warning(
        "Adapter %r is loaded as %r: a name cannot have a comma here. load_as gives it another.", name, legal
    )
    return legal


def adapter_state(model: Any, name: str, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The tensors of an adapter by their names in files, with the values of a model's state dict if one is given.

    Raises:
        AdapterNameError: there is no such adapter.
        CheckpointError: the state dict lacks one of its tensors.
    """
    engine: Engine = model._engine
    engine.require(name)
    found = tensors_of(engine, engine.parts[name], name)
    if state is not None:
        names = {id(tensor): key for key, tensor in model.state_dict(keep_vars=True).items()}
        if missing := sorted(names[id(tensor)] for tensor in found.values() if names[id(tensor)] not in state):
            raise CheckpointError(f"The state dict lacks tensors of adapter {name!r}: {missing}.")
        found = {key: state[names[id(tensor)]] for key, tensor in found.items()}
    prefix = own_prefix(engine)
    return {f"{prefix}{key}": tensor.detach() for key, tensor in found.items()}


def add_stored(
    engine: Engine,
    name: str,
    config: AdapterConfig,
    read: Callable[[Sequence[Part]], Match],
    what: str,
    strict: bool = True,
    hint: str = "",
    loading_info: dict[str, Any] | None = None,
) -> None:
    """Add an adapter with stored values. It is built without values first, and filled when all has been checked.

    Args:
        engine: Of the model.
        name: Name of the new adapter.
        config: Its config.
        read: Holds the file against the modules of the new adapter.
        what, strict, hint, loading_info: As for `Match.check`.
    Raises:
        CheckpointError: the file does not fit. Nothing has changed then.
    """
    own = config.without_start()
    try:
        with Empty():
            parts = engine.build(name, own)
    except AdapterError:
        raise
    except Exception as error:
        raise CheckpointError(f"{what} cannot be built from its config: {error}") from error
    result = read(parts)
    result.check(what, strict, hint, loading_info)
    if not _fill(parts, result, engine):
        with torch.random.fork_rng(devices=[]):
            parts = engine.build(name, own)
        read(parts).copy()
    engine.insert(name, config, parts)


def _fill(parts: Iterable[Part], stored: Match, engine: Engine) -> bool:
    """Give the tensors of `parts`, which have no values, those of a file. False, and nothing done, if it lacks some."""
    sources = {id(target): (name, source) for name, (target, source) in stored.pairs.items()}
    slots: list[tuple[Any, str, torch.device]] = []
    for part in parts:
        device = engine.builder.like(part.hooked.site if part.hooked is not None else None).device
        for module in part.module.modules():
            for tensors in (module._parameters, module._buffers):
                slots += [(tensors, key, device) for key, tensor in tensors.items() if tensor is not None]
    if not all(id(tensors[key]) in sources for tensors, key, _ in slots):
        return False
    filled: dict[int, Tensor] = {}
    for tensors, key, device in slots:
        empty: Tensor = tensors[key]
        if id(empty) not in filled:
            values = converted(*sources[id(empty)], empty.dtype, device)
            if not empty.is_contiguous():  # other strides, other rounding
                values = torch.empty_like(empty, device=device).copy_(values)
            filled[id(empty)] = nn.Parameter(values, empty.requires_grad) if type(empty) is nn.Parameter else values
        tensors[key] = filled[id(empty)]
    return True


def _origin(saved: Mapping[str, Any], model: Any) -> str:
    source = f"{saved.get('model_class')} of type {saved.get('model_type')!r}, hidden size {saved.get('hidden_size')}"
    config = model.config
    here = f"{type(model).__name__} of type {config.model_type!r}, hidden size {getattr(config, 'hidden_size', None)}"
    return f"It was saved from {source}; this is {here}."


def match_adapter(
    engine: Engine,
    parts: Iterable[Part],
    found: Mapping[str, Tensor],
    stored_name: str,
    stored_config: AdapterConfig,
    left_out: set[int] = frozenset(),  # type: ignore[assignment]
) -> Match:
    """Hold the tensors of a file, in which the adapter is called `stored_name`, against the modules of an adapter.

    Args:
        engine: Of the model.
        parts: The modules, in the model or not yet.
        found: Tensors of the file.
        stored_name: The adapter in the file.
        stored_config: Its config in the file.
        left_out: Layers of the file that the adapter in the model does not have.
    """
    expected = tensors_of(engine, parts, stored_name)
    below = below_base(engine, found, expected)
    places: tuple[str, ...] = ()
    if left_out:
        below = without_slots(below, engine, stored_name, stored_config, left_out)
        paths = {hooked.site.path for hooked in engine.hooked if hooked.site.layer in left_out}
        places = tuple(f"{engine.names.on_disk(path)}." for path in paths)
    return match(expected, below, lambda key: is_repeated(key) or (bool(places) and key.startswith(places)))


# What stored configs mean


def stored_adapter_config(saved: Mapping[str, Any], found: Mapping[str, Tensor]) -> AdapterConfig:
    """The config of a stored adapter, in today's terms.

    Args:
        saved: Content of adapter_config.json.
        found: The adapter's tensors.
    Raises:
        ConfigError: the config is of an unknown method or has values that are not allowed.
        CheckpointError: there is no config.
    """
    stored = saved.get("config")
    if not stored or not isinstance(stored, str | Mapping):
        raise CheckpointError(f"{ADAPTER.config} has config {stored!r}. A name or a dict of hyperparameters is needed.")
    if isinstance(stored, Mapping):
        stored = dict(stored)
        version = saved.get("version")
        if version is None and (activation := str(stored.get("non_linearity"))) in OLD_ACTIVATIONS:
            stored["non_linearity"] = OLD_ACTIVATIONS[activation]
        if stored.get("architecture") == "lora" and _ignores_alpha(version) and "r" in stored:
            stored["alpha"] = stored["r"]
    config = load_config(stored)
    assert config is not None
    if saved.get("type") == "text_task" and not any(".invertible" in f".{key}" for key in found):
        config = config.without_invertible()
    return config.as_stored(found.keys())


def _ignores_alpha(version: Any) -> bool:
    """Whether files of this version were computed with alpha = r, whatever they say."""
    name, _, numbers = str(version).partition(".")
    return name == "adapters" and version_numbers(numbers) < (1, 1, 0)


def _is_chained(saved: Mapping[str, Any]) -> bool:
    """Whether a stored adapter was trained with a library that chains all methods in a `Stack`: see `chains`."""
    stored, (name, _, numbers) = saved.get(CHAINED), str(saved.get("version")).partition(".")
    return stored if isinstance(stored, bool) else name == "adapters" and version_numbers(numbers) >= (2, 0, 0)


# Loading without some layers


def without_slots(
    tensors: Mapping[str, Tensor], engine: Engine, name: str, config: AdapterConfig, layers: set[int]
) -> dict[str, Tensor]:
    """Tensors of a file in which what is stored for all layers in one tensor has no part for `layers`.

    Args:
        tensors: By name below the base model.
        engine: Of the model.
        name: The adapter in the file.
        config: Its config in the file.
        layers: Layers to leave out.
    """
    result, sharing = dict(tensors), Counter[str]()
    for member in members_of(config):
        for method in METHODS:
            if not method.shared_container or not method.handles(member):
                continue
            whole = method.shared_container
            number = sharing[whole]  # where several members of a union share something
            sharing[whole] += 1
            sites: dict[str, list[int]] = {}
            for site in (hooked.site for hooked in engine.hooked if isinstance(hooked.site, method.site_type)):
                named = selects(member, site)
                acts = method.acts_at(member, site) if named is None else named
                if acts and site.layer not in member.get("leave_out", ()):
                    sites.setdefault(getattr(site, "pool", site.location), []).append(site.layer)
            for pool, numbers in sites.items():
                starts = [engine.names.tensor(whole, name, inner) for inner in (f"{pool}.", f"{number}.{pool}.")]
                kept = [i for i, layer in enumerate(numbers) if layer not in layers]
                for key, start in [(key, start) for key in result for start in starts if key.startswith(start)]:
                    inner = key.removeprefix(start)
                    result[key] = method.kept_slots(member, inner, result[key], len(numbers), kept)
                    if not kept:
                        del result[key]
    return result
