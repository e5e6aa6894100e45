"""Writes what the hub knows of the library's methods, for it does not import them: src/adapterhub/data/methods.json.

Run it when a method is new or has changed; nothing else about methods is written by hand for the hub.

Fields, defaults and what they may hold are read from the configs. Which tensors a method makes, under which choices of
the config, and where its flags put it, is found by trying: every method is built at made-up sites of random widths,
with every choice that matters and random numbers. A size of a tensor is then the first simple formula of widths and
numbers that holds for all that were built; where none does, as for divisors, it is null, and the hub takes any.
"""

from __future__ import annotations

import inspect
import itertools
import json
import math
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

from torch import nn

from adapters.errors import AdapterError
from adapters.methods import METHODS
from adapters.methods.base import AdapterModule, MethodModule
from adapters.methods.config import HASH_DEFAULTS, AdapterConfig, get_adapter_config_hash
from adapters.methods.locations import names_of
from adapters.methods.presets import ADAPTER_CONFIG_MAP, ARCHITECTURES, DEPRECATED_IDENTIFIERS, PRESET_TITLES
from adapters.runtime.empty import Empty
from adapters.sites.roles import ROLES
from adapters.sites.site import (
    SITES,
    AttentionSite,
    EmbeddingSite,
    LayerSite,
    LinearSite,
    NormSite,
    PromptSite,
    ResidualSite,
    Site,
    TableSite,
)
from adapters.sites.spec import Columns

TARGET = Path(__file__).parents[1] / "src/adapterhub/data/methods.json"
Method = type[AdapterModule[Any]]
Json = Mapping[str, Any]
Sizes = dict[str, int]

# ---- configs --------------------------------------------------------------------------------------------------------

NAMED = {name: config for name, config in ADAPTER_CONFIG_MAP.items() if name not in DEPRECATED_IDENTIFIERS}
HOW_IT_STARTS = ("dtype", "init_weights")
"""Choices that a preset leaves to the task at hand, as it does with all numbers."""


def rules_of(config_class: type[AdapterConfig]) -> dict[str, Any]:
    """The rule of every field of a config."""
    return {
        name: rule for owner in reversed(config_class.__mro__) for name, rule in vars(owner).get("rules", {}).items()
    }


def fields_of(config_class: type[AdapterConfig]) -> dict[str, Json]:
    """What the hub knows of every field: its schema, in words too, its default, and whether presets leave it open."""
    found: dict[str, Json] = {}
    rules = rules_of(config_class)
    for field in fields(config_class):  # type: ignore[arg-type]
        if field.name not in rules:
            continue
        rule = rules[field.name]
        entry: dict[str, Any] = {"words": rule.allowed, "schema": rule.schema}
        if field.default is not MISSING:
            entry["default"] = field.default
        elif field.default_factory is not MISSING:
            entry["default"] = field.default_factory()
        if field.name in HOW_IT_STARTS or is_amount(rule.schema):
            entry["open"] = True
        found[field.name] = entry
    return found


def leaves(schema: Json) -> list[Json]:
    """What a schema allows, one by one: each value of a few, or a kind of values."""
    if "anyOf" in schema:
        return [leaf for part in schema["anyOf"] for leaf in leaves(part)]
    if "enum" in schema:
        return [{"const": value} for value in schema["enum"]]
    if schema.get("type") == "boolean":
        return [{"const": False}, {"const": True}]
    if schema.get("type") == "integer" and schema.get("minimum") == 0:
        return [{"const": 0}, {**schema, "minimum": 1}]
    return [schema]


def is_amount(schema: Json) -> bool:
    """Whether a field says how much, or in which layers, and chooses nothing."""
    kinds = {leaf.get("type", "number" if leaf == {"const": 0} else "choice") for leaf in leaves(schema)}
    lists = [leaf["items"].get("type") for leaf in leaves(schema) if leaf.get("type") == "array"]
    return lists == ["integer"] or kinds <= {"null", "integer", "number", "string", "object"}


