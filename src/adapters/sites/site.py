"""What is a place where adapters can act, in one model? A module, with what methods need to know of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from adapters.errors import MergeError, UnsupportedError
from adapters.sharding import is_spread, shape_of, whole
from adapters.sites.linear import as_stored, assign, features, is_packed, stored_weight, weight_of
from adapters.sites.roles import Kind
from adapters.sites.spec import (
    Columns,
    Layout,
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
