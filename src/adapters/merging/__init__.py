"""How does one adapter come of several? `ALGORITHMS` is the registry: one file and one entry here make an algorithm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapters.errors import MergeError, choices
from adapters.merging.algorithm import Algorithm
from adapters.merging.breadcrumbs import Breadcrumbs
from adapters.merging.concatenation import Concatenation
from adapters.merging.dare import DareLinear, DareTies
from adapters.merging.della import Della
from adapters.merging.knots import Knots
from adapters.merging.linear import Linear, NegateB
from adapters.merging.magnitude_prune import MagnitudePrune
from adapters.merging.search import LoraHub as LoraHub
from adapters.merging.slerp import Slerp
from adapters.merging.svd import SVD, UnscaledSVD
from adapters.merging.task_arithmetic import TaskArithmetic
from adapters.merging.ties import Ties

ALGORITHMS: tuple[type[Algorithm], ...] = (
    Linear,
    NegateB,
    TaskArithmetic,
    Concatenation,
    SVD,
    UnscaledSVD,
    MagnitudePrune,
    Ties,
    DareLinear,
    DareTies,
    Della,
    Breadcrumbs,
    Slerp,
    Knots,
)


def algorithm_of(strategy: object, options: Mapping[str, Any]) -> Algorithm:
    """The algorithm that `combine_strategy` names, with its options.

    Raises:
        MergeError: there is none, it does not take one of the options, or the option cannot have this value.
    """
    known = {kind.strategy: kind for kind in ALGORITHMS}
    kind = known.get(strategy) if isinstance(strategy, str) else None
    if kind is None:
        raise MergeError(f"There is no combine_strategy {strategy!r}. {choices(strategy, known)}")
    taken = kind.options()
    for name in options:
        if name not in taken:
            takes = f"It takes: {', '.join(taken)}." if taken else "It takes no options."
            raise MergeError(f"combine_strategy={strategy!r} does not take {name}={options[name]!r}. {takes}")
    return kind(**options)
