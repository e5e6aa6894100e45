"""Which tensors a config makes, by name and shape, and what is wrong with those that are there."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

from ..facts.configs import members
from ..methods import library, meets
from .formulas import Formula, Sizes, fit, shown

__all__ = ["Comparison", "Expected", "Header", "compare", "expected", "hidden_sizes", "shared_keys"]

Config = Mapping[str, Any]
Shape = Sequence[Formula]
Header = Mapping[str, tuple[str, tuple[int, ...]]]

HIDDEN, KEYS = "D", "K"  # in formulas: the hidden size, and the keys and values of all layers that share them
# Models whose layers have several widths.
_HIERARCHICAL = ("swin", "segformer", "pvt", "convnext", "hiera", "mobilevit", "levit", "donut", "focalnet", "dinat")
# Towers behind another one, whose layers the config counts on from there.
_LATER_TOWER = re.compile(r"(?:^|\.)(?:decoder|vision_model|vision_tower|visual)(?:\.|$)")
_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d{1,4})(?:\.|$)")
_LARGEST = 1 << 53  # number of a config that is taken as it is
_ALIAS = ".prefix_tuning.pool"  # below it, old files repeat the prefixes of the base model


class Expected(NamedTuple):
    """The tensors that a config makes together at a place.

    Attributes:
        container: the module dictionary that holds them.
        tensors: names and shapes of those that must be there.
        optional: of those that may.
    """

    container: str
    tensors: Mapping[str, Shape]
    optional: Mapping[str, Shape] = {}

    @property
    def all(self) -> Mapping[str, Shape]:
        """Those that must and those that may be there."""
        return {**self.tensors, **self.optional}


@cache
def _key() -> re.Pattern[str]:
    """The name of an adapter's tensor in files. Containers of bottlenecks had longer names at first."""
    tensors = (tensor for method in _methods() for tensor in method.tensors)
    names = sorted({re.escape(tensor.container) for tensor in tensors})
    return re.compile(
        rf"(?:(?P<path>.+)\.)?(?P<container>(?:\w+_)?adapters|{'|'.join(names)})\.(?P<name>[^.]+)\.(?P<inner>.+)"
    )


@cache
def _units() -> Mapping[str, re.Pattern[str]]:
    """Of containers whose tensors are parts that are alike: how the names of parts begin."""
    found: dict[str, set[str]] = {}
    for tensor in (tensor for method in _methods() for tensor in method.tensors if tensor.unit):
        unit = re.escape(re.sub(r"\d+", "*", tensor.unit)).replace(r"\*", r"[^.]+")
        found.setdefault(tensor.container, set()).add(unit)
    return {container: re.compile("|".join(sorted(units))) for container, units in found.items()}


def _methods() -> list[Any]:
    return [method for found in library().architectures.values() for _, method in found.methods]


@dataclass
class Comparison:
    """How tensors differ from what their config makes.

    Attributes:
        wrong: sentences about shapes that differ.
        missing: names or places of tensors that are not there.
        unused: names of tensors that the config does not make.
        gaps: layers without tensors, though the config leaves none of them out.
    """

    wrong: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    gaps: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Site:
    """Tensors of an adapter that stand together."""

    path: str  # of the module that holds them
    container: str
    unit: str  # which of several parts below them, such as `self_prefix.`
    tower: str  # the path up to the layers
    layer: int | None
    tensors: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)  # inner name: full name and shape

    @property
    def counted(self) -> int | None:
        """The number that configs give the layer, where it can be told from the name."""
        return None if _LATER_TOWER.search(self.tower) else self.layer


# ---- what configs make ----------------------------------------------------------------------------------------------

# Invertible adapters that nothing can load any more.
_GLOW = {
    f"{net}.{layer}.{part}": (f"{net}_{after}", f"{net}_{before}")[: 2 if part == "weight" else 1]
    for net in ("s1", "s2")
    for layer, before, after in ((0, "in", "inner"), (2, "inner", "out"))
    for part in ("weight", "bias")
}


