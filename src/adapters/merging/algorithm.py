"""What is an algorithm that makes one adapter of several? A class that combines tensors of the same shape.

What it never sees: models, methods, files. LoRA is the exception that papers make: there most algorithms combine the
products s B A that adapters add to a weight, and not A and B apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from adapters.errors import MergeError
from adapters.merging.update import Update

Weights = Sequence[float]
Random = torch.Generator


@dataclass(frozen=True)
class Algorithm:
    """Combines the same tensor of several adapters. Its fields are its options.

    Class attributes:
        strategy: Name that people type: `combine_strategy`.
        paper: Where it was published; "" for what is older than papers on it.
        relative: Whether it combines what tensors add to the value with which an adapter does nothing (0, for (IA)^3's
            vectors 1), instead of the tensors.
        of_updates: Whether it combines products s B A where adapters are LoRA: then ranks and alphas may differ.
        lora_only: Whether it means something for LoRA alone.
        scaled: Of products: whether they have s = alpha / r in them.
    """

    strategy: ClassVar[str]
    paper: ClassVar[str] = ""
    relative: ClassVar[bool] = True
    of_updates: ClassVar[bool] = True
    lora_only: ClassVar[bool] = False
    scaled: ClassVar[bool] = True

    @classmethod
    def options(cls) -> dict[str, Any]:
        """Name -> default of what it can be told."""
        return {field.name: field.default for field in fields(cls)}

    def combine(self, tensors: Sequence[Tensor], weights: Weights, random: Random) -> Tensor:
        """One tensor of several with the same shape."""
        raise NotImplementedError

    def combine_named(self, name: str, tensors: Sequence[Tensor], weights: Weights, random: Random) -> Tensor:
        """`combine`, for algorithms that treat the tensors of an adapter differently."""
        return self.combine(tensors, weights, random)

    def combine_updates(self, updates: Sequence[Update], weights: Weights, rank: int, random: Random) -> Update:
        """One update [O, I] of several, of this rank: what comes of the products, or what is nearest to it."""
        return Update.nearest(self.combine([update.matrix() for update in updates], weights, random), rank)

    def rank(self, ranks: Sequence[int]) -> int:
        """The rank that LoRA gets, which had these ranks."""
        return max(ranks)

    def total(self, count: int) -> float:
        """What normalised weights of `count` adapters sum to."""
        return 1.0

    def check(self, names: Sequence[str], normalized: bool) -> None:
        """Raise MergeError where it cannot combine these adapters; `normalized` says whether weights sum to `total`."""

    def wrong(self, name: str, allowed: str) -> MergeError:
        """The error for an option that cannot have its value."""
        return MergeError(f"combine_strategy={self.strategy!r}: {name} is {getattr(self, name)!r}. Allowed: {allowed}.")


@dataclass(frozen=True)
class Ranked(Algorithm):
    """An algorithm whose result for LoRA has a rank of choice.

    Args:
        svd_rank: Rank of the result, whose alpha is the same number; by default the highest of the adapters.
    """

    svd_rank: int | None = None

    def __post_init__(self) -> None:
        if self.svd_rank is not None and not _positive(self.svd_rank):
            raise self.wrong("svd_rank", "an integer of at least 1")

    def rank(self, ranks: Sequence[int]) -> int:
        return super().rank(ranks) if self.svd_rank is None else self.svd_rank


@dataclass(frozen=True)
class Sparse(Ranked):
    """An algorithm that keeps a part of the entries of every tensor.

    Args:
        density: The part that is kept, in (0, 1].
    """

    density: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _number(self.density) or not 0 < self.density <= 1:
            raise self.wrong("density", "a number above 0 and up to 1, the part of the entries that is kept")


@dataclass(frozen=True)
class Seeded(Sparse):
    """An algorithm that draws at random.

    Args:
        seed: Where its random numbers start. The same seed gives the same adapter.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise self.wrong("seed", "an integer")


def _positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