@dataclass(frozen=True)
class Variable:
    """Something that a config chooses: one of the `leaves` of a field, or whether a list has an item."""

    field: str
    choices: tuple[Json, ...]
    item: str | None = None

    def change(self, config: dict[str, Any], choice: int, seed: str = "") -> None:
        """Make this choice in a config, with a random number where one is needed."""
        if self.item is None:
            value = sample(self.choices[choice], random.Random(f"{self.field} {seed}"))
            if value is not MISSING:
                config[self.field] = value
        else:
            without = [item for item in config[self.field] if item != self.item]
            config[self.field] = without if choice else [*without, self.item]

    def amount(self, value: Any) -> int | None:
        """The choice of any number, if `value` is a number and there is such a choice."""
        kinds = [choice.get("type") for choice in self.choices]
        kind = next((kind for kind in ("integer", "number") if kind in kinds), None)
        return None if kind is None or value in (None, 0) or isinstance(value, str | bool) else kinds.index(kind)


def variables(config_class: type[AdapterConfig], only: Iterable[str] | None = None) -> list[Variable]:
    """What configs of a class choose; `only` these fields, then item by item in lists."""
    found = []
    for name, rule in rules_of(config_class).items():
        items = rule.schema.get("items", {}).get("examples", ())
        if only is not None and name not in only:
            continue
        if only is not None and items:
            has = [{"contains": {"const": item}} for item in items]
            found += [Variable(name, (one, {"not": one}), item) for one, item in zip(has, items)]
        elif name != "places":
            found.append(Variable(name, tuple(leaves(rule.schema))))
    return found


def sample(schema: Json, numbers: random.Random) -> Any:
    """A value that a leaf allows; MISSING to leave what there is."""
    if "const" in schema:
        return schema["const"]
    kind = schema.get("type")
    if kind == "integer" or (kind == "number" and not {"maximum", "exclusiveMaximum"} & set(schema)):
        return random_size(numbers, 2, 40)
    return {"null": None, "float": 0.5}.get(str(kind), MISSING)


def random_size(numbers: random.Random, low: int, high: int) -> int:
    """A random number; small ones are as likely as large ones."""
    return round(math.exp(numbers.uniform(math.log(low), math.log(high))))


def read(config_class: type[AdapterConfig], config: Json) -> AdapterConfig | None:
    """The config of a dict; None if it is refused."""
    try:
        return config_class.from_dict(config)
    except AdapterError:
        return None


# ---- conditions -----------------------------------------------------------------------------------------------------

Choices = tuple[int, ...]
"""Which choice every variable has."""


def when(table: Mapping[Choices, bool], known: Sequence[Variable]) -> list[Json]:
    """The shortest conditions of which at least one holds exactly where `table` is true: field -> schema."""
    false = [choices for choices, holds in table.items() if not holds]
    terms: list[list[set[int]]] = []
    for row in (choices for choices, holds in table.items() if holds):
        if any(all(c in allowed for c, allowed in zip(row, term)) for term in terms):
            continue
        term = [{choice} for choice in row]
        for i, variable in enumerate(known):  # as wide as it can be without meaning a row that is false
            near = [other for other in false if all(c in term[j] for j, c in enumerate(other) if j != i)]
            term[i] = set(range(len(variable.choices))) - {other[i] for other in near}
        terms.append(term)
    return [condition(term, known) for term in terms]


def condition(term: Sequence[set[int]], known: Sequence[Variable]) -> Json:
    """Field -> schema, for those fields that have not all choices."""
    found: dict[str, Any] = {}
    for allowed, variable in zip(term, known):
        if len(allowed) < len(variable.choices):
            options = [variable.choices[choice] for choice in sorted(allowed)]
            found[variable.field] = options[0] if len(options) == 1 else {"anyOf": options}
    return found


def conditional(entry: Json, conditions: list[Json], key: str = "when") -> Json:
    """An entry with the conditions under which it holds, which are left out where it always does."""
    return entry if conditions == [{}] else {**entry, key: conditions}


# ---- sites ----------------------------------------------------------------------------------------------------------


def linear(numbers: random.Random, multiple: int) -> tuple[list[Site], Sizes]:
    """A linear map that is one place, or several of which the first `parts` are adapted."""
    inner, part = width(numbers, multiple), width(numbers, multiple)
    parts = numbers.choice((0, 1, 2, 3))
    outer = part * (3 if parts else 1)
    columns = {f"attn.{letter}": Columns(i, i + 1, 3) for i, letter in enumerate("qkv")} if parts else {}
    module = nn.Linear(inner, outer, device="meta")
    site = LinearSite("+".join(columns) or "attn.q", "selfattn_lora", 0, "query", module, columns=columns)
    # I inputs, O adapted outputs, P those of one part, T all outputs of the map
    sizes = {"I": inner, "O": part * max(1, parts), "parts": max(1, parts), "P": part, "T": outer}
    return [site], sizes


