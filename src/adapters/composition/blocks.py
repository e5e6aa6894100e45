"""Which adapters run, and in what arrangement? Immutable trees whose leaves are adapter names.

A block only describes: `composition/evaluate.py` gives it a meaning, `parse_composition` checks it.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import FrozenInstanceError, dataclass
from typing import Any, ClassVar, TypeAlias, TypeVar, overload

from adapters.errors import CompositionError, HeadError, choices

MAX_DEPTH = 16
"""Nesting that a block can hold at all, so that files cannot exhaust the stack. Far less is valid."""

BLOCK_TYPES: dict[str, type[AdapterCompositionBlock]] = {}
"""Name as written in adapter_setup.json -> class. Filled by the classes below."""


@dataclass(frozen=True)
class Owns:
    """What the weights are called that a type of blocks owns in a model.

    Attributes:
        noun: Word for it in errors, in names of programs, and in keys of config.json ("fusions").
        title: Its name in messages about files.
        stem: Start of the names of its files ("adapter_fusion_config.json"), of its dictionaries in the module tree
            ("adapter_fusion_layer"), and end of its verbs ("add_adapter_fusion").
        report: Entry of a model's output that holds what it reports; "output_" and this is the argument that asks for
            it.
    """

    noun: str
    title: str
    stem: str
    report: str


class AdapterCompositionBlock(Sequence["Child"]):
    """An ordered group of adapters; `Stack`, `Fuse` and the others say what the group does.

    Blocks are sequences over their children, hashable and immutable. Two blocks are equal if their type,
    children and sizes, weights or name are.

    Args:
        children: Adapter names, blocks, or None for "no adapter".
    Raises:
        CompositionError: a child is not one of these, a name is empty, or the nesting exceeds `MAX_DEPTH`.
    """

    allowed: ClassVar[tuple[str, ...]] = ()
    """Types of blocks that may be children. Names always may."""
    owns: ClassVar[Owns | None] = None
    """What blocks of this type own in a model."""

    children: tuple[Child, ...]
    _depth: int

    def __init_subclass__(cls, written: bool = True, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if written and not cls.__name__.startswith("_"):
            BLOCK_TYPES[cls.__name__] = cls

    def __init__(self, *children: Child) -> None:
        kind = type(self).__name__
        for child in children:
            if isinstance(child, AdapterCompositionBlock) or child is None:
                continue
            if not isinstance(child, str):
                raise CompositionError(
                    f"{kind}: child {child!r} is a {type(child).__name__}. "
                    f"Allowed: an adapter name, a block ({', '.join(BLOCK_TYPES)}), or None for no adapter."
                )
            if not child:
                raise CompositionError(f"{kind}: a child is the empty string. Name an adapter, or use None for none.")
        depth = 1 + max((child._depth for child in _blocks(children)), default=0)
        if depth > MAX_DEPTH:
            raise CompositionError(f"{kind} would nest {depth} levels of blocks. At most {MAX_DEPTH} can be written.")
        self.__dict__["children"] = children
        self.__dict__["_depth"] = depth

    def __setattr__(self, name: str, value: Any) -> None:
        raise FrozenInstanceError(f"{type(self).__name__} is immutable. Build a new block instead of setting {name!r}.")

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"{type(self).__name__} is immutable, {name!r} cannot be removed.")

    @overload
    def __getitem__(self, index: int) -> Child: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Child, ...]: ...
    def __getitem__(self, index: int | slice) -> Child | tuple[Child, ...]:
        return self.children[index]

    def __len__(self) -> int:
        return len(self.children)

    def __iter__(self) -> Iterator[Child]:
        return iter(self.children)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AdapterCompositionBlock):
            return NotImplemented
        return type(self) is type(other) and self.children == other.children and self._extra() == other._extra()

    def __hash__(self) -> int:
        return hash((type(self).__name__, self.children, self._extra()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}[{', '.join(str(child) for child in self.children)}]"

    def _extra(self) -> tuple[Any, ...] | str:
        """What distinguishes two blocks with equal children."""
        return ()

    def _kwargs(self) -> dict[str, Any]:
        """Constructor keywords as they are written to files."""
        return {}

    @property
    def owned_name(self) -> str | None:
        """Name of the weights in a model that this block owns; None where it has none."""
        return None

    @property
    def parallel_channels(self) -> int:
        """How many copies of the batch this block needs at most."""
        return max((child.parallel_channels for child in _blocks(self.children)), default=1)

    def first(self) -> str | None:
        """Name of the leftmost leaf; None where that leaf is "no adapter"."""
        return first_name(self.children[0]) if self.children else None

    def last(self) -> str | None:
        """Name of the rightmost leaf; None where that leaf is "no adapter"."""
        return last_name(self.children[-1]) if self.children else None

    def flatten(self) -> set[str]:
        """Names of all adapters in the tree."""
        names = {child for child in self.children if isinstance(child, str)}
        return names.union(*(child.flatten() for child in _blocks(self.children)))

    def to_dict(self) -> dict[str, Any]:
        """Content of adapter_setup.json for this block."""
        children = [
            child.to_dict() if isinstance(child, AdapterCompositionBlock) else {"type": "single", "children": [child]}
            for child in self.children
        ]
        kwargs = self._kwargs()
        return {"type": type(self).__name__, "children": children, **({"kwargs": kwargs} if kwargs else {})}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Any:
        """Inverse of `to_dict`: a block, or the name (or None) for a dict of type "single".

        Raises:
            CompositionError: the dict has no known type, or its content does not make such a block.
        """
        return _from_dict(data, 0)


Child: TypeAlias = "str | AdapterCompositionBlock | None"
SetupT = TypeVar("SetupT", bound=AdapterCompositionBlock)


class Stack(AdapterCompositionBlock):
    """Runs its children one after the other, each on the output of the one before.

        h -> c1 -> c2 -> ... -> out

    Args:
        children: Adapter names or blocks, but no Stack.
    """

    allowed = ("Fuse", "Split", "Parallel", "BatchSplit", "Average", "MultiTask", "Route")


class Fuse(AdapterCompositionBlock):
    """Mixes the outputs of its children by learned attention (AdapterFusion).

        out = sum_i softmax_i(q(h) . k(c_i(h))) v(c_i(h))

    Paper: Pfeiffer et al. 2021, arXiv:2005.00247.

    Args:
        children: Adapter names or Stacks; a Stack stands for its last adapter.
        name: Name of the fusion layer to use; by default the children's names joined by commas.
    Raises:
        CompositionError: a child is or ends in None, which has nothing to attend to, or `name` is empty.
    """

    allowed = ("Stack",)
    owns = Owns("fusion", "AdapterFusion", "adapter_fusion", "adapter_fusion_attentions")
    name: str
    _named: bool

    def __init__(self, *children: Child, name: str | None = None) -> None:
        super().__init__(*children)
        names = [last_name(child) for child in children]
        if None in names:
            raise CompositionError(f"{self!r} holds None, but 'no adapter' cannot be fused. Remove it.")
        if name is not None and (not isinstance(name, str) or not name):
            raise CompositionError(f"Fuse: name is {name!r}. Give a non-empty string, or leave it out.")
        joined = ",".join(str(part) for part in names)
        self.__dict__["name"] = joined if name is None else name
        self.__dict__["_named"] = name is not None and name != joined

    @property
    def owned_name(self) -> str:
        return self.name

    def _extra(self) -> str:
        return self.name

    def _kwargs(self) -> dict[str, Any]:
        return {"name": self.name} if self._named else {}


class _Sized(AdapterCompositionBlock):
    """A block that gives every child a share of fixed size."""

    _sizes: tuple[int, ...]
    least: ClassVar[int] = 1
    """The smallest size that a share can have."""

    def _set_sizes(self, keyword: str, sizes: int | Sequence[int]) -> None:
        try:
            given = list(sizes) if isinstance(sizes, Sequence) else [sizes] * len(self.children)
            whole = tuple(operator.index(size) for size in given)
        except TypeError:
            whole, given = (), [False]
        is_wrong = len(whole) != len(self.children) or bool in map(type, given)
        if is_wrong or not any(whole) or min(whole) < self.least:
            raise CompositionError(
                f"{self!r}: {keyword} is {sizes!r}. Allowed: one integer, at least {self.least}, for each of the "
                f"{len(self.children)} children, or a single one above 0 that holds for all."
            )
        self.__dict__["_sizes"] = whole

    def _extra(self) -> tuple[int, ...]:
        return self._sizes


class Split(_Sized):
    """Gives each child its own consecutive stretch of the sequence.

        out = concat(c1(h[:, :s1]), c2(h[:, s1:s1 + s2]), ...)        over positions

    Args:
        children: Adapter names or blocks.
        splits: Positions per child, a count; one number holds for every child. They must add up to the
            sequence length.
    Raises:
        CompositionError: a size is not a positive integer, or there are not as many as children.
    """

    allowed = ("Split", "Stack", "BatchSplit", "Average", "Fuse", "Route")

    def __init__(self, *children: Child, splits: int | Sequence[int]) -> None:
        super().__init__(*children)
        self._set_sizes("splits", splits)

    @property
    def splits(self) -> list[int]:
        """Positions per child."""
        return list(self._sizes)

    def _kwargs(self) -> dict[str, Any]:
        return {"splits": self.splits}


class BatchSplit(_Sized):
    """Gives each child its own consecutive rows of the batch.

        out = concat(c1(h[:b1]), c2(h[b1:b1 + b2]), ...)              over rows

    Args:
        children: Adapter names, blocks, or None for rows that run without adapter.
        batch_sizes: Rows per child, a count; one number holds for every child. They must add up to the
            batch size.
    Raises:
        CompositionError: a size is not an integer of at least 0, or there are not as many as children.
    """

    least = 0
    allowed = ("Stack", "Split", "BatchSplit", "Average", "Fuse", "Route")

    def __init__(self, *children: Child, batch_sizes: int | Sequence[int]) -> None:
        super().__init__(*children)
        self._set_sizes("batch_sizes", batch_sizes)

    @property
    def batch_sizes(self) -> list[int]:
        """Rows per child."""
        return list(self._sizes)

    def _kwargs(self) -> dict[str, Any]:
        return {"batch_sizes": self.batch_sizes}


class Parallel(AdapterCompositionBlock):
    """Runs every child on its own copy of the whole batch: n children give n times as many rows.

        out = concat(c1(h), c2(h), ...)                               over rows

    Args:
        children: Adapter names, blocks, or None for a copy that runs without adapter.
    """

    allowed = ("Stack", "Split", "BatchSplit", "Average", "Fuse", "MultiTask", "Route")

    @property
    def parallel_channels(self) -> int:
        return len(self.children)


class Average(AdapterCompositionBlock):
    """Runs every child on the same input and takes the weighted sum of the outputs.

        out = sum_i w_i c_i(h)

    Args:
        children: Adapter names or blocks.
        weights: One number per child; equal shares by default.
        normalize_weights: Divide the weights by their sum, which then must not be zero.
    Raises:
        CompositionError: the weights are not numbers, not as many as children, or sum to zero.
    """

    allowed = ("Stack", "Split", "BatchSplit", "Fuse")
    _weights: tuple[float, ...]

    def __init__(
        self, *children: Child, weights: Sequence[float] | None = None, normalize_weights: bool = True
    ) -> None:
        super().__init__(*children)
        self.__dict__["_weights"] = self._shares(weights, normalize_weights)

    def _shares(self, weights: Sequence[float] | None, normalize: bool) -> tuple[float, ...]:
        count = len(self.children)
        if weights is None:
            return (1 / count,) * count if count else ()
        try:
            shares = tuple(float(weight) for weight in weights)
        except (TypeError, ValueError):
            shares = ()
        if len(shares) != count:
            raise CompositionError(
                f"{self!r}: weights is {weights!r}. Allowed: a list of {count} numbers, one per child."
            )
        if not normalize or not count:
            return shares
        total = sum(shares)
        if total == 0:
            raise CompositionError(
                f"{self!r}: weights {weights!r} sum to zero, which cannot be normalised. Pass normalize_weights=False."
            )
        return tuple(share / total for share in shares)

    @property
    def weights(self) -> list[float]:
        """Factor per child, as applied."""
        return list(self._weights)

    def _extra(self) -> tuple[float, ...]:
        return self._weights

    def _kwargs(self) -> dict[str, Any]:
        return {"weights": self.weights}


class MultiTask(AdapterCompositionBlock):
    """Sends each row to the child that its task id names (forward keyword `task_ids`).

        out[i] = c_{task_ids[i]}(h[i])

    Args:
        children: Adapter names or blocks, one per task.
    """

    allowed = ("Stack", "Average", "Fuse", "Route")


class PerRow(AdapterCompositionBlock, written=False):
    """Gives each row of a batch the child that the call names for it: what `adapter_names=[...]` of a call means.

        out[i] = c_{n(i)}(h[i])           n: what the call says; the block itself is the same for all assignments

    Nobody writes it, and no file holds it: it is made for all that rows of this model were given lately.

    Args:
        children: Adapter names, blocks, or None for rows that run without adapter, each once.
    """

    allowed = ("Stack", "Split", "Average", "Fuse", "Route")


def parse_row(setup: Any) -> Child:
    """What one entry of `adapter_names` means: a name, a block, or None for no adapter.

    Raises:
        CompositionError: it is something else, or a block that gives rows of a batch different adapters itself.
    """
    if setup is None or (isinstance(setup, str) and setup):
        return setup
    if not isinstance(setup, AdapterCompositionBlock):
        raise CompositionError(
            f"adapter_names holds {setup!r}. Allowed for each row: an adapter name, a block "
            f"({', '.join(PerRow.allowed)}), or None for no adapter."
        )
    validate_composition(setup)
    for block in _all_blocks(setup):
        if isinstance(block, Parallel | BatchSplit | MultiTask):
            raise CompositionError(
                f"adapter_names holds {setup!r}, but {type(block).__name__} is about several rows. Allowed for each "
                f"row: an adapter name, a block of {', '.join(PerRow.allowed)}, or None for no adapter."
            )
    if isinstance(setup, Stack) and len(setup) < 2:
        return setup[0] if setup else None
    return setup


def _all_blocks(block: AdapterCompositionBlock) -> Iterator[AdapterCompositionBlock]:
    yield block
    for child in _blocks(block.children):
        yield from _all_blocks(child)


GATES = ("token", "sequence", "arrow")
"""What the gates of a `Route` depend on."""


class Route(AdapterCompositionBlock):
    """Runs its children on the same input and mixes the outputs by gates: it learns which adapter to use.

        out = sum_i g_i c_i(h)        g = softmax over the top_k largest of the scores, sum_i g_i = 1

        by="token"       scores W x + b, of every token
        by="sequence"    scores W mean(x) + b, over the attended positions of x
        by="arrow"       scores |x . v_i|, of every token; v_i is the first right singular vector of the adapter's
                         weight update. Nothing is learned, and nothing is added to the model.

    x is what the adapters read at a place. W and b, at every place where a child acts, are added with
    `add_adapter_routing` and trained with `train_adapter_routing`.

    Papers: Shazeer et al. 2017, arXiv:1701.06538; Fedus et al. 2021, arXiv:2101.03961; Ostapenko et al. 2024,
    arXiv:2405.11157 (Arrow).

    Args:
        children: Adapter names, blocks, or None for "no adapter", which passes h through.
        by: What the scores depend on.
        top_k: How many children a token or sequence uses, a count; None for all of them.
        name: Name of the gates to use; by default the children's last names joined by commas, with nothing between
            the commas for None.
    Raises:
        CompositionError: `by` is not one of these, `top_k` is no number of children, `name` is empty or has a '.', or
            there is no adapter among the children.
    """

    allowed = ("Stack", "Split", "BatchSplit", "Fuse")
    owns = Owns("routing", "adapter routing", "adapter_routing", "adapter_routing_scores")
    by: str
    top_k: int | None
    name: str

    def __init__(self, *children: Child, by: str = "token", top_k: int | None = None, name: str | None = None) -> None:
        super().__init__(*children)
        if not self.flatten():
            raise CompositionError(f"{self!r} names no adapter. Name at least one.")
        if by not in GATES:
            raise CompositionError(f"Route: by is {by!r}. {choices(by if isinstance(by, str) else None, GATES)}")
        counts = isinstance(top_k, int) and not isinstance(top_k, bool) and 1 <= top_k <= len(children)
        if top_k is not None and not counts:
            raise CompositionError(
                f"{self!r}: top_k is {top_k!r}. Allowed: None for all children, or a number from 1 to {len(children)}."
            )
        if name is not None and (not isinstance(name, str) or not name):
            raise CompositionError(f"Route: name is {name!r}. Give a non-empty string, or leave it out.")
        joined = ",".join(last_name(child) or "" for child in children)
        self.__dict__.update(
            by=by, top_k=top_k, name=joined if name is None else name, _named=name not in (None, joined)
        )

    @property
    def owned_name(self) -> str | None:
        return None if self.by == "arrow" else self.name

    def _extra(self) -> tuple[Any, ...]:
        return self.by, self.top_k, self.name

    def _kwargs(self) -> dict[str, Any]:
        own = {"name": self.name} if self.__dict__["_named"] else {}
        return {"by": self.by, "top_k": self.top_k, **own}


def _blocks(children: Sequence[Child]) -> list[AdapterCompositionBlock]:
    return [child for child in children if isinstance(child, AdapterCompositionBlock)]


def owning_blocks(setup: Child) -> Iterator[AdapterCompositionBlock]:
    """The blocks in a set-up that own weights, at any depth."""
    if isinstance(setup, AdapterCompositionBlock):
        yield from (block for block in _all_blocks(setup) if block.owned_name is not None)


def first_name(child: Child) -> str | None:
    """Name of the first adapter below a child, whether it is a name or a block."""
    return child.first() if isinstance(child, AdapterCompositionBlock) else child


def last_name(child: Child) -> str | None:
    """Name of the last adapter below a child, whether it is a name or a block."""
    return child.last() if isinstance(child, AdapterCompositionBlock) else child


def _from_dict(data: Any, level: int) -> Child:
    if level > MAX_DEPTH:
        raise CompositionError(f"The stored set-up nests more than {MAX_DEPTH} levels of blocks.")
    if not isinstance(data, Mapping) or not isinstance(data.get("children"), list):
        raise CompositionError(f"{data!r} is not a stored block. A dict with 'type' and a list 'children' is needed.")
    kind, children = data.get("type"), data["children"]
    if kind == "single":
        if len(children) != 1 or not (children[0] is None or isinstance(children[0], str)):
            raise CompositionError(f"A stored block of type 'single' has children {children!r}. It needs one name.")
        return children[0]
    if not isinstance(kind, str) or kind not in BLOCK_TYPES:
        raise CompositionError(f"Stored block type {kind!r} is unknown. {choices(kind, [*BLOCK_TYPES, 'single'])}")
    kwargs = dict(data.get("kwargs") or {})
    if kind == "Average":
        kwargs["normalize_weights"] = False
    try:
        return BLOCK_TYPES[kind](*(_from_dict(child, level + 1) for child in children), **kwargs)
    except TypeError as error:
        raise CompositionError(
            f"The stored {kind} block has unsuitable kwargs {data.get('kwargs')!r}: {error}"
        ) from None


def validate_composition(setup: Any, level: int = 0) -> None:
    """Checks that blocks are nested in a way that means something; names are not looked up.

    Args:
        setup: A block. Anything else is accepted.
        level: Number of blocks around it.
    Raises:
        CompositionError: a block is nested where it is not allowed.
    """
    if not isinstance(setup, AdapterCompositionBlock):
        return
    if level > 1 and not isinstance(setup, Stack | Fuse):
        raise CompositionError(
            f"{setup!r} is nested too deep. Below two blocks only Stack, Fuse and adapter names may stand."
        )
    for child in _blocks(setup.children):
        if type(child).__name__ not in setup.allowed:
            raise CompositionError(
                f"{type(setup).__name__} cannot contain {child!r}. "
                f"Allowed children: adapter names, {', '.join(setup.allowed)}."
            )
        validate_composition(child, level + 1)


@overload
def parse_composition(setup: None, level: int = 0) -> None: ...
@overload
def parse_composition(setup: SetupT, level: int = 0) -> SetupT | None: ...
@overload
def parse_composition(setup: Any, level: int = 0) -> Any: ...
def parse_composition(setup: Any, level: int = 0) -> Any:
    """Turns what users write as a set-up into a checked block.

    Args:
        setup: A block, a name (becomes a Stack of one), nothing (None), or, deprecated, a list, which means a
            Stack and whose inner lists mean Fuse.
        level: Number of blocks around it.
    Returns:
        A block, or None where nothing is set up. Below level 0 a name stays a name.
    Raises:
        CompositionError: as `validate_composition`.
        TypeError: `setup` is something else.
    """
    if not setup:
        return None
    if isinstance(setup, AdapterCompositionBlock):
        validate_composition(setup, level)
        return setup
    if isinstance(setup, str):
        return Stack(setup) if level == 0 else setup
    if isinstance(setup, list):
        warnings.warn(
            "Lists as adapter set-ups are deprecated. Write Stack(...) and Fuse(...) instead.",
            FutureWarning,
            stacklevel=2,
        )
        return parse_composition(_from_list(setup, level), level)
    raise TypeError(f"{setup!r} is not an adapter set-up. Give a name, a block ({', '.join(BLOCK_TYPES)}) or None.")


def _from_list(names: list[Any], level: int) -> AdapterCompositionBlock:
    if level > MAX_DEPTH:
        raise CompositionError(f"The set-up nests more than {MAX_DEPTH} lists.")
    kind = Stack if level == 0 else Fuse
    return kind(*(_from_list(item, level + 1) if isinstance(item, list) else item for item in names))


def parse_heads_from_composition(
    setup: Child, reference_heads: Collection[str] | None = None
) -> str | list[str] | BatchSplit | MultiTask | None:
    """Finds the prediction heads that belong to a set-up: those named like its last adapters.

    Args:
        setup: The set-up of the adapters.
        reference_heads: Heads that the model has; by default any name is taken to be one.
    Returns:
        A head's name, a list of names for Parallel, a block of names for BatchSplit and MultiTask. None where no head
        follows from the set-up, also because some rows run without adapter.
    Raises:
        HeadError: a BatchSplit names adapters for which `reference_heads` has no head.
    """
    final = setup[-1] if isinstance(setup, Stack) and setup else setup
    if isinstance(final, str):
        return final if reference_heads is None or final in reference_heads else None
    if not isinstance(final, Parallel | BatchSplit | MultiTask):
        return None
    names = [name for name in map(last_name, final) if name is not None]
    if len(names) < len(final):
        return None
    if isinstance(final, Parallel | MultiTask):
        return names if isinstance(final, Parallel) else MultiTask(*names)
    missing = [name for name in names if reference_heads is not None and name not in reference_heads]
    if missing:
        raise HeadError(
            f"{final!r} needs a head per part, but there is no head {missing[0]!r}. "
            f"{choices(missing[0], reference_heads or ())} Pass head_setup, or add the head."
        )
    return BatchSplit(*names, batch_sizes=final.batch_sizes)
