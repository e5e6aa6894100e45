"""Where an adapter sits in a transformer layer, told from its config: what drawings and their texts are made of."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, NamedTuple

from ..facts.configs import members
from ..methods import Kind, Method, library, meets

__all__ = ["ONCE", "Config", "Mark", "left_out", "marks", "placement_text"]

Config = Mapping[str, Any]
ONCE = ("prompt", "invertible")  # kinds that the model has once, not in each layer


class Mark(NamedTuple):
    """One trained piece.

    Attributes:
        site: where: `attention`, `ffn` (after or beside the block), `q`, `k`, `v`, `o`, `intermediate`, `output` (a
            linear layer), `norm1`, `norm2`, `keys` (what is attended to), `tokens` (the input), `layer` (its output) or
            `embeddings`.
        kind: `bottleneck`, `parallel`, `lowrank`, `scale`, `prefix`, `prompt`, `reft` or `invertible`.
        note: its size, in a few characters.
        neck: how wide its narrow middle is, from 0 to 1.
        positions: for `reft`, how many first and last tokens it changes.
    """

    site: str
    kind: str
    note: str = ""
    neck: float = 0.3
    positions: tuple[int, int] = (0, 0)


def marks(config: Config) -> list[Mark]:
    """The trained pieces of a config of this library or of PEFT; those of a union one after another."""
    return [mark for member in members(config) for mark in _pieces(member)]


def _pieces(config: Config) -> list[Mark]:
    try:
        peft_type = config.get("peft_type")
        return list(_peft(str(peft_type), config) if peft_type else _own(config))
    except (TypeError, ValueError):  # a config that no library could load is not drawn
        return []


# ---- this library ---------------------------------------------------------------------------------------------------

# Role of a place: where it is drawn, and as what.
_ROLES = {
    "attn": ("attention", "bottleneck"),
    "ffn": ("ffn", "bottleneck"),
    "attn.q": ("q", "lowrank"),
    "attn.k": ("k", "lowrank"),
    "attn.v": ("v", "lowrank"),
    "attn.o": ("o", "lowrank"),
    "attn.norm": ("norm1", "scale"),
    "ffn.up": ("intermediate", "lowrank"),
    "ffn.gate": ("intermediate", "lowrank"),
    "ffn.down": ("output", "lowrank"),
    "ffn.norm": ("norm2", "scale"),
    "attn.core": ("keys", "prefix"),
    "embed.prompt": ("tokens", "prompt"),
    "layer": ("layer", "reft"),
    "embed": ("embeddings", "invertible"),
}
_MOST = 200  # entries of `places`, and characters of one, that are looked at
_LAYERS = re.compile(r"^[\d,-]+:")  # in front of a place: only in these layers


def _own(config: Config) -> Iterator[Mark]:
    architecture = library().architecture(config)
    kind = architecture.kind(config) if architecture else None
    if architecture is None or kind is None:
        return
    full = architecture.full(config)
    drawn: dict[tuple[str, str], Mark] = {}
    for method in architecture.methods_of(config):
        for site, shape in _drawn(method, full):
            shape = "scale" if shape == "lowrank" and kind.scales else shape
            shape = "parallel" if shape == "bottleneck" and full.get("is_parallel") else shape
            drawn.setdefault((site, shape), _mark(site, shape, full, kind))
    yield from drawn.values()


def _drawn(method: Method, full: Config) -> list[tuple[str, str]]:
    """Where a method acts in a layer, and as what it is drawn."""
    if full.get("places") is None or not method.placeable:
        roles = {role for role, when in method.roles.items() if meets(full, when)}
    else:
        given = full["places"]
        entries = given.split("+") if isinstance(given, str) else [str(text) for text in given]
        texts = [_LAYERS.sub("", text) for text in entries[:_MOST] if len(text) < _MOST]
        places = [text.removesuffix(".in") for text in texts if text.endswith(".in") == method.inward]
        roles = {role for role in method.roles for place in places if fnmatchcase(role, place)}
        modules = [] if roles else _sites(place.rstrip("*.") for place in places)
        roles |= {role for role in method.roles if _ROLES.get(role, ("",))[0] in modules}
    found = [_ROLES[role] for role in method.roles if role in roles and role in _ROLES]
    # What edits hidden states stands at the end of the layer in the drawing, behind whichever branch it is.
    return [_ROLES["layer"]][: len(found)] if "layer" in method.roles else found


def _mark(site: str, shape: str, full: Config, kind: Kind) -> Mark:
    factor = _factor(full.get("reduction_factor"))
    neck = max(0.12, min(0.75, float(factor) ** -0.5)) if factor else 0.3
    first, last = (full.get(key) or 0 for key in ("prefix_positions", "suffix_positions"))
    positions = (int(first), int(last)) if shape == "reft" else (0, 0)
    named = shape in _NAMED and _plain().get(shape, kind) != kind
    note = [*_size(shape, full, factor), *([kind.title] if named else [])]
    note += ["gated"] * bool(full.get("use_gating"))
    scaling = full.get("scaling", 1.0) if shape in ("bottleneck", "parallel") else 1.0
    note += [f"× {scaling:g}" if isinstance(scaling, (int, float)) else f"× {scaling}"] if scaling != 1.0 else []
    if shape == "invertible":
        note = [str(full.get("inv_adapter")).upper()]
    return Mark(site, shape, " · ".join(note), neck if shape in ("bottleneck", "parallel") else 0.3, positions)


def _size(shape: str, full: Config, factor: float | None) -> list[str]:
    if shape in ("bottleneck", "parallel"):
        return [f"d/{factor:g}" if factor else "d/r"]
    if shape in ("prefix", "prompt"):
        return [f"{full.get(f'{shape}_length')} tokens"]
    return [f"r = {full['r']}"] if shape in ("lowrank", "reft") and "r" in full else []


# Shapes of several methods, whose name stands beside them, but for the plainest one.
_NAMED = ("bottleneck", "parallel", "lowrank")


@cache
def _plain() -> Mapping[str, Kind]:
    """Of every shape the kind of the first preset that is drawn so."""
    found: dict[str, Kind] = {}
    for preset in library().presets.values():
        architecture = library().architecture(preset.config)
        kind = architecture.kind(preset.config) if architecture else None
        if architecture is not None and kind is not None:
            for method in architecture.methods_of(preset.config):
                for _, shape in _drawn(method, architecture.full(preset.config)):
                    parallel = shape == "bottleneck" and preset.config.get("is_parallel")
                    found.setdefault("parallel" if parallel else shape, kind)
    return found


def _factor(given: Any) -> float | None:
    """The reduction factor; of one per layer, the default or the first."""
    if isinstance(given, Mapping):
        given = given.get("default", next(iter(given.values()), None))
    return given if isinstance(given, (int, float)) and given > 0 else None


# ---- PEFT -----------------------------------------------------------------------------------------------------------

# What models call the linear layers of these sites; the last parts of PEFT's `target_modules`.
_MODULES = {
    "q": {"q", "q_proj", "q_lin", "query", "wq", "query_proj", "to_q"},
    "k": {"k", "k_proj", "k_lin", "key", "wk", "key_proj", "to_k"},
    "v": {"v", "v_proj", "v_lin", "value", "wv", "value_proj", "to_v"},
    "o": {"o", "o_proj", "out_proj", "out_lin", "wo_proj"},
    "intermediate": {"fc1", "up_proj", "gate_proj", "gate_up_proj", "wi", "wi_0", "wi_1", "c_fc", "lin1", "w1", "w3"},
    "output": {"fc2", "down_proj", "wo", "lin2", "w2"},
}
_SEVERAL = {
    "c_attn": ("q", "k", "v"),
    "qkv": ("q", "k", "v"),
    "qkv_proj": ("q", "k", "v"),
    "query_key_value": ("q", "k", "v"),
    "c_proj": ("o", "output"),
    "dense": ("o", "intermediate", "output"),
    "dense_h_to_4h": ("intermediate",),
    "dense_4h_to_h": ("output",),
    "all-linear": tuple(_MODULES),
}
_LOW_RANK = {"LORA": "", "ADALORA": "AdaLoRA", "LOHA": "LoHa", "LOKR": "LoKr", "VERA": "VeRA", "OFT": "OFT"}
_TOKENS = ("PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT")


def _peft(peft_type: str, config: Config) -> Iterator[Mark]:
    if peft_type == "PREFIX_TUNING":
        yield Mark("keys", "prefix", f"{config.get('num_virtual_tokens')} tokens")
    elif peft_type in _TOKENS:
        yield Mark("tokens", "prompt", f"{config.get('num_virtual_tokens')} tokens")
    elif peft_type == "IA3":
        for site in _sites(config.get("target_modules") or ["k", "v", "fc2"]):
            yield Mark(site, "scale")
    elif peft_type in _LOW_RANK:
        note = [f"r = {config['r']}"] if config.get("r") else []
        note += [_LOW_RANK[peft_type]] * bool(_LOW_RANK[peft_type]) + ["DoRA"] * bool(config.get("use_dora"))
        for site in _sites(config.get("target_modules") or ["q", "v"]):
            yield Mark(site, "lowrank", " · ".join(note))


def _sites(modules: Any) -> list[str]:
    names = [modules] if isinstance(modules, str) else map(str, modules)
    found = {site for name in names for site in _site_of(name)}
    return [site for site in _MODULES if site in found]


def _site_of(module: str) -> tuple[str, ...]:
    *outer, last = module.split(".")
    if last == "dense" and outer:  # as BERT names them
        return {"intermediate": ("intermediate",), "output": ("o",) if "attention" in outer else ("output",)}.get(
            outer[-1], _SEVERAL["dense"]
        )
    return _SEVERAL.get(last) or tuple(site for site, known in _MODULES.items() if last in known)


# ---- layers ---------------------------------------------------------------------------------------------------------


def left_out(config: Config, layers: int | None) -> tuple[int | None, frozenset[int]]:
    """How many layers the model has, as far as known, and which of them no member of the config touches."""
    named = [(_named(member), "leave_out" in member) for member in members(config)]
    if layers is None:
        highest = [max(indices) + 1 for indices, _ in named if indices]
        layers = max(highest, default=None)
    if layers is None:
        return None, frozenset()
    every = frozenset(range(layers))
    out = [frozenset(indices) if leave else every - set(indices) for indices, leave in named if indices is not None]
    if len(out) < len(named) or not out:
        return layers, frozenset()
    return layers, frozenset.intersection(*out) & every


def _named(config: Config) -> list[int] | None:
    """The layers that a config names, either as left out or as the only ones; None: it touches all of them."""
    for key in ("leave_out", "layers", "layers_to_transform"):
        value = config.get(key)
        value = [value] if isinstance(value, int) else value
        if isinstance(value, (list, tuple)) and value:
            return [index for index in value if isinstance(index, int) and 0 <= index < 1000]
    return None


# ---- in words -------------------------------------------------------------------------------------------------------

_WORDS = {
    "bottleneck": "a bottleneck ({note}) after {site}",
    "parallel": "a bottleneck ({note}) beside {site}",
    "lowrank": "low-rank updates ({note}) of the {site}",
    "scale": "learned factors on the {site}",
    "prefix": "a learned prefix ({note}) of keys and values in the attention",
    "prompt": "a learned prompt ({note}) before the input",
    "reft": "an edit ({note}) of the output of the layer{positions}",
    "invertible": "an invertible block ({note}) after the embeddings, undone before the output",
}
_SITES = {
    "attention": "the multi-head attention",
    "ffn": "the feed-forward network",
    "q": "query",
    "k": "key",
    "v": "value",
    "o": "attention output",
    "intermediate": "feed-forward up",
    "output": "feed-forward down",
    "norm1": "norm after the attention",
    "norm2": "norm after the feed-forward network",
}


def placement_text(config: Config, *, layers: int | None = None) -> str:
    """What `drawing.placement_svg` shows, as a sentence."""
    pieces = marks(config)
    per_layer, once = (_phrases([mark for mark in pieces if (mark.kind in ONCE) == wanted]) for wanted in (False, True))
    if not pieces:
        return "It is not known where this adapter sits in a layer."
    known, out = left_out(config, layers)
    sentences = []
    if per_layer:
        each = f"Each of {known} layers" if known and not out else "Each layer"
        sentences.append(f"{each} has {_list(per_layer)}.")
    if once:
        sentences.append(f"The model {'also ' if per_layer else ''}has {_list(once)}.")
    if out and per_layer:
        sentences.append(f"Left out: layer{'s' * (len(out) > 1)} {_ranges(out)}.")
    return " ".join(sentences)


def _phrases(pieces: list[Mark]) -> list[str]:
    groups: dict[tuple[str, str], list[Mark]] = {}
    for mark in pieces:
        groups.setdefault((mark.kind, mark.note), []).append(mark)
    return [_phrase(group) for group in groups.values()]


def _phrase(group: list[Mark]) -> str:
    mark = group[0]
    sites = _list([_SITES.get(member.site, member.site) for member in group])
    if mark.kind in ("lowrank", "scale") and not mark.site.startswith("norm"):
        sites += " projection" + "s" * (len(group) > 1)
    if mark.kind == "lowrank" and not mark.note:
        return f"low-rank updates of the {sites}"
    return _WORDS[mark.kind].format(note=mark.note, site=sites, positions=_positions(mark.positions))


def _positions(positions: tuple[int, int]) -> str:
    parts = [f"the {name} {count}" for name, count in zip(("first", "last"), positions, strict=True) if count]
    return f" at {_list(parts)} tokens" if parts else ""


def _list(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def _ranges(numbers: frozenset[int]) -> str:
    """`{0, 1, 2, 5}` as `0–2, 5`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
