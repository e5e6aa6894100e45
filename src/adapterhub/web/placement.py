"""Where an adapter sits in a transformer layer, told from its config: what drawings and their texts are made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

__all__ = ["ONCE", "Config", "Mark", "left_out", "marks", "placement_text"]

Config = Mapping[str, Any]
ONCE = ("prompt", "invertible")  # kinds that the model has once, not in each layer


class Mark(NamedTuple):
    """One trained piece.

    Attributes:
        site: where: `attention`, `ffn` (after or beside the block), `q`, `k`, `v`, `o`, `intermediate`, `output` (a
            linear layer), `keys` (what is attended to), `tokens` (the input), `layer` (its output) or `embeddings`.
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
    return [mark for member in _members(config) for mark in _pieces(member)]


def _members(config: Config) -> list[Config]:
    if config.get("architecture") == "union":
        return [member for member in config.get("configs") or [] if isinstance(member, Mapping)]
    return [config]


def _pieces(config: Config) -> list[Mark]:
    peft_type, architecture = config.get("peft_type"), config.get("architecture")
    try:
        if peft_type:
            return list(_peft(str(peft_type), config))
        return list(_READERS[architecture](config)) if architecture in _READERS else []
    except (TypeError, ValueError):  # a config that no library could load is not drawn
        return []


# ---- this library ---------------------------------------------------------------------------------------------------


def _bottleneck(config: Config) -> Iterator[Mark]:
    factor = _factor(config.get("reduction_factor"))
    note = [f"d/{factor:g}" if factor else "d/r"]
    note += ["PHM"] * bool(config.get("phm_layer")) + ["gated"] * bool(config.get("use_gating"))
    scaling = config.get("scaling", 1.0)
    note += [f"× {scaling:g}" if isinstance(scaling, (int, float)) else f"× {scaling}"] if scaling != 1.0 else []
    kind = "parallel" if config.get("is_parallel") else "bottleneck"
    neck = max(0.12, min(0.75, float(factor) ** -0.5)) if factor else 0.3
    for site, option in (("attention", "mh_adapter"), ("ffn", "output_adapter")):
        if config.get(option):
            yield Mark(site, kind, " · ".join(note), neck)
    if config.get("inv_adapter"):
        yield Mark("embeddings", "invertible", str(config["inv_adapter"]).upper())


def _factor(given: Any) -> float | None:
    """The reduction factor; of one per layer, the default or the first."""
    if isinstance(given, Mapping):
        given = given.get("default", next(iter(given.values()), None))
    return given if isinstance(given, (int, float)) and given > 0 else None


def _lora(config: Config) -> Iterator[Mark]:
    scale = config.get("composition_mode") == "scale"
    note = [] if scale else [f"r = {config.get('r')}"]
    note += ["DoRA"] * bool(config.get("use_dora")) + ["gated"] * bool(config.get("use_gating"))
    note += ["VeRA"] * isinstance(config.get("vera_d"), float)
    attention = [str(name) for name in config.get("attn_matrices") or []] if config.get("selfattn_lora", True) else []
    rest = [name for name in ("intermediate", "output") if config.get(f"{name}_lora")]
    for site in [*(name for name in ("q", "k", "v") if name in attention), *rest]:
        yield Mark(site, "scale" if scale else "lowrank", " · ".join(note))


def _prefix(config: Config) -> Iterator[Mark]:
    gated = " · gated" if config.get("use_gating") else ""
    yield Mark("keys", "prefix", f"{config.get('prefix_length')} tokens{gated}")


def _prompt(config: Config) -> Iterator[Mark]:
    yield Mark("tokens", "prompt", f"{config.get('prompt_length')} tokens")


def _reft(config: Config) -> Iterator[Mark]:
    first, last = (config.get(key) or 0 for key in ("prefix_positions", "suffix_positions"))
    yield Mark("layer", "reft", f"r = {config.get('r')}", positions=(int(first), int(last)))


_READERS = {
    None: _bottleneck,
    "lora": _lora,
    "low_rank_bn": _bottleneck,
    "mtl_lora": _lora,
    "adalora": _lora,
    "loha": _lora,
    "lokr": _lora,
    "randlora": _lora,
    "vblora": _lora,
    "prefix_tuning": _prefix,
    "prompt_tuning": _prompt,
    "reft": _reft,
}

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
    names = [modules] if isinstance(modules, str) else [str(name) for name in modules]
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
    named = [(_named(member), "leave_out" in member) for member in _members(config)]
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
    if mark.kind in ("lowrank", "scale"):
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
