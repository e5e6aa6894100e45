"""Which weights suit a task? A search by a few examples, without gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapters.errors import MergeError


@dataclass(frozen=True)
class LoraHub:
    """Weights with which adapters do best on some examples, in place of given ones.

        minimise  loss(model with the adapter of weights w) + penalty * mean_i |w_i|    over -bound <= w_i <= bound

    The search is CMA-ES (Hansen 2016, arXiv:1604.00772) and starts from equal shares, so that what it finds is at least
    as good as the mean. Weights are used as they are found, never normalised.

    Paper: Huang et al. 2023, arXiv:2307.13269.

    Args:
        loss: Called with the model, in evaluation mode and without gradients, with the candidate active: a number, the
            lower the better. NaN counts as infinite.
        evaluations: How often it may be called.
        penalty: What large weights cost.
        bound: The largest absolute weight.
        step: Standard deviation of the first candidates.
        seed: Where random numbers start.
    """

    loss: Callable[[Any], Any]
    evaluations: int = 60
    penalty: float = 0.05
    bound: float = 1.5
    step: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        if not callable(self.loss):
            raise MergeError(f"LoraHub: loss is {self.loss!r}. Give a function of the model that returns a number.")
        for name in ("evaluations", "bound", "step"):
            if not getattr(self, name) > 0:
                raise MergeError(f"LoraHub: {name} is {getattr(self, name)!r}. Give a positive number.")

    def best(self, count: int, loss: Callable[[Sequence[float]], float]) -> list[float]:
        """The best weights of `count` adapters, by the loss of weights.

        Raises:
            MergeError: no weights have a finite loss.
        """

        def objective(weights: Tensor) -> float:
            value = float(loss(weights.tolist())) + self.penalty * float(weights.abs().mean())
            return math.inf if math.isnan(value) else value

        start = torch.full((count,), 1 / count, dtype=torch.float64)
        weights, value = minimise(objective, start, self.step, self.bound, self.evaluations, self.seed)
        if math.isinf(value):
            raise MergeError("LoraHub: the loss was infinite or NaN for all weights that were tried.")
        found: list[float] = weights.tolist()
        return found


def minimise(
    objective: Callable[[Tensor], float], start: Tensor, step: float, bound: float, evaluations: int, seed: int
) -> tuple[Tensor, float]:
    """The best point that CMA-ES finds, and its value.

    A generation draws points from a normal distribution, which moves to the mean of the better half, and stretches
    along the steps that have been good (Hansen 2016, arXiv:1604.00772, with its constants).

    Args:
        objective: What is to be small.
        start: Mean of the first generation, [n]; tried itself, too.
        step: Standard deviation of the first generation.
        bound: Largest absolute value of a coordinate.
        evaluations: How often `objective` is called at most.
        seed: Of the generator.
    """
    random = torch.Generator().manual_seed(seed)
    n, size = len(start), 4 + int(3 * math.log(len(start)))
    ranks = torch.arange(1, size // 2 + 1, dtype=start.dtype)
    weights = math.log((size + 1) / 2) - ranks.log()
    weights /= weights.sum()
    effective = float(1 / weights.square().sum())
    path_rate, step_rate = (4 + effective / n) / (n + 4 + 2 * effective / n), (effective + 2) / (n + effective + 5)
    one_rate = 2 / ((n + 1.3) ** 2 + effective)
    all_rate = min(1 - one_rate, 2 * (effective - 2 + 1 / effective) / ((n + 2) ** 2 + effective))
    damping = 1 + 2 * max(0.0, math.sqrt((effective - 1) / (n + 1)) - 1) + step_rate
    expected = math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n * n))  # length of a normal vector

    mean, covariance = start.clone(), torch.eye(n, dtype=start.dtype)
    path, step_path = torch.zeros_like(start), torch.zeros_like(start)
    best, value, left = start.clone(), objective(start), evaluations - 1
    while left >= size:
        left -= size
        scales, axes = torch.linalg.eigh(covariance)
        scales = scales.clamp(min=1e-20).sqrt()
        drawn = torch.randn(size, n, dtype=start.dtype, generator=random) * scales @ axes.T
        points = (mean + step * drawn).clamp(-bound, bound)
        values = [objective(point) for point in points]
        order = sorted(range(size), key=values.__getitem__)
        if values[order[0]] < value:
            best, value = points[order[0]].clone(), values[order[0]]
        moves = (points[order[: len(weights)]] - mean) / step
        move = weights @ moves
        mean = mean + step * move
        whitened = axes @ ((axes.T @ move) / scales)
        step_path = (1 - step_rate) * step_path + math.sqrt(step_rate * (2 - step_rate) * effective) * whitened
        path = (1 - path_rate) * path + math.sqrt(path_rate * (2 - path_rate) * effective) * move
        kept = (1 - one_rate - all_rate) * covariance
        covariance = kept + one_rate * torch.outer(path, path) + all_rate * (moves.T * weights) @ moves
        step *= math.exp(step_rate / damping * (float(step_path.norm()) / expected - 1))
    return best, value
