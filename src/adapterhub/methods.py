"""What the hub knows of the library's methods: `data/methods.json`, which `scripts/hub_schemas.py` writes from them.

Nothing here or elsewhere in the hub names a method. A new one is known once the script has run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from .data import load

__all__ = [
    "UNION", "Architecture", "Condition", "Field", "Kind", "Library", "Method", "Preset", "Tensor", "fits", "library",
    "meets", "read",
]  # fmt: skip

Config = Mapping[str, Any]
Schema = Mapping[str, Any]
Condition = Sequence[Mapping[str, Schema]]
"""Alternatives, each of fields and what they hold."""
ALWAYS: Condition = ({},)
UNION = "union"
"""What a config of several others says to be."""


@dataclass(frozen=True)
class Field:
    """A field of a config.

    Attributes:
        words: what it may hold, for a message.
        schema: the same as JSON Schema, with the type "float" for numbers that are written with a decimal point.
        default: its value where it is absent.
        required: whether it may not be absent.
        open: whether a named config leaves it to the task at hand, as it does with sizes.
    """

    words: str
    schema: Schema
    default: Any = None
    required: bool = False
    open: bool = False


@dataclass(frozen=True)
class Kind:
    """What people take for one method, such as LoRA: some configs of an architecture.

    Attributes:
        name: in records and addresses.
        title: the field's term.
        when: which configs are of this kind.
        scales: whether it multiplies by a learned vector.
    """

    name: str
    title: str
    when: Condition = ALWAYS
    scales: bool = False


@dataclass(frozen=True)
class Tensor:
    """A tensor that a method stores.

    Attributes:
        container: the module dictionary that holds it.
        unit: which of several parts below that, such as `updates.*.`; empty where there are none.
        name: its name below the unit.
        shape: formulas of fields and of widths of the place; None for any size.
        when: which configs make it.
        fixed: configs under which it is not trained.
        optional: whether it may be absent all the same.
    """

    container: str
    unit: str
    name: str
    shape: Sequence[str | None]
    when: Condition = ALWAYS
    fixed: Condition = ()
    optional: bool = False


@dataclass(frozen=True)
class Method:
    """A method: where it can act, and what it stores.

    Attributes:
        roles: names of places, and which configs mean them by their flags.
        placeable: whether the `places` of a config say where it acts.
        inward: whether these have to name the input of a linear map.
    """

    roles: Mapping[str, Condition]
    tensors: Sequence[Tensor]
    placeable: bool = True
    inward: bool = False


@dataclass(frozen=True)
class Architecture:
    """All configs with one value of `architecture`.

    Attributes:
        fields: what they hold.
        kinds: what people take them for.
        methods: which methods they ask for, each with the configs that do.
    """

    fields: Mapping[str, Field]
    kinds: Sequence[Kind]
    methods: Sequence[tuple[Condition, Method]]

    def full(self, config: Config) -> Config:
        """A config with the defaults of what it leaves out."""
        return {**{name: one.default for name, one in self.fields.items()}, **config}

    @property
    def required(self) -> list[str]:
        """The fields without which nothing can be built."""
        return [name for name, one in self.fields.items() if one.required]

    def kind(self, config: Config) -> Kind | None:
        """What people take a config for."""
        full = self.full(config)
        return next((kind for kind in self.kinds if meets(full, kind.when)), None)

    def methods_of(self, config: Config) -> list[Method]:
        """The methods that a config asks for."""
        full = self.full(config)
        return [method for when, method in self.methods if meets(full, when)]


@dataclass(frozen=True)
class Preset:
    """A named config: its name among people, a sentence, the arXiv id of its paper, the config, and its id."""

    name: str
    title: str
    text: str
    paper: str
    config: Config
    id: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Library:
    """The whole file.

    Attributes:
        architectures: value of `architecture`, None for bottlenecks, to what there is to know.
        presets: the named configs.
        aliases: names from before 2023, and today's.
        hash_defaults: values that do not count for the ids of configs.
        union: what people call configs of several methods.
    """

    architectures: Mapping[str | None, Architecture]
    presets: Mapping[str, Preset]
    aliases: Mapping[str, str]
    hash_defaults: Mapping[str, Any]
    union: str

    @cached_property
    def titles(self) -> Mapping[str, str]:
        """The field's terms for all kinds."""
        kinds = (kind for found in self.architectures.values() for kind in found.kinds)
        return {**{kind.name: kind.title for kind in kinds}, UNION: self.union}

    def architecture(self, config: Config) -> Architecture | None:
        """What there is to know of a config; None where it is none, or of another library."""
        name = config.get("architecture")
        if not isinstance(name, (str, type(None))) or name not in self.architectures:
            return None
        found = self.architectures[name]
        # What says nothing at all could be anything: old files have no `architecture`.
        return found if name is not None or set(found.required) & set(config) else None


