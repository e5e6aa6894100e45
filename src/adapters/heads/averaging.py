"""What is the average of several heads? A weighted mean of their tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from adapters.errors import HeadError
from adapters.heads.base import PredictionHead


def average_weights(
    heads: Sequence[str] | Mapping[str, float], weights: Sequence[float] | None, normalize: bool
) -> dict[str, float]:
    """Factor of each head: equal shares by default, else the given numbers, divided by their sum on request.

    Raises:
        HeadError: there are no heads, not as many weights as heads, or the weights sum to zero.
    """
    names = list(heads)
    if weights is None and isinstance(heads, Mapping):
        weights = list(heads.values())
    if not names:
        raise HeadError("There are no heads to average. Name at least one.")
    if weights is None:
        weights, normalize = [1.0] * len(names), True
    if len(weights) != len(names):
        raise HeadError(f"There are {len(weights)} weights for {len(names)} heads. Give one per head.")
    total = sum(weights) if normalize else 1.0
    if total == 0:
        raise HeadError(f"Weights {list(weights)} sum to zero. Pass normalize_weights=False to use them as is.")
    shares: dict[str, float] = dict.fromkeys(names, 0.0)
    for name, weight in zip(names, weights, strict=True):
        shares[name] += weight / total
    return shares


def average_heads(heads: Sequence[PredictionHead], weights: Sequence[float]) -> dict[str, Tensor]:
    """Weighted mean of each tensor. A tensor that all heads share, such as tied embeddings, stays as it is.

    Raises:
        HeadError: the heads differ in class or in config (dropout apart).
    """
    first = heads[0]
    for head in heads[1:]:
        if type(head) is not type(first) or _comparable(head) != _comparable(first):
            raise HeadError(
                f"Heads {first.name!r} and {head.name!r} differ, so there is no average: "
                f"{_comparable(first)} and {_comparable(head)}."
            )
    states = [head.state_dict() for head in heads]
    average = {}
    for key, tensor in states[0].items():
        if all(torch.equal(state[key], tensor) for state in states) and abs(sum(weights) - 1) < 1e-6:
            average[key] = tensor
        else:
            average[key] = sum(
                (w * state[key] for w, state in zip(weights, states, strict=True)), torch.zeros_like(tensor)
            )
    return average


def _comparable(head: PredictionHead) -> dict[str, object]:
    return {key: value for key, value in head.config.items() if key != "dropout_prob"}
