"""What is a method's config? A frozen mapping with checked fields that survives a JSON file unchanged.

Also here: unions of configs, and the hash by which other tools tell configs apart. Finding a config by name
is `presets.py`.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, FrozenInstanceError, dataclass, field, fields
from functools import cache
from math import isfinite
from typing import Any, ClassVar, NamedTuple, TypeVar

from adapters.errors import ConfigError, choices
from adapters.methods.places import ALL, ENTRY, is_places, names_inputs

ConfigT = TypeVar("ConfigT", bound="FrozenMapping")


class ConfigTypeError(TypeError, ConfigError):
    """A config has no such field, or a union was asked to hold something that it cannot."""


class Rule(NamedTuple):
    """What a field may hold: words for the message, the test, and the same as JSON Schema for programs without us.

    The schema has one type beside those of JSON Schema: "float", a number that is written with a decimal point.
    """

    allowed: str
    holds: Callable[[Any], bool]
    schema: Mapping[str, Any]

    def __or__(self, other: Rule) -> Rule:
        return Rule(
            f"{self.allowed} or {other.allowed}",
            lambda value: self.holds(value) or other.holds(value),
            {"anyOf": [*self.schema.get("anyOf", [self.schema]), *other.schema.get("anyOf", [other.schema])]},
        )


def _is_number(value: Any) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, float) and isfinite(value))


def number(low: float, high: float = float("inf"), *, above: bool = False, below: bool = False) -> Rule:
    """An int or float from `low` to `high`; `above` and `below` exclude the ends."""

    def holds(value: Any) -> bool:
        if not _is_number(value):
            return False
        return bool((low < value if above else low <= value) and (value < high if below else value <= high))

    schema: dict[str, Any] = {"type": "number", "exclusiveMinimum" if above else "minimum": low}
    if high == float("inf"):
        return Rule(f"a number {'above' if above else 'of at least'} {low}", holds, schema)
    schema["exclusiveMaximum" if below else "maximum"] = high
    return Rule(f"a number in {'(' if above else '['}{low}, {high}{')' if below else ']'}", holds, schema)


def integer(low: int) -> Rule:
    """A whole number of at least `low`."""
    return Rule(
        f"an integer of at least {low}",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= low,
        {"type": "integer", "minimum": low},
    )


def one_of(*values: str) -> Rule:
    """One of these strings."""
    return Rule(
        ", ".join(map(repr, values)),
        lambda value: isinstance(value, str) and value in values,
        {"enum": list(values)},
    )


def text_such_as(*values: str) -> Rule:
    """Any string; these are the ones that mean something."""
    return Rule("a string", lambda value: isinstance(value, str), {"type": "string", "examples": list(values)})


def list_of(rule: Rule) -> Rule:
    """A list whose items follow `rule`."""
    return Rule(
        f"a list of items, each {rule.allowed}",
        lambda value: isinstance(value, list) and all(rule.holds(item) for item in value),
        {"type": "array", "items": rule.schema},
    )


def per_layer(rule: Rule) -> Rule:
    """A non-empty mapping from layer numbers as strings, and maybe "default", to what `rule` allows."""

    def holds(value: Any) -> bool:
        if not isinstance(value, dict) or not value:
            return False
        return all((k == "default" or k.isdecimal()) and rule.holds(v) for k, v in value.items())

    schema = {"type": "object", "minProperties": 1, "propertyNames": {"pattern": r"^(default|\d+)$"}}
    return Rule(
        f"a mapping from layer number, or 'default', to {rule.allowed}",
        holds,
        {**schema, "additionalProperties": rule.schema},
    )


flag = Rule("True or False", lambda value: isinstance(value, bool), {"type": "boolean"})
real = Rule("a number", _is_number, {"type": "number"})
text = text_such_as()
nothing = Rule("None", lambda value: value is None, {"type": "null"})
decimal = Rule(
    "a float (with a decimal point)", lambda value: isinstance(value, float) and isfinite(value), {"type": "float"}
)
probability = number(0, 1)
layer_numbers = list_of(integer(0))
attention_letters = list_of(text_such_as("q", "k", "v"))
seed = nothing | Rule(
    "an integer in [0, 2 ** 64)",
    lambda value: integer(0).holds(value) and value < 2**64,
    {"type": "integer", "minimum": 0, "exclusiveMaximum": 2**64},
)
some_places = Rule(
    "a list of roles, module paths or patterns over them, each if you like after layers and a colon, such as "
    "'attn.q', '*.o', '0-3:ffn' or 'all-linear'",
    is_places,
    {"type": "array", "minItems": 1, "items": {"type": "string", "pattern": f"^{ENTRY}$"}},
)
place_patterns = nothing | some_places

KNOWN_ACTIVATIONS = frozenset(
    ("gelu", "gelu_10", "gelu_fast", "gelu_new", "gelu_python", "gelu_pytorch_tanh", "hardswish", "leakyrelu")
    + (
        "leaky_relu",
        "linear",
        "mish",
        "quick_gelu",
        "relu",
        "relu2",
        "relu6",
        "sigmoid",
        "silu",
        "swish",
        "tanh",
    )
)
"""Activations that need no look into the installed Transformers."""


def _is_activation(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    if value.lower() in KNOWN_ACTIVATIONS:
        return True
    from transformers.activations import ACT2FN

    return value.lower() in ACT2FN


activation = Rule(
    f"the name of an activation in Transformers, such as {', '.join(sorted(KNOWN_ACTIVATIONS))}",
    _is_activation,
    {"type": "string"},
)

DTYPES = ("float16", "half", "bfloat16", "float32", "float", "float64", "double")
dtype_name = nothing | one_of(*DTYPES)


class FrozenMapping(Mapping[str, Any]):
    """A dataclass that reads like a mapping, checks its fields by `rules` and cannot be changed afterwards.

    New attributes may be added; they show in the mapping but not in `to_dict`.
    """

    rules: ClassVar[Mapping[str, Rule]] = {}

    def __post_init__(self) -> None:
        for name in self._field_names():
            self.__dict__[name] = _plain(self.__dict__[name])
        for owner in reversed(type(self).__mro__):
            for name, rule in vars(owner).get("rules", {}).items():
                if not rule.holds(getattr(self, name)):
                    raise self._error(name, f"Allowed: {rule.allowed}.")

    def _error(self, name: str, advice: str) -> ConfigError:
        return ConfigError(f"{type(self).__name__}: {name} is {getattr(self, name)!r}. {advice}")

    @classmethod
    def _field_names(cls) -> list[str]:
        return _names_of(cls)

    def _written(self) -> list[str]:
        """Names of the fields that go into files."""
        return self._field_names()

    def _extras(self) -> dict[str, Any]:
        known = set(self._field_names())
        return {name: value for name, value in self.__dict__.items() if name not in known}

    def _has(self, name: str) -> bool:
        return name in self._field_names() or name in self._extras()

    def __setattr__(self, name: str, value: Any) -> None:
        unset_field = name in self._field_names() and name not in self.__dict__
        if not unset_field and hasattr(self, name):
            raise FrozenInstanceError(
                f"{type(self).__name__}.{name} cannot be set. Use replace({name}=...) for a copy."
            )
        self.__dict__[name] = value

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"{type(self).__name__}.{name} cannot be deleted.")

    def __getitem__(self, key: str) -> Any:
        if key in self._written() or key in self._extras():
            return self.__dict__[key]
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter([*self._written(), *self._extras()])

    def __len__(self) -> int:
        return len(self._written()) + len(self._extras())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FrozenMapping):
            return NotImplemented
        return self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data, in the order of their definition; safe to change."""
        return {name: copy.deepcopy(self.__dict__[name]) for name in self._written()}

    def replace(self: ConfigT, **changes: Any) -> ConfigT:
        """A checked copy with some fields changed.

        Raises:
            ConfigTypeError: a keyword is no field of this config.
            ConfigError: a value is not allowed.
        """
        names, extras = self._field_names(), self._extras()
        for name in changes:
            if not self._has(name):
                raise _no_such_field(type(self).__name__, name, names)
        values = {name: changes.get(name, self.__dict__[name]) for name in names}
        return self._with_extras(type(self)(**values), {k: changes.get(k, v) for k, v in extras.items()})

    @classmethod
    def from_dict(cls: type[ConfigT], config: Mapping[str, Any]) -> ConfigT:
        """Reads what `to_dict` wrote; absent fields take their defaults, unknown ones become attributes.

        Raises:
            ConfigError: a value is not allowed, or a field without default is missing.
        """
        names = cls._field_names()
        given = {name: config[name] for name in names if name in config}
        missing = [
            field.name
            for field in fields(cls)  # type: ignore[arg-type]
            if field.name not in given and field.default is MISSING and field.default_factory is MISSING
        ]
        if missing:
            raise ConfigError(
                f"{cls.__name__}: {', '.join(missing)} missing from {dict(config)!r}. "
                f"Add {'it' if len(missing) == 1 else 'them'}."
            )
        unknown = {name: config[name] for name in config if name not in names}
        return cls._with_extras(cls(**given), unknown)

    @staticmethod
    def _with_extras(config: ConfigT, extras: Mapping[str, Any]) -> ConfigT:
        for name, value in extras.items():
            if name == "architecture" and value is None:
                continue
            if hasattr(type(config), str(name)):
                raise ConfigError(f"{type(config).__name__}: {name!r} cannot be the name of a hyperparameter.")
            config.__dict__[name] = _plain(value)
        return config


