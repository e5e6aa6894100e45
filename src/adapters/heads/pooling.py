"""Which vector stands for a whole row? One function per kind of decoder; encoders have position 0
or a pooler, which classification heads take themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from adapters.errors import HeadError
from adapters.heads.outputs import tile

Pooling = Callable[[PreTrainedConfig, Tensor, Mapping[str, Any]], Tensor]
"""(model config, last states of the base model, inputs by name) -> [rows, D]."""


def last_token(config: PreTrainedConfig, states: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """Decoders: the state of the last position that is not padding.

    In rows that start with a token that is the number of such tokens - 1, also if the padding token stands in
    between: heads are trained so. In rows padded on the left it is the rightmost one.
    """
    ids, pad = inputs.get("input_ids"), config.pad_token_id
    if ids is not None and pad is not None:
        real = ids != pad
    elif ids is None and inputs.get("attention_mask") is not None and inputs["attention_mask"].dim() == 2:
        real = inputs["attention_mask"] != 0
    else:
        return states[:, -1]
    real = tile(real, states.size(0))[:, -states.size(1) :]
    prompt = states.size(1) - real.size(1)
    rightmost = real.size(1) - 1 - real.flip(1).int().argmax(dim=1)
    position = torch.where(real[:, 0], real.sum(dim=1) - 1, rightmost) + prompt
    return states[torch.arange(states.size(0), device=states.device), position.to(states.device)]


def last_eos(config: PreTrainedConfig, states: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    """Encoder-decoders: the decoder's state where the input has its last end-of-sequence token.

    Raises:
        HeadError: there are no input ids, the decoder's length differs, or rows have different numbers of
            end-of-sequence tokens.
    """
    ids = inputs.get("input_ids")
    if ids is None:
        raise HeadError("Classification with an encoder-decoder model needs input_ids, to find <eos> in them.")
    eos = torch.as_tensor(config.eos_token_id, device=ids.device)
    ends = tile(torch.isin(ids, eos), states.size(0)).to(states.device)
    counts = ends.sum(dim=1)
    if ends.size(1) != states.size(1):
        raise HeadError(
            f"Classification with an encoder-decoder model reads the decoder where the input has <eos>, but the "
            f"input has {ends.size(1)} positions and the decoder {states.size(1)}. Leave decoder_input_ids out."
        )
    if len(counts.unique()) > 1 or counts[0] == 0:
        raise HeadError(
            f"All examples must have the same number of <eos> tokens, at least one. They have {counts.tolist()}."
        )
    reverse = ends.flip(1).int().argmax(dim=1)
    return states[torch.arange(states.size(0), device=states.device), ends.size(1) - 1 - reverse]
