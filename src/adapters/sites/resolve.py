"""From a `ModelSpec` and a model to the list of its sites: real modules, widths and layer numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from adapters.errors import UnsupportedError, choices
from adapters.sites.linear import features, is_linear, is_table
from adapters.sites.roles import ROLES
from adapters.sites.site import (
    ADAPTED,
    HOLDERS,
    AffineSite,
    AttentionSite,
    EmbeddingSite,
    ExpertsSite,
    LayerSite,
    LinearSite,
    NormSite,
    PromptSite,
    ResidualSite,
    Site,
    TableSite,
)
from adapters.sites.spec import (
    At,
    Attention,
    Branch,
    Columns,
    Experts,
    LayerList,
    LayerSpec,
    Linear,
    ModelSpec,
    Norm,
    Place,
)


@dataclass(frozen=True)
class Naming:
    """What sites are called beside their roles. This one calls them by their roles.

    Args:
        columns: Role -> the columns of a fused projection that configs with flags mean, where they are not the role's.
    """

    columns: Mapping[str, Columns] = field(default_factory=dict, kw_only=True)

    def location(self, role: str, stack: str = "") -> str:
        """The location of a role in the layers of the stack at a path."""
        return role

    def pool(self, role: str, stack: str = "") -> str:
        """The name under which the places of a role share what they share."""
        return self.location(role, stack)


def modules_of(base: nn.Module, layers: LayerList) -> list[nn.Module]:
    """The layers of a list; where their parts stand apart, a list of the parts of each."""
    try:
        found = base.get_submodule(layers.path)
    except AttributeError:
        return []
    if not layers.apart:
        return list(found.children())
    lists = [child for child in found.children() if isinstance(child, nn.ModuleList)]
    return [nn.ModuleList(parts) for parts in zip(*(own for own in lists if len(own) == len(layers.layer)))]  # type: ignore[arg-type]


def resolve(base: nn.Module, spec: ModelSpec, names: Naming = Naming()) -> list[Site]:
    """All sites of `base`, in the order in which a forward pass reaches them; then linear maps and norms without role.

    Args:
        base: The base model.
        spec: How it is laid out.
        names: What sites are called beside their roles.
    Raises:
        UnsupportedError: the spec names a module that is not there.
    """
    sites: list[Site] = []
    lacking = {root for layers in spec.layers if layers.optional and (root := _root(layers.path)) not in base._modules}
    lists = [_Layers(base, layers, names) for layers in spec.layers if _root(layers.path) not in lacking]
    for role, place in spec.places.items():
        assert isinstance(place, At)
        if _root(place.path) in lacking:
            continue
        module = _find(base, place.path, base, "the model", role)
        width = _embedding_width(base, module, place, lists)
        if role == "embed":
            index = place.argument if place.side == "in" else None
            owner = _root(place.path) if "." in place.path else ""
            sites.append(EmbeddingSite(role, names.location(role), -1, owner, module, index, width))
        else:
            enters = place.side == "in"
            readers = tuple(layers.stack for layers in lists[1:] if layers.reads_another)
            sites.append(
                PromptSite(
                    *(role, names.location(role), -1, "", module),
                    stack=module if enters else lists[0].stack,
                    width=width,
                    argument=str(place.argument) if enters else "",
                    table=_table(module) if enters else None,
                    readers=readers,
                    causal=spec.causal,
                )
            )
    number, numbers = 0, dict[str, int]()
    for layers in lists:
        for path, layer, layer_spec in layers:
            sites += _Layer(layers, layer_spec, layer, path, number).sites()
            numbers[f"{path}."] = number
            number += 1
    sites += _others(base, sites, numbers)
    for site in sites if spec.uncalled else ():
        if isinstance(site, AffineSite) and site.path in spec.uncalled:
            site.called = False
    layouts = {id(_find(base, path, base, "the model", "layer")): layout for path, layout in spec.layouts.items()}
    modules = [module for layers in lists for _, module, _ in layers] if layouts else []
    for site in sites if layouts else ():
        site.layout = layouts.get(id(site.module), "rows")
        if site.layout == "flat":
            site.layer_module = modules[site.layer]
    return sites


def _others(base: nn.Module, sites: list[Site], numbers: dict[str, int]) -> Iterator[Site]:
    """Linear maps and norms that have no role."""
    known = {id(site.module) for site in sites if isinstance(site, AffineSite)}
    tokens = _token_tables(base)
    for path, module in base.named_modules():
        if id(module) in known or not path:
            continue
        if type(module).__module__.partition(".")[0] != "torch":
            yield from _packed(base, path, module, numbers)
        if is_table(module):
            yield TableSite("embed" if id(module) in tokens else "", path, -1, path, module)
            continue
        if is_linear(module):
            kind: type[Site] = LinearSite
        elif "Norm" in type(module).__name__ and getattr(getattr(module, "weight", None), "dim", int)() == 1:
            kind = NormSite
        else:
            continue
        layer = next((number for start, number in numbers.items() if path.startswith(start)), -1)
        yield kind("", path, layer, path, module)


def _packed(base: nn.Module, path: str, module: nn.Module, numbers: dict[str, int]) -> Iterator[ExpertsSite]:
    """The matrices that a module of a layer holds as parameters of its own, of which nobody said what they are.

    Each is taken as [E, O, I], or [O, I] (a router), unless the module says that it is transposed.
    """
    within = next((start for start in numbers if path.startswith(start)), None)
    for name, stored in module._parameters.items():
        packed = stored is not None and (
            (stored.dim() == 3 and len(stored) > 1) or (stored.dim() == 2 and name == "weight")
        )
        if within is None or not packed:
            continue
        layer, transposed = base.get_submodule(within[:-1]), getattr(module, "is_transposed", False) is True
        yield ExpertsSite(
            *("", f"{path}.{name}", numbers[within], f"{path}.{ADAPTED}.{name}", module),
            parameter=name,
            transposed=transposed,
            layer_module=layer,
        )


def _root(path: str) -> str:
    """Name of the child of the base model that holds the module at `path`."""
    return path.partition(".")[0]


class _Layers:
    """The layers of one list: path, module and spec of each."""

    def __init__(self, base: nn.Module, layers: LayerList, names: Naming) -> None:
        self.base, self.layers, self.names = base, layers, names
        self.stack = _find(base, layers.stack, base, "the model", "layer")
        found = _find(base, layers.path, base, "the model", "layer")
        if layers.apart:
            assert isinstance(layers.layer, tuple)
            self.specs = list(layers.layer)
            self.modules, self.paths = [found] * len(self.specs), [layers.path] * len(self.specs)
            return
        if not isinstance(found, nn.ModuleList | nn.Sequential):
            raise UnsupportedError(
                f"{_called(base)}: {layers.path!r} is a {type(found).__name__}, but layers are found in a ModuleList."
            )
        self.modules = list(found)
        self.paths = [f"{layers.path}.{i}" for i in range(len(self.modules))]
        self.specs = [layers.layer] * len(found) if isinstance(layers.layer, LayerSpec) else list(layers.layer)
        if len(self.specs) != len(found):
            raise UnsupportedError(
                f"{_called(base)}: {layers.path!r} has {len(found)} layers, and its spec describes {len(self.specs)}."
            )

    @property
    def reads_another(self) -> bool:
        """Whether its layers have cross attentions."""
        return any(role.startswith("cross.") for spec in self.specs for role in spec.places)

    def __iter__(self) -> Iterator[tuple[str, nn.Module, LayerSpec]]:
        return zip(self.paths, self.modules, self.specs)


class _Layer:
    """One layer, while its places are made into sites."""

    def __init__(self, layers: _Layers, spec: LayerSpec, module: nn.Module, path: str, number: int) -> None:
        self.layers, self.spec, self.module, self.path, self.number = layers, spec, module, path, number

    def sites(self) -> Iterator[Site]:
        """Its sites, in the order of the roles."""
        places, done = self.spec.places, set[str]()
        for role in (role for role in ROLES if role in places or role == "layer"):
            place = places.get(role, At(""))
            if isinstance(place, Linear):
                if place.path not in done:
                    done.add(place.path)
                    yield self._linear(role, place)
            elif isinstance(place, Branch):
                yield self._branch(role, place)
                yield self._hidden(role, place.h, self._holder(role, place))
            elif isinstance(place, Attention):
                yield self._attention(role, place)
            elif isinstance(place, Norm):
                yield NormSite(*self._named(role, place.path), self.find(place.path, role))
            elif role not in self.spec.refused:
                yield self._hidden(role, place, place.path)

    def find(self, path: str, role: str) -> nn.Module:
        """The module at `path`. Raises UnsupportedError if there is none."""
        return _find(self.module, path, self.layers.base, f"layer {self.number} ({self.path})", role)

    def _named(self, role: str, path: str) -> tuple[str, str, int, str]:
        location = self.layers.names.location(role.partition("+")[0], self.layers.layers.stack)
        return role, location, self.number, ".".join(filter(None, (self.path, path)))

    def _linear(self, role: str, place: Linear) -> LinearSite:
        if isinstance(place, Experts):
            return self._experts(role, place)
        module = self.find(place.path, role)
        if not is_linear(module):
            raise UnsupportedError(
                f"{_called(self.layers.base)}: {self.path}.{place.path}, which should be {role}, is a "
                f"{type(module).__name__} and no linear map."
            )
        columns = self._parts(place)
        flagged = {name: own for name, own in self.layers.names.columns.items() if name in columns}
        return LinearSite(*self._named(self._roles(place), place.path), module, columns, flagged, call=place.call)

    def _experts(self, role: str, place: Experts) -> ExpertsSite:
        owner, _, name = place.path.rpartition(".")
        module = self.find(owner, role)
        stored = module._parameters.get(name)
        if stored is None or stored.dim() != 3:
            raise UnsupportedError(
                f"{_called(self.layers.base)}: {self.path}.{place.path}, which should be {role}, is no parameter "
                "[experts, outputs, inputs]."
            )
        named = self._named(self._roles(place), f"{owner}.{ADAPTED}.{name}")
        return ExpertsSite(
            *named, module, self._parts(place), parameter=name, transposed=place.transposed, layer_module=self.module
        )

    def _roles(self, place: Linear) -> str:
        """The roles of a map, joined."""
        return "+".join(name for name, other in self.spec.places.items() if _same_map(place, other))

    def _parts(self, place: Linear) -> dict[str, Columns]:
        """The columns of the roles of a fused projection."""
        parts = {name: other for name, other in self.spec.places.items() if _same_map(place, other)}
        return {name: self._columns(name, part.columns) for name, part in parts.items() if part.columns}  # type: ignore[union-attr]

    def _features(self, place: Linear, role: str) -> tuple[int, int]:
        """Widths of a linear map, or of those of experts."""
        if isinstance(place, Experts):
            site = self._experts(role, place)
            return site.in_features, site.out_features
        return features(self.find(place.path, role))

    def _columns(self, role: str, columns: Columns) -> Columns:
        """`columns`, with the number of its stretches read from the layer."""
        if isinstance(columns.repeats, int):
            return columns
        return replace(columns, repeats=self._number(columns.repeats, role, f"the columns of {role} depend"))

    def _number(self, path: str, role: str, use: str) -> int:
        """The attribute of a module of the layer at `path`. Raises UnsupportedError where it is no number."""
        owner, _, name = path.rpartition(".")
        number = getattr(self.find(owner, role), name, None)
        if not isinstance(number, int):
            raise UnsupportedError(
                f"{_called(self.layers.base)}: {path!r} of {self.path}, on which {use}, is {number!r} and no number."
            )
        return number

    def _branch(self, role: str, place: Branch) -> ResidualSite:
        x, beside = place.x, place.beside
        return ResidualSite(
            *self._named(role, self._holder(role, place)),
            self.find(place.h.path, role),
            x_module=None if x is None else self.find(x.path, role),
            x_index=0 if x is None else x.argument,
            x_call=None if x is None else x.call,
            norm=self.find(place.norm, role) if place.norm else None,
            norm_after=place.norm_after,
            scale=place.scale,
            swapped=place.swapped,
            norm_call=place.norm_call,
            beside=None if beside is None else self.find(beside.path, role),
            beside_call=None if beside is None else beside.call,
            alone=place.alone,
            exact=place.exact,
            width=self._width(role),
            call=place.h.call,
        )

    def _hidden(self, role: str, place: At, holder: str) -> LayerSite:
        _, location, number, path = self._named(role, holder)
        location = location if role == "layer" else role  # the branch itself has the other one
        module, stack = self.find(place.path, role), self.layers.stack
        return LayerSite(role, location, number, path, module, stack=stack, width=self._width(role), call=place.call)

    def _attention(self, role: str, place: Attention) -> AttentionSite:
        kind, base = role.partition(".")[0], self.layers.base
        bias = _find(base, place.position_bias, base, "the model", role) if place.position_bias else None
        module, told = self.find(place.path, role), place.heads is not None
        query, key = (self._linear_at(f"{kind}.{part}") for part in "qk")
        hidden = self._width(kind) if query is None or told else self._features(query, role)[0]
        pool = self.layers.names.pool(role, self.layers.layers.stack)
        widths = self._width_of(role, key), self._width_of(role, query)
        named = self._named(role, place.path)
        heads = self._heads(role, place, widths[0])
        return AttentionSite(*named, module, hidden, widths[0], bias, heads, widths[1], pool)

    def _heads(self, role: str, place: Attention, width: int) -> tuple[int, int, int] | None:
        """`heads` of an attention, with those that its module tells read from it. `width` is that of all its keys."""
        if place.heads is None:
            return None
        start, use = f"{place.path}." if place.path else "", f"the heads of {role} depend"
        number, key, value = (
            self._number(f"{start}{entry}", role, use) if isinstance(entry, str) else entry for entry in place.heads
        )
        assert key is not None and value is not None
        return width // key if number is None else number, key, value

    def _width_of(self, role: str, place: Linear | None) -> int:
        """Width of a projection, of its own columns if it is fused; 0 if there is none."""
        if place is None:
            return 0
        width = self._features(place, role)[1]
        if place.columns is None:
            return width
        chosen = self._columns(role, place.columns).of_width(width)
        return len(range(width)[chosen]) if isinstance(chosen, slice) else len(chosen)

    def _holder(self, role: str, place: Branch) -> str:
        """Where the adapters of a branch are children: see `Branch.holder`."""
        if place.holder:
            return place.holder
        ends = [place.h.path, place.norm or (place.x.path if place.x else "")]
        shared = []
        for names in zip(*(path.split(".")[:-1] for path in ends)):
            if len(set(names)) > 1:
                break
            shared.append(names[0])
        return ".".join(shared) or HOLDERS[role]

    def _width(self, role: str) -> int:
        """Width of the hidden states of a branch, or of the layer: that of the last linear map before it."""
        sources = {"attn": ("attn.o",), "cross": ("cross.o",), "ffn": ("ffn.down",)}
        for name in (*sources.get(role, ()), "ffn.down", "attn.o", "cross.o"):
            if (linear := self._linear_at(name)) is not None:
                return self._features(linear, role)[1]
        for name in ("attn.q", "ffn.up"):
            if (linear := self._linear_at(name)) is not None:
                return self._features(linear, role)[0]
        for name in ("ffn.norm", "attn.norm"):
            if isinstance(norm := self.spec.places.get(name), Norm):
                return int(self.find(norm.path, role).get_parameter("weight").shape[0])
        raise UnsupportedError(
            f"{_called(self.layers.base)}: nothing tells how wide {role} is in layer {self.number} ({self.path}). Its "
            "spec must name a linear map or a norm."
        )

    def width(self) -> int:
        """Width of the hidden states of the layer."""
        return self._width("layer")

    def _linear_at(self, role: str) -> Linear | None:
        place = self.spec.places.get(role)
        return place if isinstance(place, Linear) else None


def _same_map(one: Linear, other: Place) -> bool:
    return isinstance(other, Linear) and (one.path, one.call) == (other.path, other.call)


def _embedding_width(base: nn.Module, module: nn.Module, place: At, lists: list[_Layers]) -> int:
    """Width of the token embeddings at a place: factorised ones are narrower than the layers."""
    table: Any = module if isinstance(module, nn.Embedding) else _table(base)
    if (place.side == "out" or place.argument == "inputs_embeds") and isinstance(table, nn.Embedding):
        return table.embedding_dim
    path, layer, spec = next(iter(lists[0]))
    return _Layer(lists[0], spec, layer, path, 0).width()


def _table(base: nn.Module) -> Any:
    """The embedding of tokens, None where a model says of none that it is the one."""
    try:
        return base.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None


def _token_tables(base: nn.Module) -> set[int]:
    """The ids of the modules that look up tokens: where several stacks have the same weights, those of the stacks."""
    if not isinstance(table := _table(base), nn.Embedding):
        return set()
    same = {id(m) for m in base.modules() if isinstance(m, nn.Embedding) and m.weight is table.weight}
    return same - {id(table)} or same


def _called(base: nn.Module) -> str:
    return f"{type(base).__name__} of type {base.config.model_type!r}"  # type: ignore[union-attr]


def _find(owner: nn.Module, path: str, base: nn.Module, where: str, role: str) -> nn.Module:
    """The module at `path` below `owner`. Raises UnsupportedError with what is there instead."""
    module, found = owner, ""
    for name in path.split(".") if path else ():
        child = module._modules.get(name)
        if child is None:
            inside = f" in {found!r}" if found else ""
            raise UnsupportedError(
                f"{_called(base)}: {where} has no module {path!r} for {role}: there is no {name!r}{inside}. "
                f"{choices(name, module._modules)}"
            )
        module, found = child, f"{found}.{name}" if found else name
    return module
