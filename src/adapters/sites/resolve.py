"""From a `ModelSpec` and a model to the list of its sites: real modules, widths and layer numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from adapters.errors import MergeError, UnsupportedError, choices
from adapters.sharding import is_spread, shape_of, whole
from adapters.sites.linear import as_stored, assign, features, is_linear, is_packed, is_table, stored_weight, weight_of
from adapters.sites.roles import ROLES, Kind
from adapters.sites.spec import (
    At,
    Attention,
    Branch,
    Columns,
    Experts,
    LayerList,
    LayerSpec,
    Layout,
    Linear,
    ModelSpec,
    Norm,
    Place,
    Turn,
)

HOLDERS = {"attn": "attention_adapters", "cross": "cross_attention_adapters", "ffn": "output_adapters"}
"""Children of a layer that hold the adapters of a branch which no single module of the layer computes."""


@dataclass(eq=False)
class Site:
    """One place of one model where adapters can act.

    Attributes:
        role: The place's name (`roles.py`); those of a map with several, fused or shared, joined by "+"; empty where it
            has none.
        location: The same in listings, and in configs that say where with flags.
        layer: Number of the layer, encoder first; -1 for places that belong to the whole model.
        path: Module path, relative to the base model, below which this place's adapters are stored.
        module: The module that is hooked.
        call: Which of its calls in one forward of the layer, for modules that are called several times; None for all.
        layout: How rows lie in the module's tensors.
        layer_module: The layer, where what it is given tells rows and positions that the module no longer knows.
    """

    role: str
    location: str
    layer: int
    path: str
    module: nn.Module
    call: Turn | None = field(default=None, kw_only=True)
    layout: Layout = field(default="rows", kw_only=True)
    layer_module: nn.Module | None = field(default=None, kw_only=True)

    @property
    def address(self) -> str:
        """The path by which people name it."""
        return self.path


@dataclass(eq=False)
class AffineSite(Site):
    """A module that multiplies by a weight and adds a bias: a linear map, or a normalisation layer.

    Attributes:
        called: Whether the model calls it; not where it reads the weight itself, and no adapter can act.
    """

    called: bool = field(default=True, kw_only=True)

    @property
    def out_features(self) -> int:
        """O of its output [..., O]."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """The weight, of a linear map as [O, I] however it is stored. Raises MergeError if it is packed (quantised)."""
        raise NotImplementedError

    @property
    def bias(self) -> Tensor | None:
        """The bias [O], None where the module adds none."""
        bias: Tensor | None = getattr(self.module, "bias", None)
        return whole(bias) if is_spread(bias) else bias  # type: ignore[arg-type]

    def as_stored(self, weight: Tensor) -> Any:
        """A weight, in the form of `weight`, as the module stores its own. MergeError where others cannot be packed."""
        return as_stored(self.module, weight)

    @property
    def stored_weight(self) -> Any:
        """What `assign` takes to bring back the weight as it is now, bit for bit."""
        return stored_weight(self.module)

    @property
    def packed(self) -> bool:
        """Whether weights are rounded when they are assigned."""
        return is_packed(self.module)

    def assign(self, weight: Any, bias: Tensor | None) -> None:
        """Overwrite the weight, given as it is stored, and the bias."""
        assign(self.module, weight, bias)


@dataclass(eq=False)
class LinearSite(AffineSite):
    """A linear map y = W x + b. `columns` has the output columns of every role of a fused projection, in order.

    `flagged` has those that configs with flags mean, where they are others.
    """

    columns: dict[str, Columns] = field(default_factory=dict)
    flagged: dict[str, Columns] = field(default_factory=dict)

    @property
    def parts(self) -> tuple[str, ...]:
        """The roles of a fused projection; empty for a map that is one place."""
        return tuple(self.columns)

    @property
    def in_features(self) -> int:
        return features(self.module)[0]

    @property
    def out_features(self) -> int:
        return features(self.module)[1]

    @property
    def weight(self) -> Tensor:
        return weight_of(self.module)


@dataclass(eq=False)
class TableSite(LinearSite):
    """A table of embeddings y = c * W[ids]: the linear map [D, V] of vectors with a single 1, whose number is given.

    What adapters read here are the numbers themselves, [B, S, 1].
    """

    @property
    def factor(self) -> Any:
        """c, by which some models multiply what they look up; 1 for most."""
        return getattr(self.module, "embed_scale", 1)


ADAPTED = "adapted"
"""Child of a module of packed experts below which the adapters of its parameters stand, by their names."""


@dataclass(eq=False)
class ExpertsSite(LinearSite):
    """The linear maps of E experts, packed into one parameter of `module`; widths are those of one expert.

    A parameter that is one matrix, as those of routers are, is that of a single expert.

    Attributes:
        parameter: Its name.
        transposed: Whether it is stored as [E, I, O] and not as [E, O, I].
    """

    parameter: str = ""
    transposed: bool = False

    @property
    def address(self) -> str:
        return self.path.replace(f".{ADAPTED}.", ".")

    @property
    def stored(self) -> Tensor:
        """The parameter, as it is stored."""
        return self.module.get_parameter(self.parameter)

    @property
    def experts(self) -> int:
        """E, the number of experts."""
        return self.stored.shape[0] if self.stored.dim() > 2 else 1

    @property
    def in_features(self) -> int:
        return self.stored.shape[-2 if self.transposed else -1]

    @property
    def out_features(self) -> int:
        return self.stored.shape[-1 if self.transposed else -2]

    @property
    def weight(self) -> Tensor:
        """The weights [E, O, I]."""
        stored = self.stored
        if not stored.dtype.is_floating_point:
            raise MergeError(
                f"{self.address} is stored in a packed form, which has no [E, O, I] weights to read. Use a method that "
                "only needs inputs and outputs, or load the base model in 16 or 32 bit."
            )
        stored = stored if stored.dim() > 2 else stored[None]
        return stored.mT if self.transposed else stored

    @property
    def stored_bias(self) -> Tensor | None:
        """The parameter that is added to what the weights give, as it is stored."""
        name = "bias" if self.parameter == "weight" else f"{self.parameter}_bias"
        return self.module._parameters.get(name)

    @property
    def bias(self) -> Tensor | None:
        """The biases [E, O], None where there are none."""
        return None if self.stored_bias is None else self.stored_bias.view(self.experts, self.out_features)

    packed = False

    def as_stored(self, weight: Tensor) -> Tensor:
        return weight

    @property
    def stored_weight(self) -> Tensor:
        return self.weight.detach().clone()

    @torch.no_grad()
    def assign(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight.copy_(weight)
        if bias is not None and self.bias is not None:
            self.bias.copy_(bias)

    def of_one(self, weight: Tensor) -> LinearSite:
        """The site of one of the experts, whose weight [O, I] is given."""
        return LinearSite(self.role, self.location, self.layer, self.address, OneMap(weight), self.columns)


class OneMap(nn.Module):
    """Stands for the linear map of one expert, which is no module."""

    bias = None

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.__dict__["weight"] = weight
        self.out_features, self.in_features = weight.shape


@dataclass(eq=False)
class ResidualSite(Site):
    """A residual branch: `module` returns h; x is argument `x_index` of `x_module`; `norm` follows the sum, or is None.

    Where `norm_after` is False, `norm` is only for adapters that normalise their input. h is what `module` returns,
    times `scale`. Where it is `swapped`, adapters are given x for h and h for x. What `beside` returns is a part of x.
    `alone` and `exact` as in `Branch`.
    """

    x_module: nn.Module | None = field(kw_only=True)
    x_index: int | str = 0
    x_call: Turn | None = None
    norm: nn.Module | None = None
    norm_after: bool = True
    scale: float = 1.0
    swapped: bool = False
    norm_call: Turn | None = None
    beside: nn.Module | None = None
    beside_call: Turn | None = None
    alone: bool = False
    exact: bool = True
    width: int = 0


HEAD_SIZES = ("head_dim", "attention_head_size", "key_value_proj_dim", "head_size", "d_head", "dim_head")
KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "num_heads", "num_attention_heads", "n_heads", "n_head")
KEY_SIZES, VALUE_SIZES = ("qk_head_dim", *HEAD_SIZES), ("v_head_dim", *HEAD_SIZES)
"""Attributes by which attention modules tell the width of a head, and how many key heads they have."""


def told_widths(module: nn.Module, key: int, value: int) -> tuple[str, str] | None:
    """The names by which an attention module tells the width of one key and of one value; None where it does not."""
    keys, values = _telling(module, KEY_SIZES, key), _telling(module, VALUE_SIZES, value)
    return (keys[0], values[0]) if keys and values else None


def told_number(module: nn.Module, queries: int, keys: int) -> str | None:
    """The name by which an attention module tells how many key heads it has.

    Args:
        module: It.
        queries: The number of its query heads; 0 if that is not known.
        keys: That of the key heads which its scores read: of its own, or of those repeated for all queries.
    """
    fits = (queries and queries % (_number(module, name) or queries + 1) == 0 for name in KEY_HEADS)
    return next((name for name, fit in zip(KEY_HEADS, fits) if fit and keys in (queries, _number(module, name))), None)


def _telling(module: nn.Module, names: Iterable[str], number: int) -> list[str]:
    return [name for name in names if _number(module, name) == number]


def _number(module: nn.Module, name: str) -> int:
    """A positive number that a module has under a name; 0 if it has none."""
    number = getattr(module, name, None)
    return number if type(number) is int and number > 0 else 0


@dataclass(eq=False)
class AttentionSite(Site):
    """An attention module. `hidden_size` is the width of its input, `key_width` that of all its keys together.

    `heads` are (number of key heads, width of a key, width of a value) where the spec tells, `query_width` is the width
    of all its queries together, 0 where it is not known. Attentions of one `pool` keep what they share in one module.
    """

    hidden_size: int = 0
    key_width: int = 0
    position_bias: nn.Module | None = None
    heads: tuple[int, int, int] | None = None
    query_width: int = 0
    pool: str = ""

    def __post_init__(self) -> None:
        self.pool = self.pool or self.location

    @property
    def query_heads(self) -> int:
        """Number of query heads; that of key heads where queries are not known."""
        return self.query_width // self.head_dim or self.num_heads

    @property
    def num_heads(self) -> int:
        """Number of key heads."""
        return self.key_width // self.head_dim if self.heads is None else self.heads[0]

    @property
    def value_dim(self) -> int:
        """Width of one value; as `head_dim` unless the spec tells."""
        return self.head_dim if self.heads is None else self.heads[2]

    @property
    def head_dim(self) -> int:
        """Width of one key. Raises UnsupportedError if neither the spec nor the module tells."""
        if self.heads is not None:
            return self.heads[1]
        for names, counted in ((HEAD_SIZES, False), (KEY_HEADS, True)):
            for name in names:
                if number := _number(self.module, name):
                    size = self.key_width // number if counted else number
                    if size and self.key_width % size == 0:
                        return size
        raise UnsupportedError(
            f"The attention at {self.path} ({type(self.module).__name__}) has keys of width {self.key_width} and does "
            f"not tell its heads: it has none of the attributes {', '.join((*HEAD_SIZES, *KEY_HEADS))}."
        )


@dataclass(eq=False)
class NormSite(AffineSite):
    """A normalisation layer y = w n(x) + b."""

    @property
    def out_features(self) -> int:
        return int(shape_of(self.module.get_parameter("weight"))[0])

    @property
    def weight(self) -> Tensor:
        return whole(self.module.get_parameter("weight"))


@dataclass(eq=False)
class LayerSite(Site):
    """Hidden states that leave a layer or a branch; the attention mask of `stack` tells their positions."""

    stack: nn.Module = field(kw_only=True)
    width: int = 0


@dataclass(eq=False)
class EmbeddingSite(Site):
    """Where token embeddings enter the layers: the output of `module`, or its input `index` if `index` is not None."""

    index: int | str | None = None
    width: int = 0


@dataclass(eq=False)
class PromptSite(Site):
    """Where prompts are put in front of the embedded sequence: behind the embeddings, or where it enters its stack.

    Attributes:
        stack: The module that receives the attention mask.
        width: D of the embeddings.
        argument: The argument by which embeddings are given to the stack, where prompts are put in front of it; empty
            where they join what the module of the embeddings gives.
        table: With `argument`, the embedding of tokens.
        readers: The stacks whose cross attentions read this one.
        causal: Whether the stack is a decoder. With `argument`, what leaves it is then as long as what entered it.
    """

    stack: nn.Module
    width: int = 0
    argument: str = ""
    table: nn.Module | None = None
    readers: tuple[nn.Module, ...] = ()
    causal: bool = False


SITES: dict[Kind, type[Site]] = {
    "linear": LinearSite,
    "branch": ResidualSite,
    "attention": AttentionSite,
    "norm": NormSite,
    "layer": LayerSite,
    "embedding": EmbeddingSite,
    "prompt": PromptSite,
}
"""What the places of a kind are made into; a branch is a `LayerSite` too."""


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
