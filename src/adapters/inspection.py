"""What works on this model? Its layers, places and methods, before anything is added to it or trained."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from adapters.composition.blocks import AdapterCompositionBlock, Average, BatchSplit, Fuse, Parallel, Split, Stack
from adapters.errors import AdapterError, UnsupportedError
from adapters.methods.locations import names_in
from adapters.methods.presets import ADAPTER_CONFIG_MAP
from adapters.model import init
from adapters.runtime.building import Builder
from adapters.runtime.empty import Empty
from adapters.runtime.hooks import hooked_sites
from adapters.runtime.parts import Part
from adapters.sites import roles
from adapters.sites.layers import in_short
from adapters.sites.lookup import spec_for
from adapters.sites.resolve import resolve
from adapters.sites.roles import ROLES
from adapters.sites.site import ExpertsSite, LinearSite, NormSite, Site

BLOCKS: Mapping[str, AdapterCompositionBlock] = {
    "Stack": Stack("a", "b"),
    "Parallel": Parallel("a", "b"),
    "BatchSplit": BatchSplit("a", "b", batch_sizes=[1, 1]),
    "Split": Split("a", "b", splits=[1, 1]),
    "Average": Average("a", "b"),
    "Fuse": Fuse("a", "b"),
}
"""Blocks without weights of their own, and Fuse, over two adapters of one config."""


@dataclass(frozen=True)
class Place:
    """One role.

    Attributes:
        role, words: Its name, and what it is.
        layers: The layers that have it ("0-11"); empty for places of the whole model.
        path: Where it is in the first of them.
        widths: Of what goes in and comes out there, where it is a linear map; of its states where it is none.
        experts: How many experts have one there; 0 where it is no packed parameter.
    """

    role: str
    words: str
    layers: str
    path: str
    widths: tuple[int, ...]
    experts: int = 0


@dataclass(frozen=True)
class Preset:
    """One preset: "lora", "seq_bn", ...

    Attributes:
        parameters: How many it would add, and train unless they are fixed.
        reason: Why it cannot be added; empty where it can.
        blocks: Blocks in which two such adapters can be combined.
        refused: Block -> why they cannot.
    """

    name: str
    parameters: int
    reason: str
    blocks: tuple[str, ...]
    refused: Mapping[str, str]


@dataclass(frozen=True)
class Inspection:
    """What adapters can do on a model.

    Attributes:
        model, model_type: Class of the model, and the type in its config.
        parameters: Of the model itself.
        layers: Numbers of its layers.
        places: Its roles, in the order in which a forward pass reaches them.
        refused: Role -> why no adapter can act there.
        presets: Every preset of the library.
        problem: Why nothing is known of its places; empty where they are.
    """

    model: str
    model_type: str
    parameters: int
    layers: str
    places: tuple[Place, ...]
    refused: Mapping[str, str]
    presets: tuple[Preset, ...]
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As mappings, lists, texts and numbers."""
        return asdict(self)

    @property
    def drawing(self) -> str:
        """A layer with its places; dots stand where others have one that is not here."""
        return _drawn({place.role for place in self.places})

    def __str__(self) -> str:
        head = f"{self.model} ({self.model_type}), {self.parameters:,} parameters"
        if self.problem:
            return f"{head}\n\n{self.problem}"
        places = [(p.role, f"layers {p.layers}" if p.layers else "", _widths(p), p.path) for p in self.places]
        presets = [
            (p.name, "-" if p.reason else f"{p.parameters:,}", p.reason or ", ".join(p.blocks)) for p in self.presets
        ]
        return "\n".join(
            [
                f"{head}, layers {self.layers}",
                *("", self.drawing),
                *("", "Places", *_table(places)),
                *(["", "No adapter can act at", *_table(self.refused.items())] if self.refused else []),
                *("", "Presets: parameters that each adds, and blocks that combine two of them", *_table(presets)),
            ]
        )

    def _repr_svg_(self) -> str:
        lines = (self.problem or self.drawing).splitlines()
        width = 8 * max(map(len, lines), default=1) + 16
        known = {place.role for place in self.places}
        texts = [
            f'<text x="8" y="{18 * number + 20}" xml:space="preserve">{_coloured(line, known)}</text>'
            for number, line in enumerate(lines)
        ]
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {18 * len(lines) + 16}" width="{width}" '
            f'role="img" font-family="monospace" font-size="13">\n' + "\n".join(texts) + "\n</svg>"
        )

    def _repr_html_(self) -> str:
        return f"{self._repr_svg_()}<pre>{escape(str(self))}</pre>"


def inspect(model: nn.Module, example_inputs: Mapping[str, Any] | None = None, verbose: bool = True) -> Inspection:
    """Print and return what adapters can do on a model. Nothing in it is changed, and no weight is needed ("meta").

    Args:
        model: Any model, whether `init` was called on it or not.
        example_inputs: As for `init`.
        verbose: Whether it is printed.
    """
    found = _inspected(model, example_inputs)
    if verbose:
        print(found)
    return found


