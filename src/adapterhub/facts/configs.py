"""Adapter configs: which method they are, which named config they come from, and their id."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from ..methods import UNION, Method, Tensor, library, meets
from . import peft

__all__ = ["aliases", "config_id", "config_name", "find_named", "members", "method", "named", "scales", "trains"]

Config = Mapping[str, Any]


def named() -> Mapping[str, Config]:
    """The library's named configs: name to config."""
    return {name: preset.config for name, preset in library().presets.items()}


def aliases() -> Mapping[str, str]:
    """Names from before 2023, and today's."""
    return library().aliases


def find_named(name: str) -> Config | None:
    """The config of a name, new or old."""
    found = library().presets.get(aliases().get(name, name))
    return found.config if found else None


def members(config: Config) -> list[Config]:
    """The configs a union joins; a config that is none stands alone."""
    if config.get("architecture") == UNION and isinstance(config.get("configs"), list):
        return [member for member in config["configs"] if isinstance(member, dict)]
    return [config]


def method(config: Config) -> str | None:
    """The method of a config of ours; None where it is of none we know."""
    if config.get("architecture") == UNION:
        return UNION
    found = library().architecture(config)
    kind = found.kind(config) if found else None
    return kind.name if kind else None


def scales(config: Config) -> bool:
    """Whether a config multiplies by learned vectors, so that a rank means nothing."""
    found = library().architecture(config)
    kind = found.kind(config) if found else None
    return kind is not None and kind.scales


# ---- what trains ----------------------------------------------------------------------------------------------------


def trains(config: Config, tensor: str) -> bool:
    """Whether a tensor of an adapter's file is trained; what is not is no parameter."""
    if config.get("peft_type"):
        return peft.trains(config, tensor)
    return not any(_keeps(member, tensor) for member in members(config))


def _keeps(config: Config, tensor: str) -> bool:
    """Whether a method of a config keeps a tensor as it is in training."""
    architecture = library().architecture(config)
    if architecture is None:
        return False
    full = architecture.full(config)
    return any(
        meets(full, known.fixed) and meets(full, known.when) and _pattern(known).search(tensor)
        for found in architecture.methods_of(config)
        for known in _fixed(found)
    )


def _fixed(found: Method) -> list[Tensor]:
    return [known for known in found.tensors if known.fixed]


def _pattern(known: Tensor) -> re.Pattern[str]:
    """Which names in files mean a tensor: `path.container.adapter.unit.name`; unions may number their configs."""
    inner = re.escape(known.unit + known.name).replace(r"\*", r"[^.]+")
    return re.compile(rf"(?:^|\.){re.escape(known.container)}\.[^.]+\.(?:\d+\.)?{inner}$")


# ---- names and ids --------------------------------------------------------------------------------------------------


def config_name(config: Config) -> str | None:
    """The named config that a config comes from: equal to it but for sizes and the like."""
    shape = _shape(config)
    exact = next((name for name, known in named().items() if _full(known) == _full(config)), None)
    return exact or next((name for name, known in named().items() if _shape(known) == shape), None)


def _full(config: Config) -> Any:
    return json.loads(json.dumps(_with_defaults(config), sort_keys=True))


def _with_defaults(config: Config) -> Config:
    if config.get("architecture") == UNION:
        return {"architecture": UNION, "configs": [_with_defaults(member) for member in members(config)]}
    found = library().architecture(config)
    full = found.full(config) if found else config
    return {"architecture": None, **full}


def _shape(config: Config) -> Any:
    full = _full(config)
    if full.get("architecture") == UNION:
        return [_shape(member) for member in full["configs"]]
    found = library().architecture(full)
    fields = found.fields if found else {}
    return {key: value for key, value in full.items() if not (key in fields and fields[key].open)}


def config_id(config: Config) -> str:
    """The 16 hexadecimal digits by which the old hub named configs.

    They are not one-to-one: falsy values do not count, so that configs of different methods may share an id. Keep them
    for look-ups by old clients only.
    """
    if config.get("architecture") == UNION:
        config = {f"{i}.{key}": value for i, member in enumerate(members(config)) for key, value in member.items()}
    defaults = library().hash_defaults
    minimal = {
        key: value for key, value in _without_falsy(config).items() if key not in defaults or value != defaults[key]
    }
    return hashlib.sha1(json.dumps(minimal, sort_keys=True).encode()).hexdigest()[:16]


def _without_falsy(config: Config) -> dict[str, Any]:
    kept = ((key, _without_falsy(value) if isinstance(value, dict) else value) for key, value in config.items())
    return {key: value for key, value in kept if value}
