"""From one adapter to another on the arc between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import acos, sin

from torch import Tensor

from adapters.errors import MergeError
from adapters.merging.algorithm import Random, Ranked, Weights
from adapters.merging.linear import weighted_sum

PARALLEL = 1e-4
"""Angle below which, and next to pi, the arc is as good as the line between its ends."""


@dataclass(frozen=True)
class Slerp(Ranked):
    """Spherical interpolation of two adapters, with weights 1 - h and h: the length does not shrink on the way.

        t = (sin((1 - h) a) t_1 + sin(h a) t_2) / sin(a),    a = the angle between t_1 and t_2 as vectors

    Paper: Shoemake 1985, Animating rotation with quaternion curves.
    """

    strategy = "slerp"

    def check(self, names: Sequence[str], normalized: bool) -> None:
        if len(names) != 2:
            raise MergeError(f"combine_strategy='slerp' goes from one adapter to another, and there are {len(names)}.")
        if not normalized:
            raise MergeError("combine_strategy='slerp' needs weights that sum to 1. Leave normalize_weights=True.")

    def combine(self, tensors: Sequence[Tensor], weights: Weights, random: Random) -> Tensor:
        one, other = tensors
        lengths = float(one.norm() * other.norm())
        cosine = float((one * other).sum()) / lengths if lengths else 1.0
        angle = acos(max(-1.0, min(1.0, cosine)))
        if sin(angle) < PARALLEL:
            return weighted_sum(tensors, weights)
        return weighted_sum(tensors, [sin(weight * angle) / sin(angle) for weight in weights])