def _inspected(model: Any, example_inputs: Mapping[str, Any] | None) -> Inspection:
    problem = ""
    if not hasattr(model, "_engine") and not isinstance(model, PreTrainedModel):
        try:  # other modules of torch get a config and verbs first
            model = init(copy.deepcopy(model), example_inputs=example_inputs)
        except UnsupportedError as error:
            problem = str(error)
    engine = getattr(model, "_engine", None)
    base = getattr(model, "base_model", model) if engine is None else engine.base
    kind = str(getattr(getattr(base, "config", None), "model_type", ""))
    added = [] if engine is None else [p for parts in engine.added for name in parts for p in parts[name]]
    not_base = {id(parameter) for part in added for parameter in part.module.parameters()}
    count = sum(p.numel() for p in model.parameters() if id(p) not in not_base)
    try:
        if problem:
            raise UnsupportedError(problem)
        if engine is None:
            spec = spec_for(base, example_inputs, model)
            sites: list[Site] = resolve(base, spec, names_in(base))
        else:
            spec, sites = engine.spec, list(engine.sites)
    except UnsupportedError as error:
        return Inspection(type(model).__name__, kind, count, "", (), {}, (), str(error))
    places = tuple(_places(sites))
    here = {place.role for place in places}
    refused = {role: why for role, why in spec.refusals().items() if role not in here}
    hooked: Any = dict(zip(sites, hooked_sites(sites, None), strict=True))  # type: ignore[arg-type]
    builder = Builder(base, spec, hooked)
    presets = tuple(_preset(builder, name, config) for name, config in ADAPTER_CONFIG_MAP.items())
    layers = in_short(site.layer for site in sites)
    return Inspection(type(model).__name__, kind, count, layers, places, refused, presets)


def _places(sites: Iterable[Site]) -> Iterable[Place]:
    by_role: dict[str, list[Site]] = {}
    for site in sites:
        for role in site.role.split("+"):
            by_role.setdefault(role, []).append(site)
    for role in (role for role in ROLES if role in by_role):
        own = by_role[role]
        experts = own[0].experts if isinstance(own[0], ExpertsSite) else 0
        yield Place(
            role, ROLES[role].words, in_short(s.layer for s in own), own[0].address, _width(own[0], role), experts
        )


def _width(site: Any, role: str) -> tuple[int, ...]:
    if isinstance(site, LinearSite):
        columns = site.columns.get(role)
        chosen: Any = None if columns is None else columns.of_width(site.out_features)
        own = range(site.out_features)[chosen] if isinstance(chosen, slice) else chosen
        return site.in_features, site.out_features if own is None else len(own)
    if isinstance(site, NormSite):
        return (site.out_features,)
    return (getattr(site, "width", 0) or getattr(site, "hidden_size", 0),)


def _preset(builder: Builder, name: str, config: Any) -> Preset:
    try:
        with Empty():
            both = [builder.build(adapter, config, new=True) for adapter in "ab"]
    except AdapterError as error:
        reason = str(error).removeprefix("Adapter 'a': ").partition("Places for")[0].strip()
        return Preset(name, 0, reason, (), {})
    parameters = {id(p): p for part in both[0] for p in part.module.parameters()}
    refused = {block: why for block, setup in BLOCKS.items() if (why := _refusal(setup, both)) is not None}
    working = tuple(block for block in BLOCKS if block not in refused)
    return Preset(name, sum(p.numel() for p in parameters.values()), "", working, refused)


def _refusal(block: AdapterCompositionBlock, both: list[list[Part]]) -> str | None:
    """Why a block cannot combine two adapters at one of their places; None if it can at all."""
    for one, other in zip(*both, strict=True):
        if one.hooked is None:
            continue
        if isinstance(block, Fuse):
            if one.module.unmixable:
                return f"such an adapter {one.module.unmixable}"
            continue
        try:
            one.hooked.plan(block, {"a": one.module, "b": other.module}, {})
        except AdapterError as error:
            return str(error)
    return None


# -------------------------------------------------------------------------------------------------------------- texts

_NAMES = re.compile(r"\b(?:attn|cross|ffn|layer|embed)(?:\.\w+)?\b")


def _drawn(known: set[str]) -> str:
    """The drawing of `sites/roles.py` without what is not there."""
    blocks = [block for block in (roles.__doc__ or "").split("\n\n") if block.startswith("    x -")]
    kept = [b for b in blocks if known.intersection(_NAMES.findall(b)) - {"layer"}]
    return _NAMES.sub(lambda name: name[0] if name[0] in known else "." * len(name[0]), "\n\n".join(kept).rstrip())


def _coloured(line: str, known: set[str]) -> str:
    def mark(name: re.Match[str]) -> str:
        return f'<tspan fill="#0b6b66" font-weight="bold">{name[0]}</tspan>' if name[0] in known else name[0]

    return _NAMES.sub(mark, escape(line))


def _widths(place: Place) -> str:
    widths = " -> ".join(map(str, place.widths))
    return f"{place.experts} x {widths}" if place.experts else widths


def _table(rows: Iterable[tuple[str, ...]]) -> list[str]:
    found = list(rows)
    widths = [max(map(len, column)) for column in zip(*found)][:-1] if found else []
    return ["  " + "  ".join([*(cell.ljust(n) for cell, n in zip(row, widths)), row[-1]]).rstrip() for row in found]