def branch(numbers: random.Random, multiple: int) -> tuple[list[Site], Sizes]:
    d = width(numbers, multiple)
    return [ResidualSite("ffn", "output_adapter", 0, "output", nn.Identity(), x_module=None, width=d)], {"D": d}


def attention(numbers: random.Random, multiple: int) -> tuple[list[Site], Sizes]:
    module, head = nn.Identity(), numbers.randint(2, 20)
    module.head_dim = head  # type: ignore[assignment]
    d, layers, keys = width(numbers, multiple), numbers.randint(1, 4), head * numbers.randint(2, 20)
    sites: list[Site] = [
        AttentionSite("attn.core", "self_prefix", i, "attention", module, hidden_size=d, key_width=keys)
        for i in range(layers)
    ]
    return sites, {"D": d, "K": 2 * layers * keys}  # K: keys and values of all layers that share them


def norm(numbers: random.Random, multiple: int) -> tuple[list[Site], Sizes]:
    d = width(numbers, multiple)
    module = nn.LayerNorm(d, bias=numbers.choice((True, False)), device="meta")
    return [NormSite("ffn.norm", "ffn.norm", 0, "norm", module)], {"O": d}


def layer(numbers: random.Random, multiple: int) -> tuple[list[Site], Sizes]:
    d = width(numbers, multiple)
    return [LayerSite("layer", "output_reft", 0, "layer", nn.Identity(), stack=nn.Identity(), width=d)], {"D": d}


def embedding(numbers: random.Random, multiple: int) -> tuple[list[Site], Sizes]:
    e = width(numbers, multiple) | 1  # the halves of an odd width differ
    return [EmbeddingSite("embed", "invertible", -1, "", nn.Identity(), width=e)], {"E": e}


def prompt(numbers: random.Random, multiple: int) -> tuple[list[Site], Sizes]:
    e = width(numbers, multiple)
    return [PromptSite("embed.prompt", "prompt", -1, "", nn.Identity(), stack=nn.Identity(), width=e)], {"E": e}


def table(numbers: random.Random, multiple: int) -> tuple[list[Site], Sizes]:
    e, rows = width(numbers, multiple), random_size(numbers, 20, 200)
    return [TableSite("embed", "embed_tokens", -1, "embed_tokens", nn.Embedding(rows, e, device="meta"))], {"E": e}


def width(numbers: random.Random, multiple: int) -> int:
    """A random width, a multiple of a number; half of them have many divisors."""
    return multiple * random_size(numbers, 6, 80) * numbers.choice((1, 12))


PLACES = {
    LinearSite: linear,
    ResidualSite: branch,
    AttentionSite: attention,
    NormSite: norm,
    LayerSite: layer,
    EmbeddingSite: embedding,
    PromptSite: prompt,
    TableSite: table,
}


def makers(method: Method) -> list[Callable[[random.Random, int], tuple[list[Site], Sizes]]]:
    """What makes sites at which a method can act: it may be for several kinds."""
    found = {kind: make for kind, make in PLACES.items() if issubclass(kind, method.site_type)}
    if len(found) > 1:  # to a method for linear maps a table of embeddings is one more of these
        found.pop(TableSite, None)
    return [*found.values()]


# ---- tensors --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """One tensor of one adapter that was built.

    Attributes:
        shape: Its sizes.
        fixed: Whether it never trains.
        alias: Whether it has several names.
    """

    shape: tuple[int, ...]
    fixed: bool
    alias: bool


Key = tuple[str, str, str]
"""Container, unit and name of a tensor. A unit is one of several parts that are alike, such as "updates.0."."""


def tensors_of(container: str, module: nn.Module | None) -> Iterator[tuple[Key, Made]]:
    """The tensors that a module stores in `container`."""
    if module is None:
        return
    kept = {
        id(p)
        for m in module.modules()
        if isinstance(m, MethodModule)
        for p in map(m._parameters.get, m.fixed_parameters)
    }
    state = module.state_dict(keep_vars=True)
    names = [id(tensor) for tensor in state.values()]
    for name, tensor in state.items():
        unit = unit_of(module, name)
        trains = isinstance(tensor, nn.Parameter) and id(tensor) not in kept
        shown = "*." if isinstance(module, nn.ModuleDict) else unit  # its keys are places
        yield (
            (container, shown, name.removeprefix(unit)),
            Made(tuple(tensor.shape), not trains, names.count(id(tensor)) > 1),
        )


def unit_of(module: nn.Module, name: str) -> str:
    """The first parts of a tensor's name, if they lead to an entry of a list or dictionary of modules."""
    first, _, rest = name.partition(".")
    if isinstance(module, nn.ModuleDict | nn.ModuleList):
        return f"{first}."
    child = module._modules.get(first)
    return f"{first}.{rest.partition('.')[0]}." if isinstance(child, nn.ModuleDict | nn.ModuleList) else ""


