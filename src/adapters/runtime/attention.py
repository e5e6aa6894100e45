"""Prefix tuning at the one place that every model passes: the function that transformers' AttentionInterface returns.

There, keys are position-encoded and cached already, so a prefix neither gets a position nor enters the cache.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface

from adapters.call import CALL
from adapters.errors import UnsupportedError
from adapters.methods.state import AttentionState, per_head
from adapters.sharding import own_heads
from adapters.sites.site import AttentionSite

Output = tuple[Tensor, Tensor | None]

_MARK = "_adapter_attention"
_get_interface = AttentionInterface.get_interface


def _get_dispatch(self: AttentionInterface, implementation: str, default: Callable[..., Any]) -> Callable[..., Output]:
    return partial(_dispatch, _get_interface(self, implementation, default))


def _dispatch(function: Callable[..., Output], module: nn.Module, *args: Any, **kwargs: Any) -> Output:
    hooked = module.__dict__.get(_MARK)
    if hooked is None:
        return function(module, *args, **kwargs)
    return hooked.attend(function, module, *args, **kwargs)  # type: ignore[no-any-return]


def install() -> None:
    """Let attention functions of all models be called through `_dispatch`. Idempotent; other models only pass by."""
    AttentionInterface.get_interface = _get_dispatch  # type: ignore[method-assign, assignment]


@dataclass
class Interception:
    """Handle that undoes `intercept`."""

    module: nn.Module

    def remove(self) -> None:
        """Let `module` call its attention function directly again."""
        self.module.__dict__.pop(_MARK, None)


def asks_interface(module: nn.Module) -> bool:
    """Whether `module` asks transformers' AttentionInterface for its attention function."""
    return "get_interface" in inspect.unwrap(type(module).forward).__code__.co_names


def intercept(module: nn.Module, hooked: Any) -> Interception:
    """Let the attention calls of `module` go through `hooked.attend`."""
    install()
    module.__dict__[_MARK] = hooked
    return Interception(module)


@dataclass
class Attention:
    """One call of an attention function: the function, the module it runs for, and the named arguments."""

    site: AttentionSite
    function: Callable[..., Output]
    module: nn.Module
    options: dict[str, Any]

    def plain(self, query: Tensor, key: Tensor, value: Tensor, mask: Any) -> Output:
        """The call as the model made it."""
        return self.function(self.module, query, key, value, mask, **self.options)

    def prefixed(
        self,
        prefix: tuple[Tensor, Tensor],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Any,
        attended: Tensor | None = None,
    ) -> Output:
        """The call over [prefix | keys]. `attended` [B, P] is False where a prefix is only padding."""
        options, queries, length = self.options, query.shape[2], prefix[0].shape[2]
        if not self._limits.isdisjoint(options):
            self._check(key.shape[2] + length)
        causal = options.get("is_causal")
        causal = queries > 1 and (getattr(self.module, "is_causal", True) if causal is None else causal)
        bias = options.get("position_bias")
        if mask is not None or bias is not None or attended is not None or causal:
            key, value, mask, bias = self._crop(query, key, value, mask, bias, causal)
            mask = self._mask(query, key, mask, length, attended, causal)
            if bias is not None:
                options = {**options, "position_bias": self._biases(bias, length, attended)}
            if mask is not None and "is_causal" in options:
                options = {**options, "is_causal": False}
        before, after = (tensor.to(key.dtype) for tensor in prefix)
        if before.shape[1] != key.shape[1]:  # the model has repeated its keys itself
            before, after = per_head(before, key.shape[1]), per_head(after, key.shape[1])
        if before.shape[0] != (rows := key.shape[0]):
            before, after = before.expand(rows, -1, -1, -1), after.expand(rows, -1, -1, -1)
        keys, values = torch.cat([before, key], 2), torch.cat([after, value], 2)
        return self.function(self.module, query, keys, values, mask, **options)

    _limits: ClassVar[frozenset[str]] = frozenset(("sliding_window", "cu_seq_lens_q", "cache"))
    """Arguments by which some functions limit what a query sees without a mask."""

    def _check(self, keys: int) -> None:
        """Raise UnsupportedError where the function itself would keep queries from the prefix."""
        options, window = self.options, self.options.get("sliding_window")
        if self._flash and window is not None and keys > window:
            reason = f"its kernel cuts what lies {window} positions back, and with it the prefix"
        elif self._flash and options.get("cu_seq_lens_q") is not None:
            reason = "its kernel takes packed sequences, of which only the first would see the prefix"
        elif "paged" in self._implementation:
            reason = "it takes keys from the cache by itself"
        else:
            return
        raise UnsupportedError(
            f"Prefix tuning does not get into the attention at {self.site.path} with {self._implementation}: {reason}. "
            "Use model.set_attn_implementation('sdpa') or 'eager'."
        )

    def _crop(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Any, bias: Tensor | None, causal: bool
    ) -> tuple[Tensor, Tensor, Any, Tensor | None]:
        """Without the unused keys of a static cache, which would come between prefix and mask."""
        queries = query.shape[2]
        if mask is None and causal and key.shape[2] > queries and not self._flash:
            key, value = key[:, :, :queries], value[:, :, :queries]
            bias = None if bias is None else bias[..., :queries]
        if isinstance(mask, Tensor) and mask.dim() == 4 and mask.shape[-1] > key.shape[2]:
            mask = mask[..., : key.shape[2]]
        return key, value, mask, bias

    def _mask(self, query: Tensor, key: Tensor, mask: Any, length: int, attended: Tensor | None, causal: bool) -> Any:
        """The mask over [prefix | keys]; made explicit where the function would place a causal one wrongly."""
        queries, keys = query.shape[2], key.shape[2]
        if mask is None and not self._flash:
            eager = self._implementation == "eager"
            if causal and not eager:
                mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril()[None, None]
            elif attended is not None:
                ones = torch.ones(1, 1, 1, keys, dtype=torch.bool, device=query.device)
                mask = torch.zeros_like(ones, dtype=query.dtype) if eager else ones
        if isinstance(mask, Tensor):
            return _extend_mask(mask, length, attended)
        return _extend_block_mask(mask, length, queries, keys)

    def _biases(self, bias: Tensor, length: int, attended: Tensor | None) -> Tensor:
        """Position bias over [prefix | keys], for every row that of its own prefix, which may be shorter."""
        if attended is None:
            return self._bias(bias, length)
        lengths = attended.sum(1).tolist()
        own = {n: F.pad(self._bias(bias, n) if n else bias, (length - n, 0)) for n in set(lengths)}
        alike = len(bias) == 1
        return torch.cat([own[n] if alike else own[n][row : row + 1] for row, n in enumerate(lengths)])

    def _bias(self, bias: Tensor, length: int) -> Tensor:
        """Relative position bias [1 or B, H, Q, K] of T5 for P + K keys, as if the prefix were the first P keys.

        Trained prefixes depend on this: the bias of a real key is that of a key P positions further, and where the
        layer that owns the bias has no prefix, the layers that have one were trained without any bias.
        """
        owner, (queries, keys) = self.site.position_bias, bias.shape[-2:]
        if owner is None or owner.__dict__.get(_MARK) is None:
            return bias.new_zeros(*bias.shape[:-1], length + keys)
        more = owner.compute_bias(queries, keys + length, device=bias.device)  # type: ignore[operator]
        return torch.cat([bias, more[..., keys:].expand(bias.shape[0], -1, -1, -1)], -1)

    @property
    def _implementation(self) -> str:
        return str(self.module.config._attn_implementation)  # type: ignore[union-attr]

    @property
    def _flash(self) -> bool:
        return "flash" in self._implementation


