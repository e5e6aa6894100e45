"""What does a decoder read if it is given nothing? Its targets or the encoder's input, shifted right by one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from adapters.heads.base import IGNORE

Shift = Callable[[PreTrainedConfig, Tensor], Tensor]
"""(model config, token ids [B, S]) -> decoder input ids [B, S]."""


def start_token_first(config: PreTrainedConfig, ids: Tensor) -> Tensor:
    """T5 and BART: the decoder's start token, then all ids but the last."""
    start = ids.new_full((ids.size(0), 1), config.decoder_start_token_id)
    shifted = torch.cat([start, ids[:, :-1]], dim=1)
    pad = getattr(config, "pad_token_id", None)
    return shifted.masked_fill(shifted == IGNORE, config.decoder_start_token_id if pad is None else pad)


def last_token_first(config: PreTrainedConfig, ids: Tensor) -> Tensor:
    """mBART: the last token that is not padding, which names the language, then all ids but the last."""
    ids = ids.masked_fill(ids == IGNORE, config.pad_token_id)
    last = (ids != config.pad_token_id).sum(dim=1, keepdim=True) - 1
    return torch.cat([ids.gather(1, last), ids[:, :-1]], dim=1)
