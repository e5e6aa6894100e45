"""Where does a config put its adapters? The field `places` of all configs, and the old flags that say the same.

    places=["attn.q", "attn.v"]         roles (the table is in `sites/roles.py`)
    places=["*.o", "ffn.*"]             patterns over roles
    places=["0-3:attn.q", "5,7:ffn"]    only in some layers, counted from 0, encoder first
    places=["all-linear"]               every linear map of the layers
    places=["all"]                      every place of the layers at which the method can act
    places=["ffn.down.in"]              what a linear map reads, instead of what it makes, for methods that can (IA3)
    places=["attn.q.whole"]             all of a fused projection that has this role, as the one map that it is
    places=["encoder.layer.*.dense"]    module paths, or patterns over them, of linear maps and norms
    places=["*.experts.down_proj"]      paths of parameters that hold the linear maps of many experts
    places="attn.q+attn.o"              the same as a list of the parts

A config whose `places` is None says where by its flags (`selfattn_lora`, `mh_adapter`, `layers`, ...).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from adapters.errors import ConfigError, UnsupportedError, choices
from adapters.sites.layers import in_short, layers_of, require_layers
from adapters.sites.roles import ROLES
from adapters.sites.site import SITES, AffineSite, ExpertsSite, LinearSite, Site, TableSite

ALL, ALL_LINEAR = "all", "all-linear"
INPUT, WHOLE = ".in", ".whole"
ENTRY = r"(?:(\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*):)?([^:+,\s]+)"
"""Form of an entry: layers and a colon, if any, and a place."""
_ENTRY = re.compile(ENTRY)


@dataclass(frozen=True)
class Pattern:
    """One entry of `places`: what it matches, the layers it is for (None: all), and whether it means their input.

    `whole` entries mean a fused projection as one map, others those of its parts that they name.
    """

    place: str
    layers: frozenset[int] | None
    inward: bool = False
    whole: bool = False

    def matches(self, site: Site, role: str) -> bool:
        """Whether it means the role `role` (one of several, at a fused projection) of `site`."""
        if self.layers is not None and site.layer not in self.layers:
            return False
        if isinstance(site, TableSite):  # patterns mean the layers: tables are meant where their name is written out
            name = site.path.rpartition(".")[2]
            is_named = self.place.rpartition(".")[2] == name and fnmatchcase(site.path, self.place)
            return is_named or (role != "" and self.place == role)
        if self.place in (ALL, ALL_LINEAR):
            named = bool(role) or not isinstance(site, ExpertsSite)
            return (self.place == ALL or isinstance(site, LinearSite)) and named and site.layer >= 0
        if role and fnmatchcase(role, self.place):
            return True
        if isinstance(site, ExpertsSite) and not self.place.endswith(f".{site.parameter}"):
            return False  # "*" means modules: parameters are meant where their name is written out
        return isinstance(site, AffineSite) and fnmatchcase(site.address, self.place)


@cache
def pattern(text: str) -> Pattern:
    """The pattern that `text` writes. Raises ConfigError if it has another form."""
    if (found := _ENTRY.fullmatch(text)) is None:
        raise ConfigError(
            f"places has {text!r}. Write a role, a module path, a pattern over them or {ALL_LINEAR!r}, if you like "
            "after layers and a colon: 'attn.q', '*.o', '0-3,5:ffn'."
        )
    layers: set[int] = set()
    for part in (found[1] or "").split(","):
        first, _, last = part.partition("-")
        if first:
            layers.update(range(int(first), int(last or first) + 1))
    place = found[2]
    inward, whole = place.endswith(INPUT), place.endswith(WHOLE)
    place = place.removesuffix(INPUT).removesuffix(WHOLE)
    return Pattern(place, frozenset(layers) if found[1] else None, inward, whole)


def is_places(value: Any) -> bool:
    """Whether `value` can be the `places` of a config."""
    if not isinstance(value, list) or not value or not all(isinstance(entry, str) for entry in value):
        return False
    return all(_ENTRY.fullmatch(entry) for entry in value)


def roles_of(site: Site) -> tuple[str, ...]:
    """The roles of a site: several at a fused or shared projection; one that is empty where it has none."""
    return tuple(site.role.split("+"))


def patterns(config: Any, inward: bool = False) -> dict[str, Pattern]:
    """The entries of the `places` of a config, by their text: those for outputs, or those for inputs."""
    entries = {text: pattern(text) for text in config.places}
    return {text: entry for text, entry in entries.items() if entry.inward == inward}


def names_inputs(config: Any) -> bool:
    """Whether the `places` of a config name the input of a linear map."""
    return getattr(config, "places", None) is not None and bool(patterns(config, inward=True))


def chosen_roles(config: Any, site: Site, inward: bool = False) -> tuple[str, ...]:
    """Those roles of `site` that the `places` of a config name."""
    if names_whole(config, site, inward):
        return roles_of(site)
    entries = patterns(config, inward).values()
    return tuple(role for role in roles_of(site) if any(entry.matches(site, role) for entry in entries))


def names_whole(config: Any, site: Site, inward: bool = False) -> bool:
    """Whether the `places` of a config name all of `site` as one map, though it may be a fused projection."""
    if getattr(config, "places", None) is None:
        return False
    entries = [entry for entry in patterns(config, inward).values() if entry.whole]
    return any(entry.matches(site, role) for entry in entries for role in roles_of(site))


def selects(config: Any, site: Site) -> bool | None:
    """Whether the `places` of a config name `site`; None if the config has none, and its flags decide."""
    return None if getattr(config, "places", None) is None else bool(chosen_roles(config, site))


def choose(method: Any, config: Any, sites: Sequence[Site], refused: dict[str, str], model: str) -> list[Site]:
    """The sites at which a config puts adapters of a method.

    Args:
        method: An `AdapterModule`.
        config: One of its configs.
        sites: All sites of the model.
        refused: Role -> why this model refuses it.
        model: Words for the model.
    Raises:
        UnsupportedError: the model has no place of the kind that the method needs, or an entry of `places` none that
            has what it needs.
        ConfigError: nothing is selected, or an entry of `places` matches nothing.
    """
    kind = able(method, sites)
    if not kind:
        raise UnsupportedError(_no_kind(method, sites, refused, model))
    if getattr(config, "places", None) is None or not method.placeable:
        found = [site for site in kind if method.acts_at(config, site)]
    else:
        for text, entry in patterns(config, method.inward).items():
            if not any(entry.matches(site, role) for site in kind for role in roles_of(site)):
                _check_lacks(entry, text, method, sites, model)
                raise ConfigError(_unmatched(entry, text, method, sites, kind, refused, model))
        layers = getattr(config, "layers", "all")
        found = [site for site in kind if chosen_roles(config, site, method.inward)]
        found = [site for site in found if layers == "all" or site.layer in layers]
    left_out = set(getattr(config, "leave_out", ()))
    found = [site for site in found if site.layer not in left_out]
    if not found:
        raise ConfigError(
            f"{type(config).__name__} selects no place in {model}. Places for {method.__name__}:\n{listing(kind)}\n"
            f"in layers {in_short(site.layer for site in kind)}. Check places, flags, layers and leave_out."
        )
    return found


def able(method: Any, sites: Iterable[Site]) -> list[Site]:
    """The sites at which a method can act: those of its kind that have what it needs."""
    return [site for site in sites if isinstance(site, method.site_type) and lacking(method, site) is None]


def lacking(method: Any, site: Site) -> str | None:
    """What a method needs that a site of its kind does not have, in a word; None if nothing."""
    if isinstance(site, ExpertsSite) and not method.per_expert:
        return "linear map of its own (its experts are packed into one parameter)"
    if isinstance(site, TableSite) and not method.looks_up:
        return "linear map there (it is a table of embeddings)"
    if isinstance(site, AffineSite) and not site.called:
        return "call of its own (the model reads its weight without one)"
    return method.lacks(site)  # type: ignore[no-any-return]


def _check_lacks(entry: Pattern, text: str, method: Any, sites: Sequence[Site], model: str) -> None:
    """Raise UnsupportedError if an entry names places of a method's kind that lack what it needs."""
    named = [site for site in sites if isinstance(site, method.site_type)]
    named = [site for site in named if any(entry.matches(site, role) for role in roles_of(site))]
    if missing := {word for site in named if (word := lacking(method, site)) is not None}:
        raise UnsupportedError(
            f"{method.__name__} cannot act at {text!r} in {model}, which has no {' and no '.join(sorted(missing))} "
            f"there. Places for {method.__name__}:\n{listing(able(method, sites))}"
        )