@cache
def _names_of(owner: type) -> list[str]:
    """Names of the fields of a dataclass."""
    return [field.name for field in fields(owner)]


def _plain(value: Any) -> Any:
    """A copy made of the types that JSON has, so that no caller can change a config from outside."""
    if isinstance(value, Mapping) and not isinstance(value, FrozenMapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [_plain(item) for item in value]
    return value


def _no_such_field(owner: str, name: str, names: list[str]) -> ConfigTypeError:
    return ConfigTypeError(f"{owner} has no field {name!r}. {choices(name, names)}")


class Finders:
    """What finds configs of all methods: they derive from the classes here, so that `presets.py` has to fill this in.

    Attributes:
        load: See `AdapterConfig.load`.
        from_dict: Makes a config of the class that a dict is of.
    """

    load: Callable[..., AdapterConfig | None]
    from_dict: Callable[[Mapping[str, Any]], AdapterConfig]


FINDERS = Finders()


class AdapterConfig(FrozenMapping):
    """Base of all configs: one method with its hyperparameters. Use a subclass or `AdapterConfig.load`."""

    architecture: str | None = None
    flags: ClassVar[tuple[str, ...]] = ()
    """Fields that say where the adapters act if `places` is None, each the location of the sites that it means."""

    newer: ClassVar[tuple[str, ...]] = ()
    """Fields that are written only where they are not what they are by default: older readers do not know them."""

    def meets(self, other: AdapterConfig) -> bool:
        """Whether the flags of two configs of one method may choose the same place."""
        return True

    use_gating: bool
    gate_attended: bool

    def __new__(cls, *args: Any, **kwargs: Any) -> AdapterConfig:
        if cls is AdapterConfig:
            raise TypeError("AdapterConfig itself says no method. Use AdapterConfig.load(...), or a subclass.")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        if isinstance(places := self.__dict__.get("places"), str):
            self.__dict__["places"] = places.split("+")
        if isinstance(layers := self.__dict__.get("leave_out"), list | tuple | range):
            self.__dict__["leave_out"] = [int(n) if isinstance(n, str) and n.isdecimal() else n for n in layers]
        super().__post_init__()
        if self.architecture != type(self).architecture:
            raise self._error("architecture", f"It can only be {type(self).architecture!r} in this class.")
        if names_inputs(self) and not self.scales:
            raise self._error("places", "Only methods that scale (ia3) act on the input of a linear map.")

    @property
    def kind(self) -> str:
        """Short name of what the fields describe, for listings: one of the `titles` of the method."""
        return str(self.architecture)

    @property
    def scales(self) -> bool:
        """Whether the method multiplies by a vector, so that it can act on what a linear map reads too."""
        return False

    def _written(self) -> list[str]:
        """Names of the fields that go into files: those that old files lack only where they say more."""
        silent = {"places"} if self.__dict__.get("places") is None else set()
        silent |= {name for name in self.newer if self.__dict__[name] == getattr(type(self), name)}
        if "gate_attended" in self.__dict__ and not (self.use_gating and self.gate_attended):
            silent.add("gate_attended")
        return [name for name in super()._written() if name not in silent]

    def as_stored(self: ConfigT, names: Collection[str]) -> ConfigT:
        """This config as a file with tensors of these names means it."""
        return self

    def without_invertible(self: ConfigT) -> ConfigT:
        """This config without invertible adapters."""
        return self

    def without_start(self: ConfigT) -> ConfigT:
        """This config for an adapter whose values are known, so that nothing is read to initialise it."""
        return self

    def without_layers(self: ConfigT, layers: Collection[int], all_layers: Sequence[int]) -> ConfigT:
        """This config for an adapter that has nothing in `layers`, of a model with `all_layers`."""
        stored = self.get("leave_out")
        return self if stored is None else self.replace(leave_out=sorted({*stored, *layers}))

    @classmethod
    def from_dict(cls: type[ConfigT], config: Mapping[str, Any]) -> ConfigT:
        if cls is AdapterConfig:
            return FINDERS.from_dict(config)  # type: ignore[return-value]
        if config.get("use_gating") and "gate_attended" not in config and "gate_attended" in cls._field_names():
            config = {**config, "gate_attended": False}  # trained with a gate that averages over padding too
        return super().from_dict(config)

    @classmethod
    def load(cls, config: Any, **kwargs: Any) -> AdapterConfig | None:
        """Finds a config by whatever names it.

        Args:
            config: A config, its dict, an identifier ("lora"), a config string ("lora[r=4]|prefix_tuning") or
                the path of a JSON file.
            kwargs: Fields to change in the config; those that are None are ignored.
        Returns:
            The config, or None if `config` is empty.
        Raises:
            ConfigError: nothing is known under this name, or a value is not allowed.
        """
        return FINDERS.load(config, **kwargs)


@dataclass(eq=False)
class PlacedConfig(AdapterConfig):
    """What configs have in common that say where by `places` alone.

    Args:
        leave_out: Layers without adapter, counted from 0.
        init_weights_seed: Seed set before each module is initialised; None leaves the generator alone.
        dtype: Name of the adapter's torch dtype, such as "bfloat16"; None for the default.
        places: Where to adapt, as roles, module paths or patterns (`methods/places.py`).
    Raises:
        ConfigError: a value is of another type or outside its range.
    """

    leave_out: list[int] = field(default_factory=list)
    init_weights_seed: int | None = None
    dtype: str | None = None
    places: str | list[str] = field(default_factory=lambda: [ALL])

    rules: ClassVar[Mapping[str, Rule]] = {
        "leave_out": layer_numbers,
        "init_weights_seed": seed,
        "dtype": dtype_name,
        "places": some_places,
    }


@dataclass(eq=False)
class MultiTaskConfig(AdapterConfig):
    """Marks methods whose adapters can share parameters between tasks."""

    def __new__(cls, *args: Any, **kwargs: Any) -> MultiTaskConfig:
        if cls is MultiTaskConfig:
            raise TypeError("MultiTaskConfig only marks methods. Use MTLLoRAConfig.")
        return super().__new__(cls)  # type: ignore[return-value]


class ConfigUnion(AdapterConfig):
    """Several methods under one adapter name.

    The mapping has the fields of member i as "i.field"; `union[i]` is the member itself.

    Args:
        configs: The members. Two of the same method must not meet at one place: their flags, leave_out or places keep
            them apart. Where places or leave_out do, that is checked when the adapter is added to a model.
    Raises:
        ConfigTypeError: a member is no config, or is a union.
        ConfigError: two members would meet.
    """

    architecture: str | None = "union"
    configs: list[AdapterConfig]

    def __init__(self, *configs: AdapterConfig) -> None:
        self.validate(configs)
        self.__dict__["architecture"] = "union"
        self.__dict__["configs"] = list(configs)

    @staticmethod
    def validate(configs: tuple[AdapterConfig, ...] | list[AdapterConfig]) -> None:
        """Checks that these configs can be members of one union."""
        for config in configs:
            if not isinstance(config, AdapterConfig) or isinstance(config, ConfigUnion):
                raise ConfigTypeError(
                    f"ConfigUnion: member {config!r} is a {type(config).__name__}. "
                    "Allowed: configs, but no unions; give the members of a union one by one."
                )
        for i, one in enumerate(configs):
            for other in configs[:i]:
                if one.architecture == other.architecture and not _apart(one, other):
                    flags = f", or set {', '.join(one.flags)} apart" if one.flags else ""
                    raise ConfigError(
                        f"ConfigUnion: {type(other).__name__} and {type(one).__name__} are both of "
                        f"architecture {one.architecture!r} and would meet at one place. Give them other places, give "
                        f"one a leave_out{flags}."
                    )

    def as_stored(self: ConfigT, names: Collection[str]) -> ConfigT:
        assert isinstance(self, ConfigUnion)
        return self._of([member.as_stored(names) for member in self.configs])  # type: ignore[return-value]

    def without_start(self: ConfigT) -> ConfigT:
        assert isinstance(self, ConfigUnion)
        return self._of([member.without_start() for member in self.configs])  # type: ignore[return-value]

    def without_layers(self: ConfigT, layers: Collection[int], all_layers: Sequence[int]) -> ConfigT:
        assert isinstance(self, ConfigUnion)
        return self._of([member.without_layers(layers, all_layers) for member in self.configs])  # type: ignore[return-value]

    def _of(self, members: list[AdapterConfig]) -> ConfigUnion:
        """This union with other members."""
        if all(new is old for new, old in zip(members, self.configs)):
            return self
        changed = copy.copy(self)
        changed.__dict__["configs"] = members
        return changed

    @classmethod
    def _field_names(cls) -> list[str]:
        return ["architecture", "configs"]

    def __getitem__(self, key: str | int) -> Any:
        if isinstance(key, int):
            return self.configs[key]
        index, dot, name = str(key).partition(".")
        if dot and index.isdecimal() and int(index) < len(self.configs):
            return self.configs[int(index)][name]
        return self._extras()[key]

    def __iter__(self) -> Iterator[str]:
        members = [f"{i}.{name}" for i, config in enumerate(self.configs) for name in config]
        return iter([*members, *self._extras()])

    def __len__(self) -> int:
        return sum(map(len, self.configs)) + len(self._extras())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.configs))})"

    def to_dict(self) -> dict[str, Any]:
        return {"architecture": "union", "configs": [config.to_dict() for config in self.configs]}

    def replace(self: ConfigT, **changes: Any) -> ConfigT:
        """A copy in which every member that has the field is changed.

        Raises:
            ConfigTypeError: no member has the field.
        """
        assert isinstance(self, ConfigUnion)
        for name in changes:
            if not any(config._has(name) for config in self.configs):
                known = sorted({field for config in self.configs for field in config._field_names()})
                raise _no_such_field(type(self).__name__, name, known)
        changed = copy.copy(self)
        changed.__dict__["configs"] = [
            config.replace(**{name: value for name, value in changes.items() if config._has(name)})
            for config in self.configs
        ]
        self.validate(changed.__dict__["configs"])
        return changed

    @classmethod
    def from_dict(cls: type[ConfigT], config: Mapping[str, Any]) -> ConfigT:
        """Reads what `to_dict` wrote. The result is a plain ConfigUnion whatever the class."""
        members = config.get("configs")
        if not isinstance(members, list) or not members:
            raise ConfigError(f"{cls.__name__}: configs is {members!r}. Allowed: a non-empty list of config dicts.")
        union = ConfigUnion(*(FINDERS.load(member) for member in members))  # type: ignore[arg-type]
        extras = {k: v for k, v in config.items() if k not in ("architecture", "configs")}
        return cls._with_extras(union, extras)  # type: ignore[return-value]


