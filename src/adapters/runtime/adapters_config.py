"""What does a model have, with what configs: adapters, and what blocks own? The register, and its form in files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from adapters.composition.blocks import AdapterCompositionBlock, last_name
from adapters.composition.owned import BlockModule
from adapters.composition.registry import BLOCK_MODULES
from adapters.errors import AdapterNameError, ConfigError, choices
from adapters.methods.config import AdapterConfig, ConfigUnion, FrozenMapping, get_adapter_config_hash
from adapters.methods.presets import ADAPTER_CONFIG_MAP, DEFAULT_ADAPTER_CONFIG, config_from_dict, load

ConfigT = TypeVar("ConfigT", bound=AdapterConfig)
MapT = TypeVar("MapT", bound=FrozenMapping)


class OwnedRegister:
    """What blocks of one kind own in a model, by name.

    Attributes:
        kind: Class of the modules.
        configs: Name -> id of its config, which may be an identifier such as "dynamic".
        config_map: Id -> config, of those that are no identifiers.
        name_map: Name -> adapters, None for "no adapter", where they do not follow from the name.
    """

    def __init__(self, kind: type[BlockModule]) -> None:
        self.kind = kind
        self.configs: dict[str, str] = {}
        self.config_map: dict[str, Any] = {}
        self.name_map: dict[str, list[str | None]] = {}

    def name_of(self, adapters: Sequence[str | None], own: str | None) -> str:
        """The name for what combines some adapters: `own`, or what follows from them.

        Raises:
            AdapterNameError: a name is malformed, or no adapters are named.
        """
        if not any(adapter is not None for adapter in adapters):
            raise AdapterNameError(f"A {self.kind.noun} of no adapters was asked for. Name at least one adapter.")
        for adapter in adapters:
            if adapter is not None or not self.kind.optional:
                check_name(adapter)
        joined = joined_names(adapters)
        if own is not None and own != joined:
            check_name(own, self.kind.noun)
            return own
        return joined

    def add(self, adapters: Sequence[str | None], config: Any = None, own: str | None = None) -> Any:
        """Registers what combines some adapters, and returns its config. Raises as `name_of`, and if it is there."""
        name = self.name_of(adapters, own)
        if name in self.configs:
            raise AdapterNameError(
                f"There is a {self.kind.noun} {name!r} already. Choose another name, or pass overwrite_ok=True."
            )
        found = self.kind.load_config(config)
        if isinstance(config, str) or not config:
            self.configs[name] = config or self.kind.default
        else:
            self.configs[name] = _store(found, self.config_map, self.kind.presets)
        if own is not None or None in adapters:
            self.name_map[name] = list(adapters)
        return found

    def config_of(self, name: str) -> Any:
        """The config of one that is there."""
        key = self.configs[name]
        return self.config_map[key] if key in self.config_map else self.kind.presets[key]

    def adapters_of(self, name: str) -> list[str | None]:
        """The adapters that one combines which is there."""
        return list(self.name_map.get(name) or name.split(","))

    def delete(self, name: str) -> None:
        """Forgets one; does nothing if there is none of this name."""
        key = self.configs.pop(name, None)
        self.name_map.pop(name, None)
        if key is not None and key not in self.configs.values():
            self.config_map.pop(key, None)

    def to_dict(self) -> dict[str, Any]:
        """Its entries for the key "adapters" of config.json."""
        noun = self.kind.noun
        return {
            f"{noun}_config_map": {key: config.to_dict() for key, config in self.config_map.items()},
            f"{noun}_name_map": {name: list(adapters) for name, adapters in self.name_map.items()},
            f"{noun}s": dict(self.configs),
        }

    def restore(self, data: Mapping[str, Any]) -> None:
        """Reads what `to_dict` wrote, in older forms too. Raises as `add`."""
        noun = self.kind.noun
        names_of, stored = data.get(f"{noun}_name_map") or {}, data.get(f"{noun}_config_map") or {}
        for name, entry in (data.get(f"{noun}s") or {}).items():
            config = stored.get(entry, entry) if isinstance(entry, str) else entry
            self.add(names_of.get(name) or _split(name), config, name if name in names_of else None)
        for name, names in names_of.items():
            joined = ",".join(_split(names)) if None not in names else ""
            if name not in self.configs and joined in self.configs:
                self.add(_split(names), self.config_of(joined), name)


def joined_names(adapters: Iterable[str | None]) -> str:
    """The name that follows from some adapters: "a,b"; nothing stands between the commas for "no adapter"."""
    return ",".join(adapter or "" for adapter in adapters)


class ModelAdaptersConfig:
    """The adapters of one model and what its blocks own, by name; iterating gives the adapters' names.

    Attributes:
        adapters: Adapter name -> id of its config.
        config_map: Id -> config.
        owned: What blocks own, by the noun of their kind ("fusion").
        active_setup: The block that is active, or None.
        skip_layers: Layers whose adapters are switched off, or None.
    """

    def __init__(self) -> None:
        self.adapters: dict[str, str] = {}
        self.config_map: dict[str, AdapterConfig] = {}
        self.owned = {kind.noun: OwnedRegister(kind) for kind in BLOCK_MODULES}
        self.active_setup: AdapterCompositionBlock | None = None
        self.skip_layers: list[int] | None = None

    def __contains__(self, name: object) -> bool:
        return name in self.adapters

    def __iter__(self) -> Iterator[str]:
        return iter(self.adapters)

    def __len__(self) -> int:
        return len(self.adapters)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(adapters={list(self.adapters)}, fusions={list(self.fusions)})"

    def add(self, name: str, config: Any = None) -> AdapterConfig:
        """Registers an adapter.

        Args:
            name: Its name; without "." and ",", which have a meaning in tensor names and fusion names.
            config: Whatever `AdapterConfig.load` understands; by default `DEFAULT_ADAPTER_CONFIG`.
        Returns:
            The adapter's config.
        Raises:
            AdapterNameError: the name is malformed or taken.
            ConfigError: the config is not valid.
        """
        check_name(name)
        if name in self.adapters:
            raise AdapterNameError(
                f"There is an adapter {name!r} already. Choose another name, or pass overwrite_ok=True."
            )
        found = load(config or DEFAULT_ADAPTER_CONFIG)
        assert found is not None
        self.adapters[name] = _store(found, self.config_map)
        return found

    def get(self, name: str) -> AdapterConfig | None:
        """The config of an adapter, None if there is no such adapter."""
        key = self.adapters.get(name)
        return None if key is None else self.config_map[key]

    def delete(self, name: str) -> None:
        """Forgets an adapter; does nothing if there is none of this name."""
        key = self.adapters.pop(name, None)
        if key is not None and key not in self.adapters.values():
            del self.config_map[key]

    def match(
        self,
        name: str,
        config_type: type[ConfigT],
        layer_idx: int | None = None,
        location_key: str | None = None,
    ) -> ConfigT | None:
        """Finds the config, or the member of a union, by which an adapter acts at one place.

        Args:
            name: Name of the adapter.
            config_type: Class that the config must have.
            layer_idx: Layer that must not be in the config's leave_out.
            location_key: Field that must be true in the config, such as "output_adapter".
        Returns:
            The config, or None if the adapter does not act there.
        Raises:
            ConfigError: several members of a union act there.
        """
        config = self.get(name)
        members: Sequence[AdapterConfig | None] = [config]
        if isinstance(config, ConfigUnion) and not isinstance(config, config_type):
            members = config.configs
        found = [
            member
            for member in members
            if isinstance(member, config_type)
            and (layer_idx is None or layer_idx not in (member.get("leave_out") or ()))
            and (location_key is None or member.get(location_key))
        ]
        if len(found) > 1:
            raise ConfigError(
                f"Adapter {name!r}: {len(found)} members of its union act at "
                f"{location_key or config_type.__name__} of layer {layer_idx}, only one can. "
                f"Give the others leave_out=[{layer_idx}]."
            )
        return found[0] if found else None

    # Fusions, under the names that they have had from the beginning.

    @property
    def fusions(self) -> dict[str, str]:
        """Fusion name -> id of its config, which may be an identifier such as "dynamic"."""
        return self.owned["fusion"].configs

    @property
    def fusion_config_map(self) -> dict[str, Any]:
        """Id -> fusion config."""
        return self.owned["fusion"].config_map

    @property
    def fusion_name_map(self) -> dict[str, list[str | None]]:
        """Names of fusions that have one of their own -> names of the fused adapters."""
        return self.owned["fusion"].name_map

    def add_fusion(
        self, adapter_names: Sequence[str] | str, config: Any = None, fusion_name: str | None = None
    ) -> tuple[Any, list[str]]:
        """Registers an AdapterFusion.

        Args:
            adapter_names: The fused adapters, a list or a string joined by commas.
            config: Whatever `AdapterFusionConfig.load` understands; by default "dynamic".
            fusion_name: Its name; by default the adapters' names joined by commas.
        Returns:
            The fusion's config and the names of the fused adapters.
        Raises:
            AdapterNameError: the name is malformed or taken, or no adapters are named.
            ConfigError: the config is not valid.
        """
        names = _split(adapter_names)
        return self.owned["fusion"].add(names, config, fusion_name), names

    def get_fusion(self, fusion_name: Sequence[str] | str) -> tuple[Any, list[Any]] | tuple[None, None]:
        """The config and the fused adapters' names of a fusion, (None, None) if there is no such fusion."""
        name = fusion_name if isinstance(fusion_name, str) else ",".join(fusion_name)
        if name not in self.fusions:
            return None, None
        return self.owned["fusion"].config_of(name), self.owned["fusion"].adapters_of(name)

    def delete_fusion(self, fusion_name: Sequence[str] | str) -> None:
        """Forgets a fusion; does nothing if there is none of this name."""
        self.owned["fusion"].delete(fusion_name if isinstance(fusion_name, str) else ",".join(fusion_name))

    @property
    def routings(self) -> dict[str, str]:
        """Name of the gates of a `Route` block -> id of their config, which may be an identifier such as "token"."""
        return self.owned["routing"].configs

    def common_config_value(self, adapter_names: Iterable[str], attribute: str) -> Any:
        """The value that all these adapters have for a field; None for those that do not have the field.

        In a union the member that has the field counts. If several have it, their common value does, or
        whether it is true for any of them.

        Raises:
            AdapterNameError: there is no such adapter.
            ConfigError: the adapters differ in the field.
        """
        values: dict[str, Any] = {}
        for name in adapter_names:
            config = self.get(name)
            if config is None:
                raise AdapterNameError(f"There is no adapter {name!r}. {choices(name, self.adapters)}")
            values[name] = _value(config, attribute)
        found = list(values.values())
        if any(value != found[0] for value in found):
            listed = ", ".join(f"{name!r} has {value!r}" for name, value in values.items())
            raise ConfigError(f"Adapters that are used together differ in {attribute}: {listed}.")
        return found[0] if found else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the key "adapters" of config.json."""
        data: dict[str, Any] = {
            "adapters": dict(self.adapters),
            "config_map": {key: config.to_dict() for key, config in self.config_map.items()},
        }
        for register in self.owned.values():
            if register.configs or register.kind.noun == "fusion":  # older readers look for these entries
                data |= register.to_dict()
        return data

    @classmethod
    def from_dict(
        cls,
        data: Mapping[str, Any] | None,
        fusion_models: Iterable[Sequence[str] | str] | None = None,
        fusion_config: Any = None,
    ) -> ModelAdaptersConfig:
        """Reads the register from config.json, in the form of `to_dict` and in older ones.

        Args:
            data: Value of the key "adapters".
            fusion_models: Value of the old key "adapter_fusion_models", the adapters of each fusion.
            fusion_config: Value of the old key "adapter_fusion", one config for all these fusions.
        Raises:
            ConfigError: an adapter's config is neither in the dict nor a known identifier.
            AdapterNameError: a name is malformed.
        """
        data = data or {}
        self = cls()
        stored = data.get("config_map") or {}
        for name, entry in (data.get("adapters") or {}).items():
            self._restore(name, entry, stored)
        for register in self.owned.values():
            register.restore(data)
        for names in fusion_models or ():
            if ",".join(_split(names)) not in self.fusions:
                self.add_fusion(names, fusion_config)
        return self

    def _restore(self, name: str, entry: Any, stored: Mapping[str, Any]) -> None:
        if isinstance(entry, list | tuple):
            entry = next((part for part in reversed(entry[:2]) if part), None)
        config = stored.get(entry, entry) if isinstance(entry, str) else entry
        if isinstance(config, str) and config not in ADAPTER_CONFIG_MAP:
            raise ConfigError(
                f"Adapter {name!r} is stored with config {entry!r}, which is neither in config_map nor "
                f"a known name. {choices(entry, [*stored, *ADAPTER_CONFIG_MAP])}"
            )
        if not config:
            raise ConfigError(f"Adapter {name!r} is stored without a config. A name or a dict is needed.")
        found = config_from_dict(config) if isinstance(config, Mapping) else config
        self.add(name, found)


def check_name(name: Any, kind: str = "adapter") -> None:
    """Refuses names that cannot be used in tensor names or in fusion names.

    Raises:
        AdapterNameError: the name is no string, is empty, or has a "." or ",".
    """
    if isinstance(name, str) and name and not set(name) & {".", ","}:
        return
    hint = f" {name.translate({46: '_', 44: '_'})!r} would do." if isinstance(name, str) and name else ""
    raise AdapterNameError(f"{name!r} cannot name an {kind}. Give a non-empty string without '.' and ','.{hint}")


def _store(config: MapT, configs: dict[str, MapT], reserved: Iterable[str] = ()) -> str:
    """Files a config under its hash, or under a variant of it if another config has the same hash."""
    base = key = get_adapter_config_hash(config)
    number = 1
    while key in reserved or (key in configs and not _same(configs[key], config)):
        number += 1
        key = f"{base}_{number}"
    configs.setdefault(key, config)
    return key


def _same(one: FrozenMapping, other: FrozenMapping) -> bool:
    return type(one) is type(other) and one == other and dict(one) == dict(other)


def _split(names: Sequence[str] | str) -> list[str]:
    if isinstance(names, AdapterCompositionBlock):
        return [str(last_name(child)) for child in names]
    return [name.strip() for name in names.split(",") if name.strip()] if isinstance(names, str) else list(names)


def _value(config: AdapterConfig, attribute: str) -> Any:
    if not isinstance(config, ConfigUnion):
        return config.get(attribute)
    values = [member[attribute] for member in config.configs if attribute in member]
    if not values:
        return None
    return values[0] if all(value == values[0] for value in values) else any(values)
