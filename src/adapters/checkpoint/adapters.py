"""How is one adapter saved and loaded? Whole or not at all: a file that does not fit leaves the model as it was."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapters.checkpoint.atomic import reading
from adapters.checkpoint.empty import Empty
from adapters.checkpoint.layout import ADAPTER, description, version_numbers, write_interface
from adapters.checkpoint.names import Match, below_base, converted, is_repeated, match, own_prefix, tensors_of
from adapters.checkpoint.tensors import read_checkpoint, write_checkpoint
from adapters.checkpoint.undo import Before
from adapters.errors import AdapterError, CheckpointError
from adapters.methods.bottleneck import BnConfig
from adapters.methods.config import AdapterConfig, ConfigUnion, members_of
from adapters.methods.prefix_tuning import PrefixTuningConfig, flattened
from adapters.methods.presets import load as load_config
from adapters.methods.prompt_tuning import PromptTuningConfig
from adapters.methods.reft import ReftConfig
from adapters.runtime import merging
from adapters.runtime.engine import Engine, Part
from adapters.sites.resolve import AttentionSite, LayerSite

logger = logging.getLogger(__name__)

OLD_ACTIVATIONS = {"gelu": "gelu_new", "gelu_orig": "gelu"}
"""What activations were called before files had a version."""


def write_adapter(
    model: Any, folder: Path, name: str, meta: Mapping[str, Any] | None = None, use_safetensors: bool = True
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
    tensors = {prefix + key: tensor for key, tensor in tensors_of(engine, engine.parts[name], name).items()}
    data = description(model, name, config.to_dict())
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
    name = load_as or stored_name
    stored_config = stored_adapter_config(saved, found)
    left_out = set(leave_out or ())
    config = without_layers(stored_config, left_out, engine) if left_out else stored_config
    hint = _origin(saved, model)

    def read(parts: Sequence[Part]) -> Match:
        return match_adapter(engine, parts, found, stored_name, stored_config, left_out)

    what = f"Adapter {stored_name!r} in {folder}"
    if name not in engine.config:
        add_stored(engine, name, config, read, what, strict, hint, loading_info)
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
        merging.unmerge(engine)
    result.copy()
    return name


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
    own = without_start(config)
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
        device = engine.like(part.live.site if part.live is not None else None).device
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
            filled[id(empty)] = nn.Parameter(values, empty.requires_grad) if type(empty) is nn.Parameter else values
        tensors[key] = filled[id(empty)]
    return True


def without_start(config: AdapterConfig) -> AdapterConfig:
    """`config` for an adapter whose values come from a file, and so not from the model's tokenizer."""
    if isinstance(config, ConfigUnion):
        members = [without_start(member) for member in config.configs]
        same = all(new is old for new, old in zip(members, config.configs))
        return config if same else ConfigUnion(*members)
    if isinstance(config, PromptTuningConfig) and config.prompt_init == "from_string":
        return config.replace(prompt_init="random_uniform")
    return config


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
        paths = {live.site.path for live in engine.live if live.site.layer in left_out}
        places = tuple(f"{engine.spec.disk_name(path)}." for path in paths)
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
        if version is None and stored.get("non_linearity") in OLD_ACTIVATIONS:
            stored["non_linearity"] = OLD_ACTIVATIONS[stored["non_linearity"]]
        if stored.get("architecture") == "lora" and _ignores_alpha(version) and "r" in stored:
            stored["alpha"] = stored["r"]
    config = load_config(stored)
    assert config is not None
    if saved.get("type") == "text_task" and not any(".invertible" in f".{key}" for key in found):
        config = _without_invertible(config)
    if not _is_flat(config) and any(".prefix_tunings." in f".{k}" and k.endswith(".control_trans") for k in found):
        config = flattened(config)
    return config


def _ignores_alpha(version: Any) -> bool:
    """Whether files of this version were computed with alpha = r, whatever they say."""
    name, _, numbers = str(version).partition(".")
    return name == "adapters" and version_numbers(numbers) < (1, 1, 0)


def _without_invertible(config: AdapterConfig) -> AdapterConfig:
    if isinstance(config, BnConfig) and config.inv_adapter:
        return config.replace(inv_adapter=None, inv_adapter_reduction_factor=None)
    return config


def _is_flat(config: AdapterConfig) -> bool:
    return all(member.flat for member in members_of(config) if isinstance(member, PrefixTuningConfig))


# Loading without some layers


def without_layers(config: AdapterConfig, layers: set[int], engine: Engine) -> AdapterConfig:
    """`config` for an adapter that has nothing in `layers`."""
    if isinstance(config, ConfigUnion):
        return ConfigUnion(*(without_layers(member, layers, engine) for member in config.configs))
    if isinstance(config, ReftConfig):
        own = config.layers
        if own == "all":
            own = [live.site.layer for live in engine.live if isinstance(live.site, LayerSite)]
        return config.replace(layers=[layer for layer in own if layer not in layers])
    stored = config.get("leave_out")
    return config if stored is None else config.replace(leave_out=sorted({*stored, *layers}))


def without_slots(
    tensors: Mapping[str, Tensor], engine: Engine, name: str, config: AdapterConfig, layers: set[int]
) -> dict[str, Tensor]:
    """Tensors of a file in which prefixes, stored for all layers in one tensor, have no part for `layers`.

    Args:
        tensors: By name below the base model.
        engine: Of the model.
        name: The adapter in the file.
        config: Its config in the file.
        layers: Layers to leave out.
    """
    result = dict(tensors)
    for member in members_of(config):
        if not isinstance(member, PrefixTuningConfig):
            continue
        sites: dict[str, list[AttentionSite]] = {}
        for live in engine.live:
            if isinstance(live.site, AttentionSite) and live.site.layer not in member.leave_out:
                sites.setdefault(live.site.location, []).append(live.site)
        for location, group in sites.items():
            start = f"prefix_tuning.prefix_tunings.{name}.{location}."
            kept = [i for i, site in enumerate(group) if site.layer not in layers]
            for key in [key for key in result if key.startswith(start)]:
                result[key] = _kept_slots(result[key], key.removeprefix(start), member, len(group), kept)
                if not kept:
                    del result[key]
    return result


def _kept_slots(tensor: Tensor, inner: str, config: PrefixTuningConfig, count: int, kept: list[int]) -> Tensor:
    """The rows of the slots `kept`, of a tensor with `count` slots."""
    if inner == "control_trans" and tensor.numel() % (config.prefix_length * count) == 0:
        return tensor.view(config.prefix_length, count, -1)[:, kept].reshape(-1)
    if inner.startswith("control_trans.2.") and tensor.shape[0] % count == 0:
        return tensor.view(count, -1, *tensor.shape[1:])[kept].flatten(0, 1)
    return tensor