def build(method: Method, config: AdapterConfig, sites: list[Site]) -> dict[Key, Made]:
    """The tensors of an adapter at the first of some sites, and those that all of them share."""
    with Empty():
        shared = method.shared(config, sites)
        module = method(config, sites[0], "x")
        module.bind(shared)
    own, common = (name.rpartition(".")[2] for name in (method.container, method.shared_container))
    found = dict([*tensors_of(own, module), *tensors_of(common, shared)])
    if isinstance(sites[0], LinearSite):  # units are the parts of a fused projection, of which there may be any number
        return {(key[0], re.sub(r"\d+", "*", key[1]), key[2]): made for key, made in found.items()}
    return found


UNEVEN: list[str | None] = [None, "?"]
"""For tensors of which some have more sizes than others."""


class Bench:
    """Builds one method again and again, and remembers what came out.

    Attributes:
        known: What its configs choose that changes its tensors.
        made: For every combination of these choices, what was built: (sizes and numbers, tensors).
    """

    def __init__(self, method: Method) -> None:
        self.method, self.base = method, base_of(method)
        every = variables(method.config_class)
        self.amounts = [(v, amount) for v in every if (amount := v.amount(self.base.get(v.field))) is not None]
        self.known: list[Variable] = []
        self.way = 0  # the way of choosing numbers that worked last
        several = [v for v in every if len(v.choices) > 1]
        for _ in range(2):  # what only matters under another choice is found the second time
            starts = [(), *(((v, c),) for v in self.known for c in range(len(v.choices)))]
            matter = [v for v in several if v in self.known or any(self.differs(start, v) for start in starts)]
            self.known = matter
        rows = list(itertools.product(*(range(len(v.choices)) for v in self.known)))
        self.made: dict[Choices, list[tuple[Sizes, dict[Key, Made]]]] = {}
        for row in rows:
            tries = [self.attempt(tuple(zip(self.known, row)), f"{row} {i}") for i in range(max(1, 96 // len(rows)))]
            found = [result for result in tries if result is not None]
            if found:
                self.made[row] = [result for result in found if result[1]] or found
        if not any(tensors for results in self.made.values() for _, tensors in results):
            raise SystemExit(f"{method.__name__} could not be built at any made-up site, or stores nothing.")

    def differs(self, start: Sequence[tuple[Variable, int]], variable: Variable) -> bool:
        """Whether the choice of a variable changes the tensors."""
        for seed in "ab":
            results = [self.attempt((*start, (variable, choice)), seed) for choice in range(len(variable.choices))]
            if len({frozenset(result[1].items()) for result in results if result is not None}) > 1:
                return True
        return False

    def attempt(self, choices: Sequence[tuple[Variable, int]], seed: str) -> tuple[Sizes, dict[Key, Made]] | None:
        """Sizes and tensors of one adapter; none where the method refuses the choices, None where the config does.

        Numbers are any at first, then small, with widths that they divide, then those of the preset.
        """
        refused = False
        for way, i in itertools.product(range(self.way, 3), range(4)):
            config = dict(self.base)
            for variable, choice in (*self.amounts, *choices):
                variable.change(config, choice, f"{seed} {way} {i}")
            for name, value in config.items():
                if way == 1 and type(value) is int and value > 1:
                    config[name] = random.Random(f"{name} {seed} {i}").choice((2, 3, 4))
                elif way == 2 and type(value) is int:
                    config[name] = self.base.get(name, value)
            if "token_indices" in config:  # no other field tells how many there are
                config["token_indices"] = [*range(random.Random(f"tokens {seed} {i}").randint(1, 20))]
            found = read(self.method.config_class, config)
            if found is None or not self.method.handles(found):
                continue
            chance = random.Random(f"{seed} {way} {i}")
            sites, sizes = chance.choice(makers(self.method))(chance, 144 if way else 1)
            if "parts" in sizes and not self.method.inward:
                letters = "qkv"[: sizes["parts"]]
                by_flags = found.get("places") is None
                found = found.replace(
                    **({"attn_matrices": [*letters]} if by_flags else {"places": [f"attn.{x}" for x in letters]})
                )
            try:
                tensors = build(self.method, found, sites)
            except (AdapterError, RuntimeError):
                refused = True
                continue
            self.way = way
            whole = {name: int(n) for name, n in found.items() if type(n) in (int, float) and n == int(n)}
            return {**sizes, **whole}, tensors
        return ({}, {}) if refused else None

    def tensors(self) -> list[Json]:
        """All tensors that the method can make, each with the conditions under which it does."""
        keys = dict.fromkeys(key for results in self.made.values() for _, found in results for key in found)
        return [entry for key in keys for entry in self.entries(key)]

    def entries(self, key: Key) -> Iterator[Json]:
        """A tensor, once for every form that its shape can have."""
        container, unit, name = key
        fixed = {
            row: all(m[key].fixed for _, m in found if key in m) for row, found in self.made.items() if has(found, key)
        }
        for rows in self.forms(key):
            whole = all(has(self.made[row], key, every=True) for row in rows)
            entry: dict[str, Any] = {"container": container, "unit": unit, "name": name}
            entry["shape"] = self.shape(key, rows)
            if entry["shape"] == UNEVEN:
                raise SystemExit(f"{self.method.__name__}: no choice tells how many sizes {name} has.")
            if not whole or any(m[key].alias for row in rows for _, m in self.made[row] if key in m):
                entry["optional"] = True
            if any(fixed[row] for row in rows):
                never = {row: fixed[row] for row in rows if row in fixed}
                entry["fixed"] = when(never, self.known)
            made = {row: row in rows or (has(found, key) and not whole) for row, found in self.made.items()}
            yield conditional(entry, when(made, self.known))

    def forms(self, key: Key) -> list[list[Choices]]:
        """The choices under which a tensor is made, apart where its shape follows other formulas."""
        rows = [row for row, found in self.made.items() if has(found, key)]
        if None not in self.shape(key, rows) or not self.known:
            return [rows]
        for i in range(len(self.known)):
            parts = [[row for row in rows if row[i] == choice] for choice in range(len(self.known[i].choices))]
            parts = [part for part in parts if part]
            if len(parts) > 1 and all(None not in self.shape(key, part) for part in parts):
                return parts
        return [rows]

    def shape(self, key: Key, rows: Sequence[Choices]) -> list[str | None]:
        """A formula for every size; UNEVEN if their number differs."""
        seen = [(sizes, found[key].shape) for row in rows for sizes, found in self.made[row] if key in found]
        seen = random.Random(0).sample(seen, min(len(seen), 100))
        if len({len(shape) for _, shape in seen}) > 1:
            return UNEVEN
        return [formula([(sizes, shape[i]) for sizes, shape in seen]) for i in range(len(seen[0][1]))]


def has(results: Sequence[tuple[Sizes, Mapping[Key, Made]]], key: Key, every: bool = False) -> bool:
    """Whether a tensor was made at least once, or every time."""
    return (all if every else any)(key in found for _, found in results)


def base_of(method: Method) -> dict[str, Any]:
    """A config of a method to start from: that of a preset, or one with other places."""
    for change in ({}, {"places": ["ffn.down.in"]}):
        for config in NAMED.values():
            if is_dataclass(config) and isinstance(config, method.config_class):
                found = read(ARCHITECTURES[config.architecture], {**config.to_dict(), **change})
                if found is not None and method.handles(found):
                    return {"places": None, **found.to_dict()} if "places" in found._field_names() else found.to_dict()
    raise SystemExit(f"{method.__name__} has no preset, so that it cannot be tried. Add one.")


def formula(seen: Sequence[tuple[Sizes, int]]) -> str | None:
    """The first of some simple formulas that gives every size that was seen; None if none does."""
    names = [name for name in seen[0][0] if all(name in sizes for sizes, _ in seen)]
    for text in itertools.chain(simple(names), compound(names)):
        if all(holds(text, sizes, size) for sizes, size in seen):
            return text
    return None


def holds(text: str, sizes: Sizes, size: int) -> bool:
    """Whether a formula gives a size."""
    try:
        return bool(eval(code_of(text), {"max": max, "min": min}, sizes) == size)
    except ZeroDivisionError:
        return False


@cache
def code_of(text: str) -> CodeType:
    """A formula, compiled."""
    return compile(text, "formula", "eval")


def simple(names: Sequence[str]) -> Iterator[str]:
    """Numbers, names, and two of them."""
    yield from ("1", "2")
    widths = [name for name in names if name.isupper() and len(name) == 1]
    yield from (*widths, *(name for name in names if name not in widths))
    for one, other in itertools.product(names, names):
        yield from (f"{one} * {other}", f"{one} // {other}", f"max(1, {one} // {other})")
    yield from (f"{name} * ({name} - 1) // 2" for name in names)
    for whole in widths:
        yield from (f"{whole} // 2", f"{whole} - {whole} // 2")


def compound(names: Sequence[str]) -> Iterator[str]:
    """Halves, shorter and longer sides, rounded up or down."""
    widths = [name for name in names if name.isupper() and len(name) == 1]
    halves = [f"({half})" for whole in widths for half in (f"{whole} // 2", f"{whole} - {whole} // 2")]
    sides = [f"{side}({one}, {other})" for side in ("min", "max") for one, other in itertools.combinations(widths, 2)]
    yield from sides
    for whole, part in itertools.product((*halves, *sides), names):
        yield from (f"max(1, {whole} // {part})", f"-(-{whole} // {part})")
    for one, other, third in itertools.product(widths, names, names):
        yield from (f"max(1, {one} // {other}) // {third}", f"{one} * {other} * {third}")


# ---- places and kinds -----------------------------------------------------------------------------------------------


def roles_of(method: Method) -> dict[str, list[Json]]:
    """The roles where a method can act, each with the conditions under which the flags of a config mean it."""
    class_, base = method.config_class, base_of(method)
    known = variables(class_, {*class_.flags, "attn_matrices"})
    rows: dict[Choices, AdapterConfig] = {}
    for row in itertools.product(*(range(len(v.choices)) for v in known)):
        config = {**base, "places": None}
        for variable, choice in zip(known, row):
            variable.change(config, choice)
        if (found := read(class_, config)) is not None:
            rows[row] = found
    kinds: list[str] = [kind for kind, site_type in SITES.items() if issubclass(site_type, method.site_type)]
    kinds += ["branch"] * (method.site_type is LayerSite) + ["embedding"] * (method.site_type is TableSite)
    found_roles = {}
    for role in (role for role in ROLES.values() if role.kind in kinds):
        site = site_of(method, role.name)
        flagged = {row: acts(method, config, site) for row, config in rows.items()}
        found_roles[role.name] = when(flagged, known)
    return found_roles


def site_of(method: Method, role: str) -> Site:
    """A site of a role."""
    kind = SITES[ROLES[role].kind]
    (site, *_), _ = PLACES[kind if issubclass(kind, method.site_type) else method.site_type](random.Random(0), 1)
    site.role, site.location = role, names_of("").location(role)
    return site


def acts(method: Method, config: AdapterConfig, site: Site) -> bool:
    try:
        return method.acts_at(config, site)
    except NotImplementedError:  # only `places` say where
        return False


def told_apart(class_: type[AdapterConfig]) -> tuple[list[Variable], dict[Choices, tuple[str, tuple[str, ...]]]]:
    """What in a config decides its kind and its methods, and (kind, methods) for all choices of that."""
    bases = [config.to_dict() for config in NAMED.values() if isinstance(config, class_)]
    bases = [base for base in bases if base.get("architecture") == class_.architecture]
    bases += [{**base, "places": ["ffn.down.in"]} for base in bases]
    several = [v for v in variables(class_) if len(v.choices) > 1]

    def answer(base: Json, choices: Sequence[tuple[Variable, int]]) -> tuple[str, tuple[str, ...]] | None:
        config = dict(base)
        for variable, choice in choices:
            variable.change(config, choice)
        found = read(class_, config)
        return None if found is None else (found.kind, tuple(m.__name__ for m in METHODS if m.handles(found)))

    known = [
        v
        for v in several
        if any(len({answer(base, [(v, c)]) for c in range(len(v.choices))} - {None}) > 1 for base in bases)
    ]
    table: dict[Choices, tuple[str, tuple[str, ...]]] = {}
    for base, row in itertools.product(bases, itertools.product(*(range(len(v.choices)) for v in known))):
        if (found := answer(base, list(zip(known, row)))) is not None:
            kind, methods = table.get(row, (found[0], ()))
            table[row] = kind, tuple(dict.fromkeys((*methods, *found[1])))
    return known, table


# ---- the file -------------------------------------------------------------------------------------------------------


def architecture(name: str | None, class_: type[AdapterConfig]) -> Json:
    """All about configs that say one `architecture`."""
    known, table = told_apart(class_)
    kinds = dict.fromkeys(kind for kind, _ in table.values())
    presets = [config for config in NAMED.values() if isinstance(config, class_) and config.architecture == name]
    scaling = {config.kind for config in presets if config.scales}
    methods = [m for m in METHODS if any(m.__name__ in found for _, found in table.values())]
    return {
        "architecture": name,
        "fields": fields_of(class_),
        "kinds": [
            conditional(
                {"name": kind, "title": title(kind, methods), **({"scales": True} if kind in scaling else {})},
                when({row: found == kind for row, (found, _) in table.items()}, known),
            )
            for kind in kinds
        ],
        "methods": [
            conditional(
                {"name": method.__name__},
                when({row: method.__name__ in found for row, (_, found) in table.items()}, known),
            )
            for method in methods
        ],
    }


def title(kind: str, methods: Sequence[Method]) -> str:
    """What people call a kind: as its method says, or the name of its class."""
    own = [method for method in methods if kind in method.titles]
    return own[0].titles[kind] if own else methods[0].__name__


def described(method: Method) -> Json:
    """A method: where it acts and what it makes."""
    acts_where = {"placeable": method.placeable, "inward": method.inward, "roles": roles_of(method)}
    return {**acts_where, "tensors": Bench(method).tensors()}


def preset(name: str, config: AdapterConfig) -> Json:
    """A named config, in words."""
    document = inspect.getdoc(type(config)) or ""
    paper = re.search(r"arXiv:(\d{4}\.\d{4,5})", document)
    own = [method for method in METHODS if name in method.presets]
    text = re.sub(r"\s+", " ", document.partition("\n\n")[0])
    return {
        "title": PRESET_TITLES.get(name) or PRESET_TITLES.get(config.kind) or own[0].__name__,
        "text": text,
        "paper": paper[1] if paper else own[0].paper.removeprefix("arXiv:"),
        "config": config.to_dict(),
        "id": get_adapter_config_hash(config),
    }


def document(tensors: bool = True) -> Json:
    """All that is written; without the tensors of methods, which take long, if you like."""
    classes = {name: class_ for name, class_ in ARCHITECTURES.items() if is_dataclass(class_)}
    return {
        "architectures": [architecture(name, class_) for name, class_ in classes.items()],
        **({"methods": {method.__name__: described(method) for method in METHODS}} if tensors else {}),
        "presets": {name: preset(name, config) for name, config in NAMED.items()},
        "aliases": DEPRECATED_IDENTIFIERS,
        "union": PRESET_TITLES["union"],
        "hash_defaults": HASH_DEFAULTS,
    }


def text() -> str:
    """The file."""
    lines = json.dumps(document(), indent=1, ensure_ascii=False)
    short = re.compile(r"[\[{]\s+([^\[\]{}]{0,90}?)\s+[\]}]")  # lists and objects that fit on a line
    for _ in range(4):
        lines = short.sub(lambda found: re.sub(r"\s*\n\s*", " ", found[0]), lines)
    return lines + "\n"


def unknown() -> Iterator[str]:
    """The tensors in the file that have a size of which nothing is known."""
    for name, method in json.loads(TARGET.read_text(encoding="utf-8"))["methods"].items():
        yield from (
            f"{name}: {tensor['name']} {tensor['shape']}" for tensor in method["tensors"] if None in tensor["shape"]
        )


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
    print(
        f"{TARGET} is written. These tensors have sizes that no formula gives; the hub takes any:",
        *unknown(),
        sep="\n  ",
    )
