"""What becomes of several heads? A head whose tensors are combined by one of the algorithms for adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adapters.errors import HeadError, MergeError
from adapters.heads.base import PredictionHead
from adapters.merging import algorithm_of
from adapters.merging.averaging import combined
from adapters.merging.shares import NO_LAYER, Shares
from adapters.methods.base import resting_value


def head_shares(heads: Sequence[str] | Mapping[str, float], weights: Sequence[float] | None, normalize: bool) -> Shares:
    """The weight of each head: equal shares by default, else the given numbers, divided by their sum on request.

    Raises:
        HeadError: there are no heads, not as many weights as heads, or a weight is no number.
    """
    try:
        return Shares.of(heads, weights, normalize, noun="head")
    except MergeError as error:
        raise HeadError(str(error)) from None


def average_heads(
    heads: Sequence[PredictionHead], shares: Shares, strategy: str, options: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The tensors of what heads become. A tensor that all share, such as tied embeddings, stays as it is.

    Raises:
        HeadError: the heads differ in class or in config (dropout apart), or the algorithm does not suit heads.
    """
    first = heads[0]
    for head in heads[1:]:
        if type(head) is not type(first) or _comparable(head) != _comparable(first):
            raise HeadError(
                f"Heads {first.name!r} and {head.name!r} differ, so there is no average: "
                f"{_comparable(first)} and {_comparable(head)}."
            )
    try:
        algorithm = algorithm_of(strategy, options)
        if algorithm.lora_only:
            raise MergeError(f"combine_strategy={strategy!r} is for LoRA, and heads are none.")
        if getattr(algorithm, "svd_rank", None) is not None:
            raise MergeError("svd_rank is for LoRA, and heads are none. Leave it out.")
        algorithm.check(shares.names, shares.normalize)
        weights = shares.at(NO_LAYER, algorithm.total(len(heads)))
    except MergeError as error:
        raise HeadError(str(error)) from None
    random = torch.Generator().manual_seed(getattr(algorithm, "seed", 0))
    whole = abs(sum(weights) - algorithm.total(len(heads))) < 1e-6
    states = [head.state_dict() for head in heads]
    average = {}
    for key, tensor in states[0].items():
        own = [state[key] for state in states]
        if all(torch.equal(other, tensor) for other in own) and (algorithm.relative or whole):
            average[key] = tensor
        else:
            rest = resting_value(first, key) if algorithm.relative else 0.0
            average[key] = combined(algorithm, key, own, weights, random, rest).to(tensor.dtype)
    return average


def _comparable(head: PredictionHead) -> dict[str, object]:
    return {key: value for key, value in head.config.items() if key != "dropout_prob"}
