"""Which tensors a config makes, by name and shape, and what is wrong with those that are there.

A shape is a tuple of sizes: a number; a name, such as `H` for the hidden size, that must be the same size wherever it
stands in a site; or a range of allowed numbers.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..index.configs import members

__all__ = ["Comparison", "Header", "Layout", "compare", "hidden_sizes", "layouts"]

Config = Mapping[str, Any]
Size = int | str | range
Shape = tuple[Size, ...]
Header = Mapping[str, tuple[str, tuple[int, ...]]]

# Models whose layers have several widths.
_HIERARCHICAL = ("swin", "segformer", "pvt", "convnext", "hiera", "mobilevit", "levit", "donut", "focalnet", "dinat")
# Towers behind another one, whose layers the config counts on from there.
_LATER_TOWER = re.compile(r"(?:^|\.)(?:decoder|vision_model|vision_tower|visual)(?:\.|$)")
_KEY = re.compile(
    r"(?:(?P<path>.+)\.)?(?P<container>(?:\w+_)?adapters|loras|prefix_tunings|prefix_gates|prompt_tunings|refts|"
    r"shared_parameters)\.(?P<name>[^.]+)\.(?P<inner>.+)"
)
_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d{1,4})(?:\.|$)")
_UNIT = {"prefix_tunings": re.compile(r"[^.]+\."), "refts": re.compile(r"units\.\d+\.")}
_ALIAS = ".prefix_tuning.pool"  # below it, old files repeat the prefixes of the base model


class Layout(NamedTuple):
    """The tensors that stand together at a site."""

    container: str
    tensors: Mapping[str, Shape]
    optional: Mapping[str, Shape] = {}

    @property
    def all(self) -> Mapping[str, Shape]:
        """Those that must and those that may be there."""
        return {**self.tensors, **self.optional}


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


def layouts(config: Config, hidden: int | None = None, layer: int | None = None) -> list[Layout]:
    """What one config makes; for a union, ask for each member.

    Args:
        hidden: the model's hidden size, where it is known.
        layer: the layer's number, where it is known: sizes may depend on it.
    """
    make = _MAKERS.get(config.get("architecture"))
    return make(config, hidden, layer) if make else []


def _bottleneck(config: Config, hidden: int | None, layer: int | None) -> list[Layout]:
    down, width = f"adapter_down.{1 if config.get('ln_before') else 0}", _width(config, hidden, layer)
    found: list[Layout] = []
    if config.get("phm_layer"):
        tensors, shared = _phm(config, down, hidden, width)
        found += [Layout("shared_parameters", shared)] if shared else []
    else:
        tensors = {
            f"{down}.weight": (width or "d", "H"),
            f"{down}.bias": (width or "d",),
            "adapter_up.weight": ("H", width or "d"),
            "adapter_up.bias": ("H",),
        }
    if config.get("ln_after"):
        tensors |= {"adapter_norm_after.weight": ("H",), "adapter_norm_after.bias": ("H",)}
    if config.get("scaling") in ("learned", "channel"):
        tensors["scaling"] = (1,) if config["scaling"] == "learned" else ("H",)
    if config.get("use_gating"):
        tensors |= {"gate.weight": (1, "H"), "gate.bias": (1,)}
    norm: dict[str, Shape] = {}  # one tensor of two names: either will do
    if config.get("ln_before"):
        norm = {f"{name}.{part}": ("H",) for name in ("adapter_norm_before", "adapter_down.0") for part in _LINEAR}
    nets = {"nice": ("F", "G"), "glow": ("s1", "s2")}.get(str(config.get("inv_adapter")))
    if nets:
        found.append(Layout("invertible_adapters", {key: shape for net in nets for key, shape in _net(net).items()}))
    return [Layout("adapters", tensors, norm), *found]


_LINEAR = ("weight", "bias")


def _width(config: Config, hidden: int | None, layer: int | None) -> int | None:
    factor: Any = config.get("reduction_factor")
    if isinstance(factor, dict):
        factor = None if layer is None else factor.get(str(layer), factor.get("default"))
    if hidden is None or not _is_number(factor) or factor <= 0:
        return None
    return max(1, int(hidden // factor))


def _phm(config: Config, down: str, hidden: int | None, width: int | None) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """The tensors of each adapter whose matrices are sums of Kronecker products, and those that all share."""
    n, k = _whole(config, "phm_dim", 4), _whole(config, "phm_rank", 1)
    outer: Size = hidden // n if hidden else "H/n"
    inner: Size = width // n if width else "d/n"
    own: dict[str, Shape] = {}
    shared: dict[str, Shape] = {}
    for side, short, rows, columns in ((down, "down", outer, inner), ("adapter_up", "up", inner, outer)):
        left, right = (n, rows, k), (n, k, columns)
        if config.get("shared_W_phm"):
            shared |= {f"W_{short}_left": left, f"W_{short}_right": right}
        elif config.get("factorized_phm_W", True):
            own |= {f"{side}.W_left": left, f"{side}.W_right": right}
        else:
            own[f"{side}.W"] = (n, rows, columns)
        if not config.get("shared_phm_rule", True):
            own |= {f"{side}.{name}": shape for name, shape in _rule(config, n).items()}
    if config.get("shared_phm_rule", True):
        shared |= _rule(config, n)
    if config.get("phm_bias", True):
        own |= {f"{down}.b": (width or "d",), "adapter_up.b": ("H",)}
    return own, shared


def _rule(config: Config, n: int) -> dict[str, Shape]:
    if config.get("factorized_phm_rule"):
        return {"phm_rule_left": (n, n, 1), "phm_rule_right": (n, 1, n)}
    return {"phm_rule": (n, n, n)}


def _net(net: str) -> dict[str, Shape]:
    """Two linear maps in a row, of any sizes that fit together."""
    narrow, begin, end = f"{net} inner", f"{net} in", f"{net} out"
    return {
        f"{net}.0.weight": (narrow, begin),
        f"{net}.0.bias": (narrow,),
        f"{net}.2.weight": (end, narrow),
        f"{net}.2.bias": (end,),
    }


def _lora(config: Config, hidden: int | None, layer: int | None) -> list[Layout]:
    r = _whole(config, "r", 8)
    shared: dict[str, Shape] = {"lora_A": (r, "in"), "lora_B": ("out", r)}
    is_vera = any(isinstance(config.get(key), float) for key in ("vera_d", "vera_b"))
    tensors: dict[str, Shape]
    if config.get("composition_mode") == "scale":
        tensors = {"lora_B": ("out", r)}
    elif is_vera:
        tensors = {"vera_D": (r, r), "vera_B": ("out", "out")}
    else:
        # A projection to queries, keys and values at once has a matrix for each of those that are adapted.
        tensors = {"lora_A": (range(r, 3 * r + 1, r), "in"), "lora_B": ("out", r)}
    if config.get("use_gating"):
        tensors |= {"gate.weight": ("gates", "in"), "gate.bias": ("gates",)}
    if config.get("use_dora"):
        tensors["m.weight"] = ("out", 1)
    return [Layout("loras", tensors), *([Layout("shared_parameters", shared)] if is_vera else [])]


def _mtl_lora(config: Config, hidden: int | None, layer: int | None) -> list[Layout]:
    r, ups = _whole(config, "r", 8), _whole(config, "n_up_projection", 1)
    values: Shape = (r, r) if config.get("task_specific_matrix_type") == "linear" else (r,)
    tensors: dict[str, Shape] = {"lora_A": (r, "in"), "lora_B": (ups, "out", r), "weights": (ups,)}
    return [Layout("loras", {**tensors, "task_specific.values": values})]


def _prefix_tuning(config: Config, hidden: int | None, layer: int | None) -> list[Layout]:
    length, k = _whole(config, "prefix_length", 30), _whole(config, "bottleneck_size", 512)
    tensors: dict[str, Shape]
    if config.get("flat"):
        tensors = {"control_trans": (range(length, 1 << 40, length),)}
    else:
        tensors = {
            "wte.weight": (length, "H"),
            "control_trans.0.weight": (k, "H"),
            "control_trans.0.bias": (k,),
            "control_trans.2.weight": ("keys and values", k),
            "control_trans.2.bias": ("keys and values",),
        }
    found = [Layout("prefix_tunings", tensors)]
    if config.get("use_gating"):
        found.append(Layout("prefix_gates", {"weight": ("gates", "H"), "bias": ("gates",)}))
    return found


def _prompt_tuning(config: Config, hidden: int | None, layer: int | None) -> list[Layout]:
    length = _whole(config, "prompt_length", 10)
    return [Layout("prompt_tunings", {"prompt_embedding.weight": (length, "embedding size")})]


def _reft(config: Config, hidden: int | None, layer: int | None) -> list[Layout]:
    r = _whole(config, "r", 1)
    tensors: dict[str, Shape] = {"learned_source.weight": (r, "H"), "learned_source.bias": (r,)}
    if config.get("orthogonality"):
        at = "projection.parametrizations.weight"
        tensors |= {f"{at}.original": (r, "H"), f"{at}.0.base": ("H", "H")}
    else:
        tensors["projection.weight"] = (r, "H")
    return [Layout("refts", tensors)]


_MAKERS = {
    None: _bottleneck,
    "lora": _lora,
    "mtl_lora": _mtl_lora,
    "prefix_tuning": _prefix_tuning,
    "prompt_tuning": _prompt_tuning,
    "reft": _reft,
}


def _whole(config: Config, key: str, default: int) -> int:
    value = config.get(key, default)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31 else default


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def hidden_sizes(config: Config, tensors: Header, name: str | None = None) -> set[int]:
    """The hidden sizes of the models that tensors are made for; more than one where a model has several towers."""
    return set(_hidden_sizes(_sites(tensors, name, Comparison(), False), members(config)).values())


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
    wanted = dict.fromkeys(layout.container for part in parts for layout in layouts(part))
    found.missing += [f"all tensors of '{container}'" for container in wanted if container not in here]
    found.gaps = _gaps(sites, parts)
    return found


def _sites(tensors: Header, name: str | None, found: Comparison, by_path: bool) -> list[_Site]:
    sites: dict[tuple[str, str, str], _Site] = {}
    for key, (_, shape) in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None or (name is not None and match["name"] != name):
            found.unused.append(key)
            continue
        path, container, inner = match["path"] or "", _container(match["container"]), match["inner"]
        if path.endswith(_ALIAS) and container == "prefix_tunings":
            container = "alias"
        cut = _UNIT[container].match(inner) if container in _UNIT else None
        unit = cut[0] if cut else ""
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
    known: dict[str, list[Layout]] = {}
    for part in parts:
        for layout in layouts(part):
            known.setdefault(layout.container, []).append(layout)
    votes: dict[str, Counter[int]] = {}
    for site in sites:
        for layout in known.get(site.container, ()):
            for inner, wanted in layout.all.items():
                if inner in site.tensors:
                    sizes = zip(site.tensors[inner][1], wanted)
                    votes.setdefault(site.tower, Counter()).update(size for size, dim in sizes if dim == "H")
    return {tower: counted.most_common(1)[0][0] for tower, counted in votes.items() if counted}


def _compare_site(site: _Site, parts: Sequence[Config], hidden: int | None, found: Comparison) -> None:
    names = [key for key, _ in site.tensors.values()]
    able = [part for part in parts if any(layout.container == site.container for layout in layouts(part))]
    placed = [part for part in able if site.counted is None or site.counted not in _left_out(part)]
    if not able:
        found.unused += names
    elif not placed:
        found.wrong.append(f"'leave_out' names layer {site.counted}, but {names[0]!r} stands there.")
    else:
        options = [
            _compare_tensors(site, layout, hidden)
            for part in placed
            for layout in layouts(part, hidden, site.counted)
            if layout.container == site.container
        ]
        best = min(options, key=lambda one: len(one.wrong) + len(one.missing) + len(one.unused))
        found.wrong += best.wrong
        found.missing += best.missing
        found.unused += best.unused


def _compare_tensors(site: _Site, layout: Layout, hidden: int | None) -> Comparison:
    sizes: dict[str, int] = {"H": hidden} if hidden else {}
    found = Comparison()
    for inner, (key, shape) in site.tensors.items():
        wanted = layout.all.get(inner)
        if wanted is None:
            found.unused.append(key)
        elif not _fits(shape, wanted, sizes):
            found.wrong.append(f"{key!r} has the shape {_shown(shape)}, but the config makes {_shown(wanted, sizes)}.")
    prefix = ".".join(filter(None, (site.path, site.container)))
    found.missing += [f"{prefix}.….{site.unit}{inner}" for inner in layout.tensors if inner not in site.tensors]
    return found


def _fits(shape: Sequence[int], wanted: Shape, sizes: dict[str, int]) -> bool:
    """Whether a shape is the wanted one; names of sizes that are new get theirs."""
    if len(shape) != len(wanted):
        return False
    for size, dim in zip(shape, wanted):
        if isinstance(dim, str):
            dim = sizes.setdefault(dim, size)
        if size not in dim if isinstance(dim, range) else size != dim:
            return False
    return True


def _shown(shape: Iterable[Size], sizes: Mapping[str, int] | None = None) -> str:
    return f"({', '.join(_size(dim, sizes or {}) for dim in shape)})"


def _size(dim: Size, sizes: Mapping[str, int]) -> str:
    if isinstance(dim, range):
        return f"a multiple of {dim.step}" if dim.step > 1 else f"{dim.start} to {dim.stop - 1}"
    return str(sizes.get(dim, dim) if isinstance(dim, str) else dim)


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