def read(data: Mapping[str, Any]) -> Library:
    """The contents of such a file."""
    methods = {
        name: Method(**{**method, "tensors": tuple(Tensor(**tensor) for tensor in method["tensors"])})
        for name, method in data["methods"].items()
    }
    architectures = {
        found["architecture"]: Architecture(
            {name: Field(**one, required="default" not in one) for name, one in found["fields"].items()},
            tuple(Kind(**kind) for kind in found["kinds"]),
            tuple((asked.get("when", ALWAYS), methods[asked["name"]]) for asked in found["methods"]),
        )
        for found in data["architectures"]
    }
    presets = {
        name: Preset(name, **one, aliases=tuple(old for old, new in data["aliases"].items() if new == name))
        for name, one in data["presets"].items()
    }
    return Library(architectures, presets, data["aliases"], data["hash_defaults"], data["union"])


@cache
def library() -> Library:
    """The library that the hub was made with."""
    return read(load("methods.json"))


def meets(config: Config, when: Condition) -> bool:
    """Whether a config is one of those that a condition means. Absent fields must have their defaults already."""
    return any(all(fits(config.get(name), schema) for name, schema in one.items()) for one in when)


def fits(value: Any, schema: Schema) -> bool:
    """Whether a value is one that a schema allows."""
    return all(_TESTS[word](value, allowed) for word, allowed in schema.items() if word in _TESTS)


def _is(value: Any, kind: str) -> bool:
    if kind in ("number", "float"):
        return isinstance(value, float if kind == "float" else (int, float)) and _is_finite(value)
    if kind == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, _TYPES[kind])


def _is_finite(value: float) -> bool:
    return not isinstance(value, bool) and (isinstance(value, int) or math.isfinite(value))


def _same(value: Any, other: Any) -> bool:
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)


def _all(values: Iterable[Any], schema: Schema) -> bool:
    return all(fits(value, schema) for value in values)


_TYPES = {"null": type(None), "boolean": bool, "string": str, "array": list, "object": dict}
# What does not concern the type of a value says nothing about it, as in JSON Schema; `type` stands beside it.
_TESTS: Mapping[str, Callable[[Any, Any], bool]] = {
    "type": _is,
    "const": _same,
    "enum": lambda value, allowed: any(_same(value, one) for one in allowed),
    "anyOf": lambda value, allowed: any(fits(value, one) for one in allowed),
    "not": lambda value, other: not fits(value, other),
    "minimum": lambda value, low: not _is(value, "number") or value >= low,
    "maximum": lambda value, high: not _is(value, "number") or value <= high,
    "exclusiveMinimum": lambda value, low: not _is(value, "number") or value > low,
    "exclusiveMaximum": lambda value, high: not _is(value, "number") or value < high,
    "pattern": lambda value, form: not isinstance(value, str) or re.search(form, value) is not None,
    "items": lambda value, one: not isinstance(value, list) or _all(value, one),
    "contains": lambda value, one: isinstance(value, list) and any(fits(item, one) for item in value),
    "minItems": lambda value, least: not isinstance(value, list) or len(value) >= least,
    "minProperties": lambda value, least: not isinstance(value, dict) or len(value) >= least,
    "propertyNames": lambda value, one: not isinstance(value, dict) or _all(value, one),
    "additionalProperties": lambda value, one: not isinstance(value, dict) or _all(value.values(), one),
}
