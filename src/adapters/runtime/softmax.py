"""Prefix tuning where a model computes its attention itself, without transformers' AttentionInterface.

While such an attention module runs with an active prefix, and only then, `Watch` sees its calls of torch functions. A
product of queries and keys is remembered with what the model then does to it: what it does to all scores (scales,
casts, caps) is done to the scores of the prefix too, what it does to each key (masks, biases) is its own keys' affair.
The softmax is taken over both, the model goes on with its own columns, and those of the prefix, weighted by the
prefix's values, are added to the product with the model's values:

    [p_prefix | p] = softmax([f(q K_prefix^T) | f(q K^T) + bias]),    out = p V + p_prefix V_prefix

What cannot be followed is refused when it runs, with the function where the trace was lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from adapters.call import CALL
from adapters.errors import UnsupportedError
from adapters.methods.state import AttentionState, given, per_head
from adapters.runtime import attention
from adapters.runtime.following import (
    FOLLOWED,
    Apply,
    Columns,
    Following,
    Handler,
    Layout,
    Lost,
    Notes,
    Prefix,
    Scores,
    named,
)
from adapters.sites.site import AttentionSite

Function = Callable[..., Any]


class Watching:
    """Hooks that let a `Watch` see an attention module while it runs with an active prefix."""

    def __init__(self, hooked: Any) -> None:
        self.hooked = hooked
        module: nn.Module = hooked.site.module
        self.handles = (
            module.register_forward_pre_hook(self.enter, prepend=True),
            module.register_forward_hook(self.leave, prepend=True, always_call=True),
        )

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self.handles:
            handle.remove()

    def enter(self, module: nn.Module, args: Any) -> None:
        if (plan := self.hooked.now()) is not None:
            watch = Watch(self.hooked.site, plan)
            CALL.now.watches.append(watch)
            watch.enter()

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        watches = CALL.now.watches
        if watches and watches[-1].site is self.hooked.site:
            watches.pop().leave(failed=output is None)


# -------------------------------------------------------------------------------------------------- one softmax


@dataclass
class ScoredState(AttentionState):
    """In a softmax: `mask` holds the model's own scores [B, H, Q, K], `numbers` [B, 1] the numbers of these rows.

    `out` [B, Q, H, K + head_dim] has the own probabilities and the weighted values of the prefix side by side.
    """

    numbers: Tensor | None = given(default=None)


@dataclass
class Softmax:
    """One call of a softmax over scores: `function`, which takes it over the last dimension."""

    watch: Watch
    function: Apply
    scores: Scores
    layout: Layout

    def prefixed(
        self,
        prefix: tuple[Tensor, Tensor],
        query: Tensor,
        own: Tensor,
        attended: Tensor | None = None,
        numbers: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(own probabilities [B, H, Q, K], those of the prefix [B, H, Q, P], values [B or 1, H, P, head_dim])."""
        keys, values = (per_head(tensor.to(query.dtype), self.layout.heads) for tensor in prefix)
        if keys.shape[-1] != query.shape[-1]:
            self.watch.refuse(f"its heads are {query.shape[-1]} wide, and those of the prefix {keys.shape[-1]}")
        columns = query @ (keys.transpose(2, 3) * self.scores.factor)
        columns = self._stepped(columns, numbers).to(own.dtype)
        if attended is not None:
            columns = columns.masked_fill(~attended[:, None, None, :], torch.finfo(columns.dtype).min)
        probabilities = self.function(torch.cat([columns, own], -1))
        length = keys.shape[2]
        return probabilities[..., length:], probabilities[..., :length], values

    def _stepped(self, columns: Tensor, numbers: Tensor | None) -> Tensor:
        """`columns` [B, H, Q, P] after what the model did to all scores, which it did to all rows."""
        layout, some = self.layout, numbers is not None and len(numbers) != self.layout.rows
        if not self.scores.steps:
            return columns
        if some:
            assert numbers is not None
            columns = columns.new_zeros(layout.rows, *columns.shape[1:]).index_copy(0, numbers[:, 0], columns)
        columns = layout.restored(columns)
        for step in self.scores.steps:
            columns = step(columns)
        columns = layout.canonical(columns)
        return columns.index_select(0, numbers[:, 0]) if some else columns  # type: ignore[index]

    def mixed(self, state: AttentionState) -> tuple[Tensor, None]:
        """What a mean can be taken of, [B, Q, H, K + head_dim]: see `ScoredState`."""
        assert isinstance(state, ScoredState) and state.mask is not None
        if state.prefix_keys is None or state.prefix_values is None:
            own = self.function(state.mask)
            prefixed = own.new_zeros(*own.shape[:-1], state.value.shape[-1])
        else:
            prefix = state.prefix_keys, state.prefix_values
            own, columns, values = self.prefixed(prefix, state.query, state.mask, state.attended, state.numbers)
            prefixed = columns @ values.to(columns.dtype)
        return torch.cat([own, prefixed], -1).transpose(1, 2), None