def expected(config: Config) -> list[Expected]:
    """What one config makes; for a union, ask for each member."""
    architecture = library().architecture(config)
    if architecture is None:
        return []
    full = architecture.full(config)
    groups: list[Expected] = []
    for method in architecture.methods_of(config):
        made: dict[str, tuple[dict[str, Shape], dict[str, Shape]]] = {}
        for tensor in method.tensors:
            if meets(full, tensor.when):
                made.setdefault(tensor.container, ({}, {}))[tensor.optional][tensor.name] = tensor.shape
        groups += [Expected(container, *tensors) for container, tensors in made.items()]
    return [*groups, Expected("invertible_adapters", _GLOW)] if config.get("inv_adapter") == "glow" else groups


def _sizes(config: Config, hidden: int | None, layer: int | None) -> Sizes:
    """The numbers of a config, for a layer if it says them layer by layer, and the hidden size, where it is known."""
    architecture = library().architecture(config)
    found: Sizes = {HIDDEN: hidden} if hidden else {}
    for name, value in (architecture.full(config) if architecture else config).items():
        if isinstance(value, dict):
            value = None if layer is None else value.get(str(layer), value.get("default"))
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            found[name] = max(-_LARGEST, min(value, _LARGEST))
    return found


def hidden_sizes(config: Config, tensors: Header, name: str | None = None) -> set[int]:
    """The hidden sizes of the models that tensors are made for; more than one where a model has several towers."""
    return set(_hidden_sizes(_sites(tensors, name, Comparison(), False), members(config)).values())


def shared_keys(config: Config, tensors: Header, name: str | None = None) -> int | None:
    """How many numbers the keys and values of all layers have together that share a tensor; None if none do."""
    for site in _sites(tensors, name, Comparison(), False):
        for part in members(config):
            for group in expected(part):
                sizes = _sizes(part, None, None)
                if group.container == site.container:
                    _compare_tensors(site, group, sizes)
                    if isinstance(found := sizes.get(KEYS), int):
                        return found
    return None


# ---- what is there --------------------------------------------------------------------------------------------------


def compare(
    config: Config,
    tensors: Header,
    *,
    name: str | None = None,
    hidden: int | None = None,
    model_type: str = "",
    may_lack: Collection[str] = (),
) -> Comparison:
    """How the tensors of an adapter differ from what its config makes.

    Args:
        config: of the method; unions too.
        tensors: of the file.
        name: the adapter's name, which stands in the tensors' names.
        hidden: the hidden size that the config of the adapter tells.
        model_type: the model's architecture.
        may_lack: containers that the file need not have.
    """
    found = Comparison()
    parts = members(config)
    sites = _sites(tensors, name, found, model_type.startswith(_HIERARCHICAL))
    widths = _hidden_sizes(sites, parts)
    for site in sites:
        _compare_site(site, parts, widths.get(site.tower, hidden), found)
    if hidden and widths and hidden not in widths.values():
        sizes = " and ".join(sorted({str(width) for width in widths.values()}))
        found.wrong.append(f"'hidden_size' is {hidden}, but the tensors are made for {sizes}.")
    here = {site.container for site in sites} | set(may_lack)
    wanted = dict.fromkeys(group.container for part in parts for group in expected(part))
    found.missing += [f"all tensors of '{container}'" for container in wanted if container not in here]
    found.gaps = _gaps(sites, parts)
    return found


def _sites(tensors: Header, name: str | None, found: Comparison, by_path: bool) -> list[_Site]:
    sites: dict[tuple[str, str, str], _Site] = {}
    for key, (_, shape) in tensors.items():
        match = _key().fullmatch(key)
        if match is None or (name is not None and match["name"] != name):
            found.unused.append(key)
            continue
        path, container, inner = match["path"] or "", _container(match["container"]), match["inner"]
        if path.endswith(_ALIAS) and container == "prefix_tunings":
            container = "alias"
        number, dot, rest = inner.partition(".")  # of a config in a union of which several share tensors
        start = number + dot if number.isdecimal() and rest else ""
        cut = _units()[container].match(inner, len(start)) if container in _units() else None
        unit = start + (cut[0] if cut else "")
        place = (path, container, unit)
        if place not in sites:
            layer = _LAYER.search(path)
            whole = f"{path}.{unit}"
            sites[place] = _Site(
                *place,
                tower=path[: layer.start()] if layer and not by_path else whole,
                layer=int(layer[1]) if layer else None,
            )
        sites[place].tensors[inner[len(unit) :]] = (key, shape)
    return [site for site in sites.values() if site.container != "alias"]


