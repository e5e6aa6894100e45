"""How one model is laid out, as plain data: for every role of every layer its address.

Whoever made a spec, a person for a family, an `AdapterModelInterface` or a trace, the data is the same. Paths in a
`LayerSpec` are relative to one layer, all others to the base model. What the places are called is in `roles.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from adapters.errors import ConfigError, choices
from adapters.sites.roles import ROLES, Kind

Turn = tuple[int, int]
"""(k, n): call number k, counted from 0, of the n calls of a module in one forward of its layer."""

Layout = Literal["rows", "sequence", "flat"]
"""How rows lie in the tensors of a module: [B, S, D]; [S, B, D]; [B * S, D], or [B * N, W, D] where it has windows."""


def _check_turn(place: At | Linear) -> None:
    if place.call is not None and not 0 <= place.call[0] < place.call[1]:
        raise ConfigError(f"{place}: call is (number of the call, from 0; how many calls there are).")


@dataclass(frozen=True)
class At:
    """The address of a tensor: what goes into a module or comes out of it.

    Args:
        path: The module; empty for the layer itself.
        side: Whether the tensor goes "in" or comes "out".
        argument: Position or keyword of the argument that it is; position in what comes out, if that is a tuple.
        call: Which call, for modules that are called several times in one forward of their layer; None for all.
    """

    path: str
    side: Literal["in", "out"] = "out"
    argument: int | str = 0
    call: Turn | None = None

    def __post_init__(self) -> None:
        _check_turn(self)


@dataclass(frozen=True)
class Columns:
    """Some output columns of a fused projection.

    The output is cut into `repeats` equal stretches (one per head or group; by default it is one stretch), and each
    stretch into `of` equal units. Units `start` to `stop` of every stretch are meant:

        q of the blocks q | k | v                       Columns(0, 1, of=3)
        q of 8 query, 2 key and 2 value heads           Columns(0, 8, of=12)
        k of the heads q0 k0 v0 q1 k1 v1 ... of 16      Columns(1, 2, of=3, repeats=16)

    `repeats` is a number, or the name of an attribute of a module of the layer, such as "attention.num_heads".
    """

    start: int
    stop: int
    of: int
    repeats: int | str = 1

    def of_width(self, width: int) -> slice | tuple[int, ...]:
        """The columns of an output that is `width` wide: a slice, or their numbers if they are not adjacent."""
        assert isinstance(self.repeats, int)
        stretch, rest = divmod(width, self.repeats)
        unit, more = divmod(stretch, self.of)
        if rest or more or not 0 <= self.start < self.stop <= self.of:
            raise ConfigError(f"{self}: {width} columns cannot be cut in this way.")
        if self.repeats == 1:
            return slice(self.start * unit, self.stop * unit)
        return tuple(
            i * stretch + column for i in range(self.repeats) for column in range(self.start * unit, self.stop * unit)
        )


@dataclass(frozen=True)
class Linear:
    """A linear map; `columns` are those of its output that have this role, by default all. `call` as in `At`."""

    path: str
    columns: Columns | None = None
    call: Turn | None = None

    def __post_init__(self) -> None:
        _check_turn(self)


@dataclass(frozen=True)
class Experts(Linear):
    """The linear maps of all experts, packed into one parameter [E, O, I], by whose path they are named.

    Args:
        path: The parameter: "mlp.experts.down_proj".
        columns: As in `Linear`, of every expert.
        transposed: Whether it is stored as [E, I, O].
    """

    transposed: bool = False


@dataclass(frozen=True)
class Branch:
    """A residual branch, whose output h is added to the residual input x.

        x ----------------------------+
        |                             |
        +--> [norm] -> q,k,v -> o --h-> + -> [norm] -->

    Args:
        h: The output, before the sum.
        x: The residual input; None where adapters must do without.
        norm: Path of the norm that is applied to h + x, or empty for pre-LN layers.
        norm_after: False where `norm` is only what adapters may apply to their input.
        holder: Path below which the branch's adapters are children of the model. By default the module of the layer
            that holds the whole branch, sum included, or else `attention_adapters`, `cross_attention_adapters` or
            `output_adapters`.
        scale: By what the model multiplies the output before it adds it; adapters see the product.
        swapped: Whether adapters are given x for h and h for x, as those of a family were trained (ALBERT): the model's
            sum is the same, what they read is not.
        norm_call: Which call of the norm follows the sum, as in `At`.
        beside: Output of a branch that runs before this one on the same stream, and counts as a part of x (GPT-J).
        alone: Whether adapters with `original_ln_before` read h without x, as those in files do (Phi).
        exact: False where h is not what is added to x: because it passes a norm first (Gemma 2), or because x is
            read behind the norm of the branch (ModernBERT). Adapters without `original_ln_after` are refused there.
    """

    h: At
    x: At | None = None
    norm: str = ""
    norm_after: bool = True
    holder: str = ""
    scale: float = 1.0
    swapped: bool = False
    norm_call: Turn | None = None
    beside: At | None = None
    alone: bool = False
    exact: bool = True


@dataclass(frozen=True)
class Attention:
    """The module that is handed to the attention function.

    Args:
        path: The module, or one that holds it.
        position_bias: Path, from the base model, of the attention module that owns the relative position bias which
            is added to these scores, if there is one (T5).
        heads: (number of key heads, width of a key, width of a value), where the projections do not tell: latent
            attention (DeepSeek), projections that are no linear maps (XLNet). Each is a number, or the name of an
            attribute of the attention's module, such as "v_head_dim"; a number of None is that of the heads in the
            key projection. None reads them all from the projections.
    """

    path: str
    position_bias: str = ""
    heads: tuple[int | str | None, int | str, int | str] | None = None

    def __post_init__(self) -> None:
        if self.heads is not None and (
            len(self.heads) != 3 or any(isinstance(number, int) and number < 1 for number in self.heads)
        ):
            raise ConfigError(f"{self}: heads are (number of key heads, width of a key, width of a value).")


@dataclass(frozen=True)
class Norm:
    """A normalisation layer."""

    path: str


Place = At | Linear | Branch | Attention | Norm

ADDRESSES: Mapping[Kind, type[Any]] = {
    "linear": Linear,
    "branch": Branch,
    "attention": Attention,
    "norm": Norm,
    "layer": At,
    "embedding": At,
    "prompt": At,
}
"""What says where a role of some kind is."""


def _check(places: Mapping[str, Place], refused: Mapping[str, str]) -> None:
    for role in (*places, *refused):
        if role not in ROLES:
            raise ConfigError(f"A spec names the role {role!r}, which does not exist. {choices(role, ROLES)}")
    for role, place in places.items():
        wanted = ADDRESSES.get(ROLES[role].kind)
        if wanted is None or not isinstance(place, wanted):
            raise ConfigError(f"A spec gives {role} as {place!r}. A {ROLES[role].kind} needs {wanted}.")


@dataclass(frozen=True)
class LayerSpec:
    """One layer.

    Args:
        places: Role -> its address. Roles that are not named do not exist in this layer.
        refused: Role -> why no adapter can act there, for people to read.
    """

    places: Mapping[str, Place]
    refused: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self.places, self.refused)


@dataclass(frozen=True)
class LayerList:
    """One list of layers.

    Args:
        path: The ModuleList.
        layer: What its layers are like: one spec for all, or a tuple with one for each.
        stack: Module whose `attention_mask` argument describes the positions of these layers.
        optional: Whether some classes of such models lack the whole stack (T5EncoderModel, BartForCausalLM), and with
            it places of the model that are inside of it.
        apart: Whether the parts of a layer stand apart, in lists side by side (XLM): `path` is the module that has
            these lists, addresses are relative to it, and every layer has its own spec.
    """

    path: str
    layer: LayerSpec | tuple[LayerSpec, ...]
    stack: str = ""
    optional: bool = False
    apart: bool = False

    def __post_init__(self) -> None:
        if self.apart and isinstance(self.layer, LayerSpec):
            raise ConfigError(f"Layers of {self.path!r} whose parts stand apart need a spec for each of them.")


@dataclass(frozen=True)
class Natives:
    """Adapters that a model has of its own and that ours take the place of: they add nothing once it has our verbs.

    Args:
        modules: Pattern over their paths from the base model.
        choice: The argument of a call that chooses one of them, and may then not be given.
    """

    modules: str
    choice: str


@dataclass(frozen=True)
class ModelSpec:
    """One model.

    Args:
        layers: Lists of layers, in the order in which configs number them (encoder first).
        places: `embed` and `embed.prompt`, where there are such.
        refused: Role -> why no adapter can act there.
        causal: Whether the layers form a decoder that caches keys and values.
        static_inverse: Whether maps of `embed` are undone before the output embedding of `ForX` classes too, as those
            of this family were trained. Flexible LM heads always undo them.
        copies_inside: Whether the rows of a batch may be copied in front of any layer, instead of at the model's input.
        natives: Adapters that such models have of their own.
        uncalled: Paths of linear maps of layers whose weights are read without a call of them: no adapter acts there.
        layouts: Path of a module -> how rows lie in what it reads and gives, where that is not [B, S, D].
    """

    layers: tuple[LayerList, ...]
    places: Mapping[str, Place] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    causal: bool = False
    static_inverse: bool = False
    copies_inside: bool = True
    natives: Natives | None = None
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    uncalled: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check(self.places, self.refused)

    def refusals(self) -> dict[str, str]:
        """Role -> why it is refused, over all layers."""
        found = dict(self.refused)
        for layers in self.layers:
            for layer in (layers.layer,) if isinstance(layers.layer, LayerSpec) else layers.layer:
                found.update(layer.refused)
        return found


def projections(role: str, path: str, q: str, k: str, v: str) -> dict[str, Place]:
    """Separate projections, by their paths below the attention module at `path`, and its core."""
    linears = {f"{role}.{part}": Linear(f"{path}.{name}") for part, name in (("q", q), ("k", k), ("v", v))}
    return {**linears, f"{role}.core": Attention(path)}


def pre_norm(role: str, h: str, norm: str) -> dict[str, Place]:
    """A branch of which x is what its first module, the norm, gets."""
    return {role: Branch(At(h), At(norm, "in")), f"{role}.norm": Norm(norm)}


def post_norm(role: str, h: str, x: At, norm: str) -> dict[str, Place]:
    """A branch whose sum is normalised."""
    return {role: Branch(At(h), x, norm), f"{role}.norm": Norm(norm)}


def prompts(stack: str = "") -> dict[str, Place]:
    """Prompts in front of the embeddings that the stack at a path is given, or makes of token ids."""
    return {"embed.prompt": At(stack, "in", "inputs_embeds")}