def attend_prefix(
    key_values: Callable[[], tuple[Tensor, Tensor]],
    call: Attention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
) -> Output:
    """The call with one prefix, the common case."""
    before, after = (own_heads(tensor, call.module) for tensor in key_values())
    return call.prefixed((before, after), query, key, value, mask)


def attend(
    run: Callable[[AttentionState], AttentionState],
    call: Attention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
) -> Output:
    """The call with whatever the program `run` prepends."""
    hidden, CALL.now.hidden = CALL.now.hidden, None
    finish = partial(_finish, call, None if isinstance(mask, Tensor) else mask)
    state = run(AttentionState(query, key, value, mask if isinstance(mask, Tensor) else None, hidden, attend=finish))
    return finish(state) if state.out is None else (state.out, None)


def _finish(call: Attention, block_mask: Any, state: AttentionState) -> Output:
    mask = block_mask if state.mask is None else state.mask
    if state.prefix_keys is None or state.prefix_values is None:
        return call.plain(state.query, state.key, state.value, mask)
    prefix = state.prefix_keys, state.prefix_values
    return call.prefixed(prefix, state.query, state.key, state.value, mask, state.attended)


def _extend_mask(mask: Tensor, length: int, attended: Tensor | None) -> Tensor:
    """Add columns for the prefix: attended, except where `attended` [B, P] says it is padding."""
    if mask.dim() == 2:  # flash attention: one flag per key
        return F.pad(mask, (length, 0), value=1)
    allowed = True if mask.dtype == torch.bool else 0.0
    if attended is None:
        return F.pad(mask, (length, 0), value=allowed)
    columns = attended[:, None, None, :]
    if mask.dtype != torch.bool:
        columns = torch.zeros_like(columns, dtype=mask.dtype).masked_fill(~columns, torch.finfo(mask.dtype).min)
    batch = max(mask.shape[0], columns.shape[0])
    columns = columns.expand(batch, mask.shape[1], mask.shape[2], -1)
    return torch.cat([columns, mask.expand(batch, -1, -1, -1)], -1)


def _extend_block_mask(mask: Any, length: int, queries: int, keys: int) -> Any:
    """The same for flex attention's BlockMask."""
    if mask is None:
        return None
    from torch.nn.attention.flex_attention import create_block_mask

    old = mask.mask_mod

    def extended(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        allowed: Tensor = (k < length) | (old(b, h, q, torch.clamp(k - length, min=0)) & (k >= length))
        return allowed

    batch, heads = mask.shape[0], mask.shape[1]
    device = mask.kv_num_blocks.device
    return create_block_mask(extended, batch, heads if heads > 1 else None, queries, keys + length, device=device)