def _container(name: str) -> str:
    """Today's name of a container: old files say `attention_text_task_adapters` and `invertible_lang_adapters`."""
    if name.endswith("adapters"):
        return "invertible_adapters" if name.startswith("invertible") else "adapters"
    return name


def _hidden_sizes(sites: Sequence[_Site], parts: Sequence[Config]) -> dict[str, int]:
    """The hidden size of each tower: the one that most of its tensors have."""
    known: dict[str, list[Expected]] = {}
    for part in parts:
        for group in expected(part):
            known.setdefault(group.container, []).append(group)
    votes: dict[str, Counter[int]] = {}
    for site in sites:
        for group in known.get(site.container, ()):
            for inner, wanted in group.all.items():
                if inner in site.tensors:
                    sizes = zip(site.tensors[inner][1], wanted)
                    votes.setdefault(site.tower, Counter()).update(size for size, dim in sizes if dim == HIDDEN)
    return {tower: counted.most_common(1)[0][0] for tower, counted in votes.items() if counted}


def _compare_site(site: _Site, parts: Sequence[Config], hidden: int | None, found: Comparison) -> None:
    names = [key for key, _ in site.tensors.values()]
    able = [part for part in parts if any(group.container == site.container for group in expected(part))]
    placed = [part for part in able if site.counted is None or site.counted not in _left_out(part)]
    if not able:
        found.unused += names
    elif not placed:
        found.wrong.append(f"'leave_out' names layer {site.counted}, but {names[0]!r} stands there.")
    else:
        options = [
            _compare_tensors(site, group, _sizes(part, hidden, site.counted))
            for part in placed
            for group in expected(part)
            if group.container == site.container
        ]
        best = min(options, key=lambda one: len(one.wrong) + len(one.missing) + len(one.unused))
        found.wrong += best.wrong
        found.missing += best.missing
        found.unused += best.unused


def _compare_tensors(site: _Site, group: Expected, sizes: Sizes) -> Comparison:
    found = Comparison()
    for inner, (key, shape) in site.tensors.items():
        wanted = group.all.get(inner)
        if wanted is None:
            found.unused.append(key)
            continue
        fitting = [fit(formula, size, sizes) for formula, size in zip(wanted, shape)]  # each tells of other widths
        if len(shape) != len(wanted) or not all(fitting):
            makes = _listed([shown(one, sizes) for one in wanted])
            found.wrong.append(f"{key!r} has the shape {_listed(shape)}, but the config makes {makes}.")
    prefix = ".".join(filter(None, (site.path, site.container)))
    found.missing += [f"{prefix}.….{site.unit}{inner}" for inner in group.tensors if inner not in site.tensors]
    return found


def _listed(shape: Sequence[object]) -> str:
    return f"({', '.join(map(str, shape))})"


def _left_out(config: Config) -> list[Any]:
    found = config.get("leave_out")
    return found if isinstance(found, list) else []


def _gaps(sites: Sequence[_Site], parts: Sequence[Config]) -> list[int]:
    """Layers between others that have no tensors, though no config leaves them out."""
    if any(isinstance(part.get("layers"), list) for part in parts):
        return []
    out = {layer for part in parts for layer in _left_out(part) if isinstance(layer, int)}
    layers: dict[str, set[int]] = {}
    for site in sites:
        if site.counted is not None:
            layers.setdefault(site.tower, set()).add(site.counted)
    return sorted({gap for found in layers.values() for gap in set(range(max(found) + 1)) - found - out})
