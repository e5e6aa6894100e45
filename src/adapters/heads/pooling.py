"""Which vector stands for a whole row? One function per way; classification heads may name one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.utils.generic import ModelOutput

from adapters.errors import HeadError
from adapters.heads.outputs import tile

Pooling = Callable[[PreTrainedConfig, ModelOutput, Mapping[str, Any]], Tensor]
"""(model config, output of the base model, inputs by name) -> [rows, D]."""


def text_config(config: Any) -> Any:
    """The part of a config that is about text, which may be all of it."""
    get = getattr(config, "get_text_config", None)
    return config if get is None else get()


def last_token(config: PreTrainedConfig, outputs: ModelOutput, inputs: Mapping[str, Any]) -> Tensor:
    """Decoders: the state of the last position that is not padding.

    In rows that start with a token that is the number of such tokens - 1, also if the padding token stands in
    between: heads are trained so. In rows padded on the left it is the rightmost one.
    """
    states: Tensor = outputs[0]
    ids, pad = inputs.get("input_ids"), getattr(text_config(config), "pad_token_id", None)
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


def last_eos(config: PreTrainedConfig, outputs: ModelOutput, inputs: Mapping[str, Any]) -> Tensor:
    """Encoder-decoders: the decoder's state where the input has its last end-of-sequence token.

    Raises:
        HeadError: there are no input ids, the decoder's length differs, or rows have different numbers of
            end-of-sequence tokens.
    """
    states: Tensor = outputs[0]
    ids = inputs.get("input_ids")
    if ids is None:
        raise HeadError("Classification with an encoder-decoder model needs input_ids, to find <eos> in them.")
    eos = torch.as_tensor(text_config(config).eos_token_id, device=ids.device)
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


def first(config: PreTrainedConfig, outputs: ModelOutput, inputs: Mapping[str, Any]) -> Tensor:
    """The state of position 0."""
    states: Tensor = outputs[0]
    return states[:, 0]


def last(config: PreTrainedConfig, outputs: ModelOutput, inputs: Mapping[str, Any]) -> Tensor:
    """The state of the last position, padding or not."""
    states: Tensor = outputs[0]
    return states[:, -1]


def pooler(config: PreTrainedConfig, outputs: ModelOutput, inputs: Mapping[str, Any]) -> Tensor:
    """The output of the model's own pooler; of images too whose pooler leaves [rows, D, 1, 1].

    Raises:
        HeadError: the model has none.
    """
    found: Tensor | None = outputs.get("pooler_output")
    if found is None:
        raise HeadError("This model has no pooler.")
    return found.flatten(1)


def mean(config: PreTrainedConfig, outputs: ModelOutput, inputs: Mapping[str, Any]) -> Tensor:
    """The mean over positions, frames or patches [rows, S, D], or over the plane of an image [rows, D, H, W].

    Where a mask says which of the positions are padding, those do not count.
    """
    states: Tensor = outputs[0]
    if states.dim() == 4:
        return states.mean((-2, -1))
    mask = inputs.get("attention_mask")
    if mask is None or mask.dim() != 2 or mask.shape[1] != states.shape[1]:
        return states.mean(1)
    weights = tile(mask, states.size(0)).to(states).unsqueeze(-1)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


def mean_of_all(config: PreTrainedConfig, outputs: ModelOutput, inputs: Mapping[str, Any]) -> Tensor:
    """The mean over all positions, padding or not."""
    states: Tensor = outputs[0]
    return states.mean(1)


def patches(config: PreTrainedConfig, outputs: ModelOutput, inputs: Mapping[str, Any]) -> Tensor:
    """The mean over all positions but position 0 and the registers behind it."""
    states: Tensor = outputs[0]
    return states[:, 1 + (getattr(config, "num_register_tokens", None) or 0) :].mean(1)


def first_and_patches(config: PreTrainedConfig, outputs: ModelOutput, inputs: Mapping[str, Any]) -> Tensor:
    """The state of position 0 and the mean over the others, side by side: [rows, 2 D]."""
    return torch.cat([first(config, outputs, inputs), patches(config, outputs, inputs)], -1)


def summary(config: PreTrainedConfig, outputs: ModelOutput, inputs: Mapping[str, Any]) -> Tensor:
    """What the model itself says of the whole: the output of its pooler, where it returns one, else the mean."""
    found = outputs.get("pooler_output")
    rows = isinstance(found, Tensor) and found.size(0) == outputs[0].size(0) and found.flatten(1).dim() == 2
    return (pooler if rows else mean)(config, outputs, inputs)


POOLINGS: dict[str, Pooling] = {
    way.__name__: way
    for way in (pooler, first, mean, mean_of_all, patches, first_and_patches, last_token, last, last_eos)
}
"""What `pooling` in the config of a head may name."""
