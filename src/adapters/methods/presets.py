"""Which config does a user mean? Identifiers, config strings, dicts and JSON files, all to configs."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapters.errors import ConfigError, choices
from adapters.methods import METHODS
from adapters.methods.config import FINDERS, AdapterConfig, ConfigUnion, FrozenMapping
from adapters.methods.unions import TITLES, MAMConfig, UniPELTConfig

_CURRENT: dict[str, AdapterConfig] = {
    **{name: config for method in METHODS for name, config in method.presets.items()},
    "mam": MAMConfig(),
    "unipelt": UniPELTConfig(),
}
DEPRECATED_IDENTIFIERS = {
    "pfeiffer": "seq_bn",
    "houlsby": "double_seq_bn",
    "parallel": "par_bn",
    "scaled_parallel": "scaled_par_bn",
    "pfeiffer+inv": "seq_bn_inv",
    "houlsby+inv": "double_seq_bn_inv",
}
"""Names from before 2023, as they stand in old files, and today's."""

ADAPTER_CONFIG_MAP: dict[str, AdapterConfig] = {
    **_CURRENT,
    **{old: _CURRENT[new] for old, new in DEPRECATED_IDENTIFIERS.items()},
}
PRESET_TITLES: dict[str, str] = {
    name: title for titles in (*(method.titles for method in METHODS), TITLES) for name, title in titles.items()
}
"""What people call the kinds of configs, and the presets that have a title of their own."""

DEFAULT_ADAPTER_CONFIG = "seq_bn"

ARCHITECTURES: dict[str | None, type[AdapterConfig]] = {
    **{method.config_class.architecture: method.config_class for method in METHODS},
    "union": ConfigUnion,
}
"""Value of `architecture` in a config dict -> class that reads the dict."""


class UnknownArchitectureError(KeyError, ConfigError):
    """A config dict is of a method that does not exist here."""

    def __str__(self) -> str:
        return str(self.args[0])


def load(config: Any, **overrides: Any) -> AdapterConfig | None:
    """Finds a config by whatever names it. See `AdapterConfig.load`."""
    if not config:
        return None
    if isinstance(config, AdapterConfig):
        found = config
    elif isinstance(config, Mapping) and not isinstance(config, FrozenMapping):
        found = config_from_dict(config)
    elif isinstance(config, str) and config in ADAPTER_CONFIG_MAP:
        found = ADAPTER_CONFIG_MAP[config]
    elif isinstance(config, str | os.PathLike) and _is_file(config):
        found = _from_file(Path(config))
    elif isinstance(config, str):
        found = parse_config_string(config)
    else:
        raise ConfigError(
            f"{config!r} is a {type(config).__name__}, which is no adapter config. Give an AdapterConfig, "
            "its dict, a name such as 'lora', a string such as 'lora[r=4]', or the path of a JSON file."
        )
    changes = {name: value for name, value in overrides.items() if value is not None}
    return found.replace(**changes) if changes else found


def config_from_dict(config: Mapping[str, Any]) -> AdapterConfig:
    """Reads a config dict of any method; one without `architecture` is a bottleneck.

    Raises:
        UnknownArchitectureError: no method has this `architecture`.
        ConfigError: a value is not allowed, or a field without default is missing.
    """
    architecture = config.get("architecture")
    if not isinstance(architecture, str | None) or architecture not in ARCHITECTURES:
        known = [name for name in ARCHITECTURES if name]
        raise UnknownArchitectureError(
            f"A config has architecture {architecture!r}. {choices(architecture, known)} Bottlenecks have none."
        )
    return ARCHITECTURES[architecture].from_dict(config)


def parse_config_string(config: str) -> AdapterConfig:
    """Reads `name[key=value, ...]`, or several of them joined by `|` as a union. Values are Python literals.

    Raises:
        ConfigError: the string has another form, or names something unknown.
    """
    members = [_parse_member(part.strip(), config) for part in _parts(config)]
    return members[0] if len(members) == 1 else ConfigUnion(*members)


def _parts(config: str) -> list[str]:
    """Splits at each `|` that is outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for char in config:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "[({":
            depth += 1
        elif char in "])}":
            depth -= 1
        elif char == "|" and depth == 0:
            parts.append("")
            continue
        parts[-1] += char
    return parts


def _parse_member(part: str, whole: str) -> AdapterConfig:
    name, bracket, rest = part.partition("[")
    name = name.strip()
    if name not in ADAPTER_CONFIG_MAP:
        hint = " There is no such file either." if os.sep in whole or whole.endswith(".json") else ""
        raise ConfigError(f"There is no adapter config {name!r}.{hint} {choices(name, _CURRENT)}")
    found = ADAPTER_CONFIG_MAP[name]
    if not bracket:
        return found
    form = f"{part!r} cannot be read. Write name[key=value, ...] with literals, such as lora[r=4,dropout=0.1]."
    if not rest.endswith("]"):
        raise ConfigError(form)
    try:
        call = ast.parse(f"_({rest[:-1]})", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ConfigError(form)
        pairs = [(keyword.arg, ast.literal_eval(keyword.value)) for keyword in call.keywords]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise ConfigError(form) from None
    changes = {key: value for key, value in pairs if key is not None}
    if len(changes) < len(pairs):
        raise ConfigError(form)
    return found.replace(**changes) if changes else found


def _is_file(path: str | os.PathLike[str]) -> bool:
    try:
        return os.path.isfile(path)
    except ValueError:
        return False


def _from_file(path: Path) -> AdapterConfig:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not a readable JSON file: {error}") from None
    config = content.get("config", content) if isinstance(content, dict) else content
    if isinstance(config, dict) and config:
        return config_from_dict(config)
    if isinstance(config, str):
        return parse_config_string(config)
    raise ConfigError(f"{path} holds {config!r}, which is no adapter config. A dict or a name is needed.")


FINDERS.load, FINDERS.from_dict = load, config_from_dict
