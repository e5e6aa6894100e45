"""Prefix tuning at the one place that every model passes: the function that transformers' AttentionInterface returns.

There, keys are position-encoded and cached already, so a prefix neither gets a position nor enters the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface

from adapters.methods.state import AttentionState
from adapters.sites.resolve import AttentionSite

Output = tuple[Tensor, Tensor | None]

_MARK = "_adapter_attention"
_get_interface = AttentionInterface.get_interface


def _get_dispatch(self: AttentionInterface, implementation: str, default: Callable[..., Any]) -> Callable[..., Output]:
    return partial(_dispatch, _get_interface(self, implementation, default))


def _dispatch(function: Callable[..., Output], module: nn.Module, *args: Any, **kwargs: Any) -> Output:
    live = module.__dict__.get(_MARK)
    if live is None:
        return function(module, *args, **kwargs)
    return live.attend(function, module, *args, **kwargs)  # type: ignore[no-any-return]


def install() -> None:
    """Let attention functions of all models be called through `_dispatch`. Idempotent; other models only pass by."""
    AttentionInterface.get_interface = _get_dispatch  # type: ignore[method-assign]


@dataclass
class Interception:
    """Handle that undoes `intercept`."""

    module: nn.Module

    def remove(self) -> None:
        """Let `module` call its attention function directly again."""
        self.module.__dict__.pop(_MARK, None)


def intercept(module: nn.Module, live: Any) -> Interception:
    """Let the attention calls of `module` go through `live.attend`."""
    install()
    module.__dict__[_MARK] = live
    return Interception(module)


def attend(
    run: Callable[[AttentionState], AttentionState],
    site: AttentionSite,
    hidden: Tensor | None,
    function: Callable[..., Output],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    **kwargs: Any,
) -> Output:
    """Call `function` with the keys and values that `run` prepends."""
    mask = attention_mask if isinstance(attention_mask, Tensor) else None
    call = partial(_call, site, function, module, attention_mask, kwargs)
    state = run(AttentionState(query, key, value, mask, hidden, attend=call))
    if state.out is not None:
        return state.out, None
    if state.prefix_keys is None:
        return function(module, query, key, value, attention_mask, **kwargs)
    return call(state)


def _call(
    site: AttentionSite,
    function: Callable[..., Output],
    module: nn.Module,
    given_mask: Any,
    options: dict[str, Any],
    state: AttentionState,
) -> Output:
    """Attention of one state over [prefix | keys]."""
    query, key, value, mask = state.query, state.key, state.value, state.mask
    if state.prefix_keys is None or state.prefix_values is None:
        return function(module, query, key, value, mask if mask is not None else given_mask, **options)
    kwargs, implementation = dict(options), str(module.config._attn_implementation)  # type: ignore[union-attr]
    length, queries = state.prefix_keys.shape[2], query.shape[2]
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    bias = kwargs.get("position_bias")
    if "flash" not in implementation:
        if mask is None and given_mask is None and causal and 1 < queries < key.shape[2]:
            # sdpa's convention for the first call with a static cache: the mask is left out, and so are unused keys
            key, value = key[:, :, :queries], value[:, :, :queries]
            bias = None if bias is None else bias[..., :queries]
        if mask is not None and mask.shape[-1] > key.shape[2]:
            mask = mask[..., : key.shape[2]]
        if mask is None and given_mask is None and causal and queries > 1 and implementation != "eager":
            mask = torch.ones(queries, key.shape[2], dtype=torch.bool, device=query.device).tril()[None, None]
        if mask is None and state.attended is not None:
            mask = torch.ones(1, 1, 1, key.shape[2], dtype=torch.bool, device=query.device)
            if implementation == "eager":
                mask = torch.zeros_like(mask, dtype=query.dtype)
        if mask is not None and "is_causal" in kwargs:
            kwargs["is_causal"] = False
    if mask is not None:
        extended: Any = _extend_mask(mask, length, state.attended)
    else:
        extended = _extend_block_mask(given_mask, length, queries, key.shape[2])
    if isinstance(bias, Tensor):
        kwargs["position_bias"] = _extend_bias(site, bias, length)
    keys, values = (
        torch.cat([prefix.expand(key.shape[0], -1, -1, -1), own], 2)
        for prefix, own in ((state.prefix_keys, key), (state.prefix_values, value))
    )
    return function(module, query, keys, values, extended, **kwargs)


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
        return (k < length) | (old(b, h, q, torch.clamp(k - length, min=0)) & (k >= length))

    batch, heads = mask.shape[0], mask.shape[1]
    device = mask.kv_num_blocks.device
    return create_block_mask(extended, batch, heads if heads > 1 else None, queries, keys + length, device=device)


def _extend_bias(site: AttentionSite, bias: Tensor, length: int) -> Tensor:
    """Relative position bias [1 or B, H, Q, K] of T5 for P + K keys, as if the prefix were the first P keys.

    Trained prefixes depend on this: the bias of a real key is that of a key P positions further.
    """
    owner = site.position_bias
    if owner is None:
        return F.pad(bias, (length, 0))
    queries, keys = bias.shape[-2:]
    more = owner.compute_bias(queries, keys + length, device=bias.device)  # type: ignore[operator]
    return torch.cat([bias, more[..., keys:].expand(bias.shape[0], -1, -1, -1)], -1)