Result = tuple[Tensor, Tensor, Tensor | None]
"""(own probabilities, prefix columns, prefix values): see `Prefix`."""


def attend_prefix(
    key_values: Callable[[], tuple[Tensor, Tensor]], softmax: Softmax, query: Tensor, own: Tensor, hidden: Tensor | None
) -> Result:
    """The softmax with one prefix, the common case."""
    return softmax.prefixed(key_values(), query, own)


def attend(
    run: Callable[[AttentionState], AttentionState], softmax: Softmax, query: Tensor, own: Tensor, hidden: Tensor | None
) -> Result:
    """The softmax with whatever the program `run` prepends."""
    site, length = softmax.watch.site, own.shape[-1]
    keys, values = (query.new_empty(query.shape[0], site.num_heads, 0, n) for n in (query.shape[-1], site.value_dim))
    numbers = torch.arange(query.shape[0], device=query.device)[:, None]
    state = run(ScoredState(query, keys, values, own, hidden, numbers=numbers, attend=softmax.mixed))
    if state.out is not None:
        out = state.out.transpose(1, 2)
        return out[..., :length], out[..., length:], None
    if state.prefix_keys is None or state.prefix_values is None:
        return softmax.function(own), own[..., :0], values
    return softmax.prefixed((state.prefix_keys, state.prefix_values), query, own, state.attended)


# ---------------------------------------------------------------------------------------------------- the watch


