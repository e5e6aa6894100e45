"""What grows with the prompts that enter a stack: its embeddings, its mask and its positions; what is cut behind it.

Models build masks and reshape by the length of what they are given, so prompts stand in front before the stack begins.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adapters.composition.steps import Step
from adapters.errors import SizeError, UnsupportedError
from adapters.methods.state import HiddenState
from adapters.sites.site import PromptSite

POSITIONS = ("position_ids", "cache_position")
"""Arguments of a stack that number the positions, in their last dimension."""


def lengthen(site: PromptSite, step: Step, given: dict[str, Any], offset: int) -> dict[str, Any]:
    """The arguments of a stack, given by name, with the prompts in front; behind a filled cache only what counts them.

    Args:
        site: Where the prompts enter.
        step: The prompts.
        given: The arguments.
        offset: Number of cached positions, prompts included.
    Raises:
        SizeError: the token ids have more than two dimensions.
        UnsupportedError: an argument says something of every position, and nothing of those of prompts.
    """
    prompts, changed = step.extra_positions, dict(given)
    if given.get("token_type_ids") is not None:
        raise UnsupportedError(
            f"Prompts in front of a {type(site.stack).__name__} have no token types. Leave token_type_ids out."
        )
    if not offset and not _embed(site, step, changed):
        return given  # the model says what it lacks
    for name in POSITIONS:
        if isinstance(numbers := given.get(name), Tensor):
            changed[name] = numbers + prompts
            if not offset:
                own = torch.arange(prompts, device=numbers.device).to(numbers).expand(*numbers.shape[:-1], -1)
                changed[name] = torch.cat([own, changed[name]], -1)
    changed["attention_mask"] = longer_mask(given.get("attention_mask"), prompts, offset, site.causal)
    return changed


def _embed(site: PromptSite, step: Step, given: dict[str, Any]) -> bool:
    """Put embeddings with prompts in place of token ids, or of embeddings; whether there is one of the two."""
    ids, embedded = given.get("input_ids"), given.get(site.argument)
    if (ids is None) == (embedded is None):
        return False
    if embedded is None:
        assert site.table is not None
        embedded = site.table(ids)
    if embedded.dim() != 3:
        shape = tuple((embedded if ids is None else ids).shape)
        raise SizeError(
            f"Prompts stand in front of rows of tokens, [B, S], and this input has the shape {shape}. "
            "Give one row for each sequence."
        )
    given.pop("input_ids", None)
    given[site.argument] = step.run(HiddenState(embedded)).h
    return True


def longer_mask(mask: Any, prompts: int, offset: int = 0, causal: bool = True) -> Any:
    """A mask, with columns (and rows, while the cache is empty) for prompts that every position attends to.

    Args:
        mask: [B, S] of positions that are no padding, or [B, H, S, T] of pairs (bools, or what is added to scores);
            None stays None.
        prompts: P, the number of their positions.
        offset: Number of cached positions, prompts included.
        causal: Whether prompts attend only to what stands before them.
    Raises:
        UnsupportedError: the mask is of another form, or one of pairs, which does not tell what prompts attend to.
    """
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 4) or (mask.dim() == 4 and not causal):
        shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise UnsupportedError(
            f"The attention mask ({shape}) does not tell what prompts attend to. Give one of the shape [B, S], with 1 "
            "where a token is no padding."
        )
    if mask.dim() == 2:
        return torch.cat([mask.new_ones(mask.shape[0], prompts), mask], 1)
    seen, unseen = (True, False) if mask.dtype is torch.bool else (0, torch.finfo(mask.dtype).min)
    rows, heads, queries, keys = mask.shape
    longer = torch.cat([mask.new_full((rows, heads, queries, prompts), seen), mask], 3)
    if not offset:
        own = mask.new_full((prompts, prompts + keys), unseen)
        own = own.masked_fill(torch.ones_like(own, dtype=torch.bool).tril(), seen)
        longer = torch.cat([own.expand(rows, heads, -1, -1), longer], 2)
    static = keys > queries + max(offset - prompts, 0)  # as many columns as the cache has room for
    return longer[..., :keys] if static else longer


def cut(output: Any, prompts: int) -> Any:
    """What a stack returns, without the states of the positions that its prompts added."""
    if isinstance(output, Tensor):
        return output[:, prompts:]
    if isinstance(output, tuple):
        return (output[0][:, prompts:], *output[1:])
    name = next(iter(output))
    output[name] = output[name][:, prompts:]
    return output