def _no_kind(method: Any, sites: Sequence[Site], refused: dict[str, str], model: str) -> str:
    kind = method.site_type.__name__
    words = (lacking(method, site) for site in sites if isinstance(site, method.site_type))
    missing = {word for word in words if word is not None}
    with_it = f" with a {' and a '.join(sorted(missing))}" if missing else ""
    reasons = [f"{role}: {reason}" for role, reason in refused.items() if SITES[ROLES[role].kind] is method.site_type]
    because = f" ({'; '.join(reasons)})" if reasons else ""
    return (
        f"{method.__name__} cannot act in {model}, which has no place of the kind {kind}{with_it}{because}. Choose "
        "another method for this model."
    )


def _unmatched(
    entry: Pattern,
    text: str,
    method: Any,
    sites: Sequence[Site],
    kind: Sequence[Site],
    refused: dict[str, str],
    model: str,
) -> str:
    anywhere = Pattern(entry.place, None)
    reasons = {reason for role, reason in refused.items() if fnmatchcase(role, entry.place)}
    if reasons:
        return f"places has {text!r}, which {model} refuses: {'; '.join(sorted(reasons))}."
    if any(anywhere.matches(site, role) for site in kind for role in roles_of(site)):
        why = f"has no such place in these layers, only in {in_short(s.layer for s in kind)}"
    elif other := {ROLES[r].kind for site in sites for r in roles_of(site) if r and anywhere.matches(site, r)}:
        why = f"has it as {' or '.join(sorted(other))}, where {method.__name__} cannot act"
    else:
        why = "has no such place"
    names = dict.fromkeys(role for site in kind for role in roles_of(site) if role)
    hint = choices(entry.place, names).partition(" Did you mean")[1:]
    return f"places has {text!r}, but {model} {why}.{''.join(hint)} Places for {method.__name__}:\n{listing(kind)}"