class Watch(Following):
    """Sees the torch functions that an attention module calls, and puts the prefix into its softmax."""

    def __init__(self, site: AttentionSite, plan: Any) -> None:
        super().__init__()
        self.site, self.plan = site, plan
        self.prefixes: list[Prefix] = []
        self.hidden: Tensor | None = None
        self._served, self._learns = False, torch.is_grad_enabled()

    def enter(self) -> None:
        """The module begins."""
        self.__enter__()  # type: ignore[no-untyped-call]

    def leave(self, failed: bool) -> None:
        """The module has ended. Raises UnsupportedError if the prefix is not in what it gave."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self._nodes, self._factors = Notes(), Notes()
        if failed:
            return
        if not self._served:
            self.refuse(
                "it calls neither transformers' AttentionInterface, nor a softmax of products of queries and keys, "
                "nor scaled_dot_product_attention. Another attn_implementation may ('eager')"
            )
        if not all(prefix.used for prefix in self.prefixes):
            self.refuse("no product of its attention probabilities with the values was seen")

    def refuse(self, reason: str) -> NoReturn:
        """Raise UnsupportedError for this module."""
        raise UnsupportedError(
            f"Prefix tuning does not get into the attention at {self.site.path} "
            f"({type(self.site.module).__name__}): {reason}. Use another method for this model."
        )

    @property
    def handlers(self) -> Mapping[Any, Handler]:
        return HANDLERS

    # ---------------------------------------------------------------------------------------------- products

    def matmul(self, func: Any, args: Any, kwargs: Any) -> Any:
        """left @ right: of queries and keys, or of probabilities and values."""
        if len(args) + len(kwargs) != 2:
            return self.lose(func, args, kwargs, func(*args, **kwargs))
        left, right = list(args) + list(kwargs.values())
        return self._product(func(*args, **kwargs), left, right, 1.0)

    def baddbmm(self, func: Any, args: Any, kwargs: Any) -> Any:
        """beta * input + alpha * batch1 @ batch2."""
        given = {**dict(zip(("input", "batch1", "batch2"), args)), **kwargs}
        return self._product(func(*args, **kwargs), given["batch1"], given["batch2"], given.get("alpha", 1.0))

    def _product(self, out: Tensor, left: Tensor, right: Tensor, alpha: Any) -> Tensor:
        node = self.node(left)
        if isinstance(node, Columns):
            if node.prefix.used:
                return out
            self._check_values(right)
            extra = node.layout.restored(self._weighted(node)) * alpha
            if extra.numel() != out.numel():
                self.refuse("its probabilities and values cannot be told apart by their sizes")
            sum_: Tensor = out + extra.reshape(out.shape).to(out.dtype)
            return sum_
        if left.dim() > 2 and right.dim() > 2:
            lead = tuple(out.shape[:-2])
            query = left.expand(*lead, *left.shape[-2:])
            self.note(out, Scores(query, lead, self.factor(right) * alpha, tuple(out.shape[:-1])))
        return out

    def einsum(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A product whose dimensions have letters."""
        out = func(*args, **kwargs)
        tensors = args[1] if len(args) == 2 and isinstance(args[1], (list, tuple)) else args[1:]
        inputs, arrow, result = str(args[0]).replace(" ", "").partition("->")
        names = inputs.split(",")
        if not arrow or len(tensors) != 2 or len(names) != 2 or "." in inputs:
            return self.lose(func, tensors, kwargs, out)
        pairs = list(zip(names, tensors))
        for (letters, tensor), (other, value) in (pairs, pairs[::-1]):
            node = self.node(tensor)
            if isinstance(node, Columns) and letters[-1] in other and letters[-1] not in result:
                self._check_values(value)
                return self._einsum_with_values(out, node, letters, other, result)
        for (letters, tensor), (other, key) in (pairs, pairs[::-1]):
            shared = [letter for letter in result if letter in letters and letter in other]
            queries = [letter for letter in result if letter in letters and letter not in other]
            summed = set(letters) & set(other) - set(result)
            if result[-1] not in letters and len(queries) == len(summed) == 1 and len(shared) in (1, 2):
                canonical = [*shared, *queries]
                query = tensor.permute(*(letters.index(letter) for letter in (*canonical, *summed)))
                order = tuple(canonical.index(letter) for letter in result[:-1])
                factor, lead = self.factor(key), tuple(query.shape[:-2])
                return self.note(out, Scores(query, lead, factor, tuple(out.shape[:-1]), order))
        return self.lose(func, tensors, kwargs, out)

    def _einsum_with_values(self, out: Tensor, node: Columns, letters: str, other: str, result: str) -> Tensor:
        if node.prefix.used:
            return out
        widths = [letter for letter in result if letter not in letters]
        arranged = [*letters[:-1], *widths]
        if len(widths) != 1 or sorted(arranged) != sorted(result):
            self.refuse(f"the product {letters},{other}->{result} does not leave one vector per head and query")
        extra = node.layout.restored(self._weighted(node))
        return out + extra.permute(*(arranged.index(letter) for letter in result)).to(out.dtype)

    def _check_values(self, values: Tensor) -> None:
        node = self.node(values)
        if isinstance(node, Columns) or (isinstance(node, Lost) and node.probable):
            self.refuse("it multiplies attention probabilities with others")

    def _weighted(self, node: Columns) -> Tensor:
        """What the prefix adds to the output, [B, H, Q, head_dim]."""
        node.prefix.used = True
        columns, values = node.layout.canonical(node.columns), node.prefix.values
        return columns if values is None else columns @ values.to(columns.dtype)

    # ------------------------------------------------------------------------------------------------- attention

    def softmax(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A softmax: over scores with the prefix, over anything else as it is."""
        scores, node = args[0], self.node(args[0])
        if isinstance(node, Lost):
            self.refuse(f"it changes its scores by {node.function!r} in a way that cannot be followed")
        if not isinstance(node, Scores):
            return func(*args, **kwargs)
        dim = kwargs["dim"] if "dim" in kwargs else args[1]
        layout = node.layout(self.site, tuple(scores.shape))
        if dim % scores.dim() != scores.dim() - 1 or layout is None or scores[..., 0].numel() != math.prod(layout.lead):
            self.refuse(
                f"scores of size {tuple(scores.shape)}, of which it takes the softmax, cannot be those of "
                f"{self.site.query_heads} query heads"
            )
        if self._learns and not torch.is_grad_enabled():
            self.refuse(
                "it takes its softmax in an autograd function of its own, which would keep gradients from the prefix. "
                "Under torch.no_grad() it works"
            )
        dtype = kwargs.get("dtype", next((value for value in args[2:] if isinstance(value, torch.dtype)), None))
        softmax = Softmax(self, partial(torch.softmax, dim=-1, dtype=dtype), node, layout)
        query = node.query.reshape(layout.rows, layout.heads, layout.queries, node.query.shape[-1])
        self._served = True
        own, columns, values = self.plan.run(softmax, query, layout.canonical(scores), self._hidden())
        shape = scores.shape[:-1]
        arranged = layout.restored(columns).reshape(*shape, columns.shape[-1])
        prefix = Prefix(values)
        self.prefixes.append(prefix)
        return self.note(layout.restored(own).reshape(scores.shape), Columns(arranged, prefix, layout))

    def _hidden(self) -> Tensor | None:
        if CALL.now.hidden is not None:
            self.hidden, CALL.now.hidden = CALL.now.hidden, None
        return self.hidden

    def direct(self, func: Any, args: Any, kwargs: Any) -> Any:
        """F.scaled_dot_product_attention, called by the model itself."""
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        options = {"is_causal": False, **dict(zip(names, args)), **kwargs}
        query, key, value = (options.pop(name) for name in names[:3])
        mask = options.pop("attn_mask", None)
        if query.dim() != 4 or key.shape[1] % self.site.num_heads:
            self.refuse(
                f"queries and keys of sizes {tuple(query.shape)} and {tuple(key.shape)} cannot be those of "
                f"{self.site.num_heads} key heads"
            )
        call = _Direct(self.site, partial(_attend_directly, func), self.site.module, options)
        self._served = True
        CALL.now.hidden = self._hidden()
        return self.plan.before(call, query, key, value, mask)[0].transpose(1, 2)


def _attend_directly(
    func: Function, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
) -> tuple[Tensor, None]:
    return func(query, key, value, attn_mask=mask, **options).transpose(1, 2), None


class _Direct(attention.Attention):
    """A call of F.scaled_dot_product_attention, whatever the config says."""

    _implementation = "sdpa"


HANDLERS: Mapping[Any, Handler] = {
    **FOLLOWED,
    **{
        function: handler
        for handler, functions in (
            (Watch.matmul, named("matmul", "bmm", "__matmul__")),
            (Watch.baddbmm, named("baddbmm")),
            (Watch.einsum, [torch.einsum]),
            (Watch.softmax, named("softmax")),
            (Watch.direct, named("scaled_dot_product_attention")),
        )
        for function in functions
    },
}
