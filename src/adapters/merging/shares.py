"""How much does each adapter count, and in which layer?"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeAlias

from adapters.errors import MergeError

Weight: TypeAlias = "float | Sequence[float] | Mapping[int, float] | Callable[[int], float]"
"""Of one adapter: a number; or one per layer, as a sequence, a mapping or a function of the layer's number."""

NO_LAYER = -1
"""Stands for the layer of what belongs to none, such as prompts and what all places share."""


@dataclass(frozen=True)
class Shares:
    """The weights of some adapters (or heads).

    Attributes:
        names: What is combined, each once.
        given: (name, weight) as they were given.
        normalize: Whether the weights of every layer are divided by their sum.
        layers: How many layers the model has.
    """

    names: tuple[str, ...]
    given: tuple[tuple[str, Weight], ...]
    normalize: bool
    layers: int

    @classmethod
    def of(
        cls,
        names: Sequence[str] | Mapping[str, Weight],
        weights: Sequence[Weight] | None,
        normalize: bool,
        layers: int = 0,
        noun: str = "adapter",
    ) -> Shares:
        """What the arguments of a verb mean: equal shares, or one weight per name.

        Raises:
            MergeError: there are no names, not as many weights, or a weight is none.
        """
        listed = list(names)
        if weights is None and isinstance(names, Mapping):
            weights = list(names.values())
        if not listed:
            raise MergeError(f"There are no {noun}s to average. Name at least one.")
        if weights is None:
            weights, normalize = [1.0] * len(listed), True
        if isinstance(weights, str | Mapping) or not isinstance(weights, Collection):
            raise MergeError(f"weights is {weights!r}. Give a list with one weight per {noun}.")
        if len(weights) != len(listed):
            raise MergeError(f"There are {len(weights)} weights for {len(listed)} {noun}s. Give one per {noun}.")
        for weight in weights:
            _check(weight, layers, noun)
        return cls(tuple(dict.fromkeys(listed)), tuple(zip(listed, weights)), normalize, layers)

    def at(self, layer: int, total: float = 1.0) -> list[float]:
        """The weights of `names` in a layer; normalised ones sum to `total`.

        Raises:
            MergeError: a weight says nothing for this layer, or they sum to zero.
        """
        own = [(name, self._number(weight, layer)) for name, weight in self.given]
        shares = dict.fromkeys(self.names, 0.0)
        divisor = sum(number for _, number in own) / total if self.normalize else 1.0
        if divisor == 0:
            where = "" if all(isinstance(weight, Real) for _, weight in self.given) else f" in layer {layer}"
            raise MergeError(
                f"Weights {[number for _, number in own]} sum to zero{where}. Pass normalize_weights=False to use them "
                "as they are."
            )
        for name, number in own:
            shares[name] += number / divisor
        return list(shares.values())

    def _number(self, weight: Weight, layer: int) -> float:
        if isinstance(weight, Real):
            return float(weight)
        if isinstance(weight, Mapping):
            found: Any = weight.get(layer)
            if found is None and layer == NO_LAYER:
                found = sum(weight.values()) / len(weight)
            if found is None:
                raise MergeError(f"The weights {dict(weight)!r} have none for layer {layer}. Give one for every layer.")
        elif isinstance(weight, Sequence):
            found = sum(weight) / len(weight) if layer == NO_LAYER else weight[layer]
        else:
            assert callable(weight)
            found = weight(layer)
        return float(_finite(found))


def _check(weight: object, layers: int, noun: str) -> None:
    """Raise MergeError if a weight is none."""
    if callable(weight):
        return
    if isinstance(weight, Mapping):
        numbers = list(weight.values())
        if odd := [layer for layer in weight if layer not in range(NO_LAYER, layers)]:
            raise MergeError(f"The weights {dict(weight)!r} name the layer {odd[0]!r}. There are 0 to {layers - 1}.")
    elif isinstance(weight, Sequence) and not isinstance(weight, str):
        numbers = list(weight)
        if len(numbers) != layers:
            raise MergeError(f"There are {len(numbers)} weights of one {noun} for {layers} layers. Give one per layer.")
    else:
        numbers = [weight]
    if not numbers:
        raise MergeError(f"The weights {weight!r} are empty. Give one per layer.")
    for number in numbers:
        _finite(number)


def _finite(number: Any) -> Any:
    if not isinstance(number, Real) or isinstance(number, bool) or not math.isfinite(number):
        raise MergeError(f"The weight {number!r} is no finite number. Give one number per adapter, or one per layer.")
    return number