def listing(sites: Iterable[Site]) -> str:
    """One line per role: its name, how many places have it, the module path of the first, the flag that means it."""
    found: dict[str, list[Site]] = {}
    for site in sites:
        found.setdefault(site.role or site.address, []).append(site)
    lines = []
    for role, group in found.items():
        first = group[0]
        flag = f"  ({first.location})" if first.role and first.location != role else ""
        lines.append(f"  {role:<12} {len(group):>3} x  {first.address if first.role else 'no role'}{flag}")
    return "\n".join(lines)


def check_layers(config: Any, sites: Sequence[Site]) -> None:
    """Raise ConfigError if a config names layers that the model does not have."""
    for name in ("leave_out", "layers"):
        value = getattr(config, name, None)
        require_layers(value if isinstance(value, list) else (), sites, f"{type(config).__name__}: {name}")


Chosen = slice | tuple[int, ...]
"""Output columns of one part of a fused projection, as an index."""


def count(columns: Chosen) -> int:
    """How many columns these are."""
    return columns.stop - columns.start if isinstance(columns, slice) else len(columns)


def output_columns(config: Any, site: LinearSite) -> tuple[Chosen, ...]:
    """The output columns that are adapted: all, or those of the chosen roles of a fused projection."""
    if not site.parts or names_whole(config, site):
        return (slice(0, site.out_features),)
    if getattr(config, "places", None) is None:
        parts, columns = _flagged_parts(config, site), {**site.columns, **site.flagged}
    else:
        parts, columns = chosen_roles(config, site), site.columns
    return tuple(columns[part].of_width(site.out_features) for part in parts)


def _flagged_parts(config: Any, site: LinearSite) -> tuple[str, ...]:
    """Flags name the letters of an attention, and ffn.up but not ffn.gate."""
    named = {"up", *config.attn_matrices}
    return tuple(part for part in site.parts if part.rpartition(".")[2] in named)


def flagged(method: Any, config: Any, sites: Sequence[Site], chosen: Sequence[Site]) -> Any:
    """The config that says by its flags where `config` acts, for files that others read; itself if flags cannot."""
    has_flags = getattr(type(config), "places", "") is None  # by default it says where without places
    if not has_flags or config.places is None or names_inputs(config):
        return config
    kind = able(method, sites)
    locations = {site.location for site in chosen}
    known = {site.location for site in kind}
    changes: dict[str, Any] = {flag: flag in locations for flag in config.flags if flag in known}
    layers = layers_of(chosen)
    if "attn_matrices" in config:
        letters = {role.rpartition(".")[2] for site in chosen for role in chosen_roles(config, site)}
        changes["attn_matrices"] = [x for x in ("q", "k", "v") if x in letters] or config.attn_matrices
    left_out = [layer for layer in layers_of(kind) if layer not in layers]
    if "layers" in config:
        changes["layers"] = layers if left_out else "all"
    elif "leave_out" in config and left_out:
        changes["leave_out"] = left_out
    plain = config.replace(places=None, **changes)
    same = [site for site in kind if method.acts_at(plain, site) and site.layer not in plain.get("leave_out", ())]
    if same != list(chosen) or any(
        output_columns(plain, site) != output_columns(config, site) for site in chosen if isinstance(site, LinearSite)
    ):
        return config
    return plain