def _apart(one: AdapterConfig, other: AdapterConfig) -> bool:
    """Whether two configs of one method do not meet, or only a model can tell."""
    placed = any(config.get(name) for config in (one, other) for name in ("leave_out", "places"))
    return placed or not one.meets(other)


HASH_DEFAULTS: dict[str, Any] = {
    "phm_layer": True,
    "phm_dim": 4,
    "factorized_phm_W": True,
    "shared_W_phm": False,
    "shared_phm_rule": True,
    "factorized_phm_rule": False,
    "phm_c_init": "normal",
    "phm_init_range": 0.0001,
    "learn_phm": True,
    "hypercomplex_nonlinearity": "glorot-uniform",
    "phm_rank": 1,
    "phm_bias": True,
    "init_weights": "bert",
    "scaling": 1.0,
}
"""Values that do not count for the hash."""


def members_of(config: AdapterConfig) -> list[AdapterConfig]:
    """The members of a union, or the config itself."""
    return list(config.configs) if isinstance(config, ConfigUnion) else [config]


def get_adapter_config_hash(config: Mapping[str, Any], length: int = 16) -> str:
    """The id under which configs are stored and compared by tools that share our files.

    Configs that differ only in falsy values or in phm_layer have the same hash: never take it for equality.

    Args:
        config: A config or its dict.
        length: Hex digits to return, at most 40.
    """
    if not isinstance(config, FrozenMapping) and config.get("architecture") == "union":
        config = ConfigUnion.from_dict(config)
    minimal = {
        key: value
        for key, value in _without_falsy(config).items()
        if key not in HASH_DEFAULTS or value != HASH_DEFAULTS[key]
    }
    return hashlib.sha1(json.dumps(minimal, sort_keys=True).encode(), usedforsecurity=False).hexdigest()[:length]


def _without_falsy(mapping: Mapping[str, Any]) -> dict[str, Any]:
    pruned = {k: _without_falsy(v) if isinstance(v, Mapping) else v for k, v in mapping.items()}
    return {key: value for key, value in pruned.items() if value}
